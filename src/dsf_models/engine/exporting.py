"""Evaluation inside an exported graph whose number of steps is left open: the recurrence as one `scan` operator.

    S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

The chunked kernels unroll over the chunks of a sequence, so a graph traced through them holds for one length. Here the
graph holds one step, which torch.export, ONNX Runtime and others repeat as often as the sequence asks.

Letters: b batch, t time, h heads, n states, p head width.
"""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from ..system import DSFSystem
from ..transitions import Transition, expand_groups
from .step import exact_transition

__all__ = ["evaluate_scan", "leaves_length_open"]


def leaves_length_open(system: DSFSystem) -> bool:
    """Return whether the system is being traced into a graph for any number of steps."""
    return torch.compiler.is_exporting() and isinstance(system.length, torch.SymInt)


def evaluate_scan(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a system step by step, in an operator that is traced once.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), or (b, 1, N, 1) with maps, in the compute dtype.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    transition = exact_transition(system)
    first = transition.narrow(0, 1)
    batch, length = system.u.shape[:2]
    driven = [system.inflow()] if system.input_map is not None else _factors(system)
    varying = [x.expand(batch, *x.shape[1:]) for x in _varying(transition, first)]

    def step(state: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        parts = iter([x[:, None] for x in inputs[len(driven) :]])
        moved = _with_parts(transition, first, parts).step(state, 0)
        if system.input_map is not None:
            moved = moved + inputs[0]
            return moved, moved.clone()
        drive, b, c = inputs[: len(driven)]
        moved = moved + b[..., None] * drive[..., None, :]
        # Elementwise: a matrix product with open sizes is no operator that ONNX takes inside a scan.
        return moved, (c[..., None] * moved).sum(-2)

    over_time = [x.transpose(0, 1) for x in (*driven, *varying)]
    if not torch.is_grad_enabled():  # Else ONNX's rewriting of the graph would add a backward pass to it, and fail.
        state, over_time = state.detach(), [x.detach() for x in over_time]
    last, raw = scan(step, state, over_time)
    raw = raw.transpose(0, 1)
    return system.read(system.outflow(raw) if system.input_map is not None else raw), last


def _factors(system: DSFSystem) -> list[Tensor]:
    """Return s_i * u_i, b_i and c_i for every row, step and head: (b, t, h, p or p + 1), then (b, t, h, n) twice."""
    shape = (*system.u.shape[:2], -1, -1)
    return [system.drive(), *(expand_groups(x, system.num_heads).expand(shape) for x in (system.B, system.C))]


def _varying(whole: Transition, part: Transition) -> Iterator[Tensor]:
    """Yield the tensors of a structure that depend on time: those which restricting it to a step has cut."""
    for field in fields(whole):
        value, cut = getattr(whole, field.name), getattr(part, field.name)
        if isinstance(value, Transition):
            yield from _varying(value, cut)
        elif isinstance(value, Tensor) and value is not cut:
            yield value


def _with_parts(whole: Transition, part: Transition, parts: Iterator[Tensor]) -> Transition:
    """Return the structure of one step, its tensors that depend on time taken from `parts` in the order above."""
    changes = {}
    for field in fields(whole):
        value, cut = getattr(whole, field.name), getattr(part, field.name)
        if isinstance(value, Transition):
            changes[field.name] = _with_parts(value, cut, parts)
        elif isinstance(value, Tensor) and value is not cut:
            changes[field.name] = next(parts)
    return replace(part, **changes)
