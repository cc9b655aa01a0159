"""Systems in the terms of fla-core's operations: queries C, keys B, values s * u, gates log λ.

    S_i = exp(g_i) S_{i-1} + k_i v_i^T        o_i = S_i^T q_i        g_i scalar, or one a key feature
    S_i = exp(g_i) (I - β_i k_i k_i^T) S_{i-1} + β_i k_i v_i^T       o_i = S_i^T q_i
    h_i = exp(g_i) * h_{i-1} + x_i                                   one state per channel

What the operations do not know is put around them. Pads are steps of g = 0 and v = 0, document starts a gate that is 0.
Negative λ: with σ_i = sign λ_i … sign λ_0 the system σ_i S_i has positive decays, inputs σ_i b_i and outputs σ_i c_i.
Normaliser, output gain and feed-through are read from the outcome as everywhere.

Letters: b batch, t time, h heads, n states per channel, p head width, w channels (heads · head width).

Source: fla-core (github.com/fla-org/flash-linear-attention), whose kernels these are.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

from ...system import DSFSystem
from ...transitions import DeltaRule, ElementwiseDecay, Identity, KeyDiagonal, ScalarDecay, Transition, expand_groups
from . import imports

__all__ = ["evaluate", "missing", "obstacle", "op", "reservation"]

OPS: dict[type[Transition], dict[str, str]] = {
    Identity: {
        "chunked": "fla.ops.simple_gla.chunk_simple_gla",
        "recurrent": "fla.ops.simple_gla.fused_recurrent_simple_gla",
    },
    ScalarDecay: {
        "chunked": "fla.ops.simple_gla.chunk_simple_gla",
        "recurrent": "fla.ops.simple_gla.fused_recurrent_simple_gla",
    },
    KeyDiagonal: {"chunked": "fla.ops.gla.chunk_gla", "recurrent": "fla.ops.gla.fused_recurrent_gla"},
    DeltaRule: {
        "chunked": "fla.ops.gated_delta_rule.chunk_gated_delta_rule",
        "recurrent": "fla.ops.gated_delta_rule.fused_recurrent_gated_delta_rule",
    },
    ElementwiseDecay: {
        "chunked": "fla.ops.hgrn.fused_recurrent_hgrn",
        "recurrent": "fla.ops.hgrn.fused_recurrent_hgrn",
    },
}
"""The operation of each structure of Λ and mode."""

LOG_RESET = -100.0
"""Smallest gate: exp(-100) = 4e-44 leaves nothing of a float32 state, and a smaller one would take digits from the
running sums of gates, which the kernels keep in float32."""
TILE = 16
"""Widths of q, k and v are filled up to multiples of it: no tile of a tensor core is smaller."""
WIDEST_KEY = 256
"""Most states per channel of the delta rule's kernels."""
HOPPER = 9
"""Compute capability of Hopper GPUs."""


# ---- what is possible ------------------------------------------------------------------------------------------------


def op(system: DSFSystem, mode: str) -> str:
    """Return the full name of the operation that evaluates a system without obstacle."""
    return OPS[type(system.transition)][mode]


def obstacle(system: DSFSystem, mode: str) -> str | None:
    """Return why fla-core cannot evaluate a system, with the remedy; None where it can."""
    ops = OPS.get(type(system.transition))
    if ops is None:
        return f"fla-core has no operation for Λ of structure {system.transition.name!r}."
    if mode not in ops:
        return f"fla-core has no operation for mode={mode!r}: use one of {', '.join(map(repr, ops))}."
    gated = mode == "chunked" and isinstance(system.transition, (ScalarDecay, DeltaRule))
    if gated and torch.is_grad_enabled() and _gates_lack_gradients():
        return (
            "fla-core has no gradients of gates on Hopper GPUs with Triton from 3.4 to before 3.7.1, which computes "
            "them wrongly: upgrade triton, install tilelang, or evaluate under torch.no_grad()."
        )
    if isinstance(system.transition, DeltaRule):
        return _delta_rule_obstacle(system, system.transition, mode)
    return None


def reservation(system: DSFSystem, mode: str) -> str | None:
    """Return why "auto" rather takes torch, where fla-core could evaluate a system."""
    multiplies = op(system, mode).rpartition(".")[2].startswith("chunk_")
    if system.u.dtype == torch.float32 and multiplies and not _allows_tf32():
        return (
            "it multiplies float32 matrices in TF32, which has 11 bits: allow that with "
            'torch.set_float32_matmul_precision("high"), use bfloat16, or name the backend.'
        )
    if _brings_models():
        return (
            "importing it would import flash-linear-attention, which replaces models of transformers by its own: "
            "uninstall flash-linear-attention and keep fla-core, or name the backend."
        )
    return None


def missing(system: DSFSystem, mode: str) -> str | None:
    """Return why fla-core cannot be imported, with the remedy; None where it can."""
    error = imports.missing(op(system, mode))
    return f'fla-core does not import ({error}): pip install "dsf-models[cuda]".' if error else None


def _delta_rule_obstacle(system: DSFSystem, transition: DeltaRule, mode: str) -> str | None:
    if system.B is not transition.key or system.input_gain is not transition.beta:
        return (
            "its delta rule writes at the key that it erases, with the same β: build the system with B and "
            "transition.key, input_gain and transition.beta the same tensors."
        )
    if system.B.shape[-1] > WIDEST_KEY:
        return f"its delta rule takes at most {WIDEST_KEY} states per channel, and B has {system.B.shape[-1]}."
    if mode == "recurrent" and torch.is_grad_enabled():
        return 'its recurrent delta rule has no gradient: use mode="chunked", or torch.no_grad().'
    return None


@functools.cache
def _gates_lack_gradients() -> bool:
    """Return whether fla-core refuses the gradients of gates here, which it says in the backward pass alone."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != HOPPER:
        return False
    triton = Version(metadata.version("triton")) if importlib.util.find_spec("triton") else Version("0")
    return Version("3.4.0") <= triton < Version("3.7.1") and importlib.util.find_spec("tilelang") is None


def _allows_tf32() -> bool:
    """Return whether torch may multiply float32 matrices in TF32; asking by the older name can fail in newer torch."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


@functools.cache
def _brings_models() -> bool:
    """Return whether the first import of fla would import the models of flash-linear-attention."""
    if "fla.models" in sys.modules:
        return False
    found = importlib.util.find_spec("fla")
    folders = found.submodule_search_locations if found is not None else None
    return any((Path(folder) / "models").is_dir() for folder in folders or ())


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(system: DSFSystem, state: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Evaluate a system by fla-core; matrices are multiplied in u's dtype, states and gates are float32.

    Args:
        system: a system without obstacle.
        state: S_{-1}, (b, h, n, p or p + 1), in float32.
        mode: "chunked" or "recurrent".

    Returns:
        y (b, t, h, p) in u's dtype, and the state at each row's last real token in float32.
    """
    kernel, transition = imports.load(op(system, mode)), system.effective_transition()
    if isinstance(transition, ElementwiseDecay):
        return _evaluate_elementwise(kernel, system.to(torch.float32), state, system.u.dtype)
    if isinstance(transition, DeltaRule):
        raw, state = _evaluate_delta_rule(kernel, system, transition, state)
    else:
        gate = "gk" if isinstance(transition, KeyDiagonal) and mode == "recurrent" else "g"
        raw, state = _evaluate_decays(kernel, system, transition, state, gate)
    return _read(system, raw), state


def _evaluate_decays(
    kernel: Callable[..., tuple[Tensor, Tensor]], system: DSFSystem, transition: Transition, state: Tensor, gate: str
) -> tuple[Tensor, Tensor]:
    """Evaluate Λ = 1, scalar decays and decays of key features; `gate` is what the operation calls log λ."""
    B, C, V = _by_head(system.B, system), _by_head(system.C, system), _drive(system)
    if isinstance(transition, Identity):
        return _apply(kernel, C, B, V, state)
    log_decay = _by_head(_features_last(transition, transition.log_decay), system)
    sign = None
    if transition.sign is not None:
        sign = _by_head(_features_last(transition, transition.sign), system).to(B.dtype).cumprod(1)
        B, C = B * sign, C * sign
    gates = log_decay.float().clamp(min=LOG_RESET)
    gates = _fill_up(gates) if isinstance(transition, KeyDiagonal) else gates.squeeze(-1)
    raw, state = _apply(kernel, C, B, V, state, **{gate: gates})
    return raw, state if sign is None else state * sign[:, -1, :, :, None].to(state.dtype)


def _evaluate_delta_rule(
    kernel: Callable[..., tuple[Tensor, Tensor]], system: DSFSystem, transition: DeltaRule, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate the delta rule, whose operation multiplies values by β itself."""
    B, C, V = _by_head(system.B, system), _by_head(system.C, system), _drive(replace(system, input_gain=None))
    log_decay, beta = (_by_head(x[..., None], system).squeeze(-1) for x in (transition.log_decay, transition.beta))
    return _apply(kernel, C, B, V, state, g=log_decay.float().clamp(min=LOG_RESET), beta=beta.float())


def _apply(
    kernel: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, state: Tensor, **gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Call an operation on widths that suit it: (b, t, h, p) and the last state (b, h, n, p)."""
    n, p = state.shape[-2:]
    state = F.pad(state, (0, -p % TILE, 0, -n % TILE))
    q, k, v = _fill_up(q), _fill_up(k), _fill_up(v)
    raw, last = kernel(q=q, k=k, v=v, **gates, scale=1.0, initial_state=state, output_final_state=True)
    return raw[..., :p], last[..., :n, :p]


def _fill_up(x: Tensor) -> Tensor:
    missing = -x.shape[-1] % TILE
    return F.pad(x, (0, missing)) if missing else x


def _by_head(x: Tensor, system: DSFSystem) -> Tensor:
    """Give every row, step and head its own factor: (b|1, t|1, g|1, n) -> (b, t, h, n)."""
    return expand_groups(x.expand(system.u.shape[0], system.length, -1, -1), system.num_heads)


def _features_last(transition: Transition, x: Tensor) -> Tensor:
    """Return a parameter of Λ with a last dimension for key features, of size 1 where they share it."""
    return x if isinstance(transition, KeyDiagonal) else x[..., None]


def _drive(system: DSFSystem) -> Tensor:
    """Return the driven input in u's dtype, rounded once."""
    return system.drive() if system.input_gain is None else system.drive(torch.float32).to(system.u.dtype)


def _read(system: DSFSystem, raw: Tensor) -> Tensor:
    """Turn what an operation read from the states into y in u's dtype, rounded once."""
    if system.log_normalizer is not None:
        system = replace(system, log_normalizer=system.log_normalizer.float())
    return system.read(raw.float()).to(system.u.dtype)


# ---- one state per channel -------------------------------------------------------------------------------------------


def _evaluate_elementwise(
    kernel: Callable[..., tuple[Tensor, Tensor]], system: DSFSystem, state: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Evaluate a float32 system with one real λ per channel; half precision would speed up no product."""
    drive = system.drive()
    inputs = drive * _by_head(system.B, system)
    decay = system.effective_transition().decay.expand_as(drive)
    h, last = _Scan.apply(inputs.flatten(2), decay.flatten(2), state.flatten(1), kernel)
    raw = h.view(drive.shape) * _by_head(system.C, system)
    return system.read(raw).to(dtype), last.view(state.shape)


class _Scan(torch.autograd.Function):
    """h_i = λ_i * h_{i-1} + x_i, with its gradient by the same scan from the other end.

        dx_i = g_i + λ_{i+1} * dx_{i+1}        dλ_i = dx_i * h_{i-1}

    The operation's own gradient is one of log λ: where λ = 0 it is lost.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        inputs: Tensor,
        decay: Tensor,
        state: Tensor,
        kernel: Callable[..., tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        h, last = _scan(kernel, inputs, decay, state)
        ctx.save_for_backward(decay, h, state)
        ctx.kernel = kernel
        return h, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_h: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        decay, h, state = ctx.saved_tensors
        into = torch.cat([torch.ones_like(decay[:, :1]), decay.flip(1)[:, :-1]], dim=1)
        grad_inputs = _scan(ctx.kernel, grad_h.flip(1), into, grad_last)[0].flip(1)
        grad_decay = torch.cat([state[:, None], h[:, :-1]], dim=1) * grad_inputs
        return grad_inputs, grad_decay, decay[:, 0] * grad_inputs[:, 0], None


def _scan(
    kernel: Callable[..., tuple[Tensor, Tensor]], x: Tensor, decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return h_i = λ_i * h_{i-1} + x_i for x and λ (b, t, w), and the last h, by an operation that takes log |λ|."""
    gates = decay.abs().log_().clamp_(min=LOG_RESET)
    sign = torch.where(decay < 0, -1.0, 1.0).cumprod(1)
    h, last = kernel(x=x * sign, g=gates, initial_state=state, output_final_state=True)
    return h * sign, last * sign[:, -1]
