"""Evaluation inside an exported graph whose number of steps is left open: the recurrence as one `scan` operator.

    S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

The chunked kernels unroll over the chunks of a sequence, so a graph traced through them holds for one length. Here the
graph holds one step, which torch.export, ONNX Runtime and others repeat as often as the sequence asks.

Letters: b batch, t time, h heads, n states, p head width.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from ..system import DSFSystem
from ..transitions import Transition, expand_groups
from .step import exact_transition

Record = TypeVar("Record", DSFSystem, Transition)

__all__ = ["evaluate_scan", "leaves_length_open", "scan_steps"]


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
    if not torch.is_grad_enabled():  # Else ONNX's rewriting of the graph would add a backward pass to it, and fail.
        system, state = _detached(system), state.detach()
    transition = exact_transition(system)
    first = transition.narrow(0, 1)
    batch = system.u.shape[0]
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
        return moved, (c[..., None, :] @ moved).squeeze(-2)

    raw, last = scan_steps(step, state, [*driven, *varying])
    return system.read(system.outflow(raw) if system.input_map is not None else raw), last


def scan_steps(
    step: Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]], state: Tensor, inputs: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Run `step` over time in an operator that is traced once.

    Args:
        step: from a state and the inputs of one step (b, …) to the next state and an output (b, …), of which none may
            be another's memory.
        state: the first one.
        inputs: (b, t, …) each.

    Returns:
        The outputs (b, t, …) and the last state.
    """
    # Contiguous: the operator's tracing loses track of open sizes in the strides of a view.
    last, outputs = scan(step, state, [x.transpose(0, 1).contiguous() for x in inputs])
    return outputs.transpose(0, 1), last


def _detached(record: Record) -> Record:
    """Return a system or structure that no gradient leads out of."""
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Transition | Tensor):
            changes[field.name] = _detached(value) if isinstance(value, Transition) else value.detach()
    return replace(record, **changes)


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
