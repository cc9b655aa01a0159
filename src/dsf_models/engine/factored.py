"""Streamed scan for Λ = exp(-Δ A): states of a few steps at a time, forgotten and computed again for the gradient.

Every state of every channel has its own decay, so that no matrix product over time exists. The (b, t, h, n, p) states
are too many to keep: they pass through buffers of a few megabytes that are used over and over, chunk by chunk, and of
each chunk only the state before it is kept. With g_i = ∂loss/∂S_i the backward pass runs

    g_i = λ_{i+1} * g_{i+1} + c_i ȳ_i^T        ∂b_i = g_i v_i        ∂v_i = g_i^T b_i        ∂c_i = S_i ȳ_i
    e_i = g_i * λ_i * S_{i-1}                  ∂Δ_i = -Σ_n A * e_i   ∂A = -Σ_i Δ_i * e_i

Letters: b batch, t time, h heads, n states per channel, p channels per head; c steps in a chunk; v driven input.

Source: the recomputation of the selective scan, Gu & Dao 2023 (arXiv 2312.00752).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import expand_groups

__all__ = ["evaluate_factored"]

LONGEST_CHUNK = 64
"""Steps in a chunk at most: memory for the states between chunks falls with it."""
TILE = 2**15
"""States (rows x heads x n x channels) that go through time together; one step of them fits the nearest cache."""
BUFFER = 2**19
"""Numbers in one buffer, the states of a chunk: a few of these stay in the last cache."""


class _Inputs(NamedTuple):
    """A system's tensors, all of full size: driven input v, step sizes, rates and factors b, c."""

    v: Tensor
    """(b, t, h, p)"""
    delta: Tensor
    """(b, t, h, p)"""
    rate: Tensor
    """(h, n, p)"""
    B: Tensor
    """(b, t, h, n)"""
    C: Tensor
    """(b, t, h, n)"""

    def tile(self, rows: slice, channels: slice) -> "_Inputs":
        """Return views of some rows and some channels of each head."""
        v, delta = (x[rows, ..., channels] for x in (self.v, self.delta))
        return _Inputs(v, delta, self.rate[..., channels], self.B[rows], self.C[rows])

    def at(self, steps: slice) -> "_Inputs":
        """Return views of some steps."""
        return _Inputs(self.v[:, steps], self.delta[:, steps], self.rate, self.B[:, steps], self.C[:, steps])


def evaluate_factored(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ = exp(-Δ A), exactly and in memory that does not grow with its states.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p), in the compute dtype.
        chunk_size: steps whose states are held at once; default what fits the caches.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    v, transition = system.drive(), system.effective_transition()
    B, C = (expand_groups(x, system.num_heads).expand(*v.shape[:3], -1) for x in (system.B, system.C))
    inputs = _Inputs(
        v=v,
        delta=transition.delta.to(v.dtype).expand(v.shape),
        rate=transition.rate.to(v.dtype).expand(state.shape[1:]),
        B=B,
        C=C,
    )
    chunk = min(chunk_size or _default_chunk(v, B.shape[-1]), system.length)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, state)):
        raw, state = _FactoredScan.apply(*inputs, state, chunk)
    else:
        raw, state, _ = torch.ops.dsf_models.factored_scan(*inputs, state, chunk, False)
    return system.read(raw), state


def _tile_sizes(v: Tensor, states: int) -> tuple[int, int]:
    """Return how many rows and how many channels of each head make one tile; other devices than CPUs take all."""
    batch, _, num_heads, channels = v.shape
    if v.device.type != "cpu":
        return max(batch, 1), channels
    fitting = max(TILE // (num_heads * states), 16)
    return max(fitting // channels, 1), min(fitting, channels)


def _default_chunk(v: Tensor, states: int) -> int:
    rows, channels = _tile_sizes(v, states)
    return max(1, min(LONGEST_CHUNK, BUFFER // (min(rows, max(v.shape[0], 1)) * v.shape[2] * states * channels)))


def _tiles(v: Tensor, states: int) -> Iterator[tuple[slice, slice]]:
    rows, channels = _tile_sizes(v, states)
    for row in range(0, v.shape[0], rows):
        for channel in range(0, v.shape[3], channels):
            yield slice(row, row + rows), slice(channel, channel + channels)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


# ---- one tile -------------------------------------------------------------------------------------------------------


class _Buffer(NamedTuple):
    """One number for each state of a tile at each step of a chunk, and views of its steps, which take time to make."""

    whole: Tensor
    """(b, c, h, n, p)"""
    steps: tuple[Tensor, ...]
    """c times (b, h, n, p)"""

    def first(self, size: int) -> "_Buffer":
        """Return the first steps only."""
        return _Buffer(self.whole[:, :size], self.steps[:size])


def _buffers(count: int, inputs: _Inputs, chunk: int) -> list[_Buffer]:
    """Return uninitialised buffers for chunks of a tile."""
    shape = (count, inputs.v.shape[0], chunk, *inputs.rate.shape)
    wholes = torch.empty(shape, dtype=inputs.v.dtype, device=inputs.v.device).unbind(0)
    return [_Buffer(whole, whole.unbind(1)) for whole in wholes]


def _walk(decays: Sequence[Tensor], added: Sequence[Tensor], before: Tensor) -> Tensor:
    """Run S_i = λ_i * S_{i-1} + added_i, the states written over what is added; return the last one."""
    for decay, state in zip(decays, added, strict=True):
        before = state.addcmul_(decay, before)
    return before


def _states(inputs: _Inputs, before: Tensor, decays: _Buffer, states: _Buffer) -> Tensor:
    """Write λ_i and S_i of a chunk into two buffers, and return the last state, a view of the second.

    exp is taken as a power of two: in the library at hand that is several times faster, and as exact.
    """
    torch.mul(inputs.delta[:, :, :, None], inputs.rate * -math.log2(math.e), out=decays.whole).exp2_()
    torch.mul(inputs.B[..., None], inputs.v[:, :, :, None], out=states.whole)
    return _walk(decays.steps, states.steps, before)


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return row vectors times matrices: (…, i), (…, i, j) -> (…, j)."""
    return (rows[..., None, :] @ matrices).squeeze(-2)


def _scan_tile(inputs: _Inputs, state: Tensor, chunk: int, kept: Tensor | None, y: Tensor) -> None:
    """Run a tile through time: y (b, t, h, p), the states before each chunk, and the last one over `state`."""
    buffers = _buffers(2, inputs, chunk)
    for k, steps in enumerate(_chunks(y.shape[1], chunk)):
        if kept is not None:
            kept[k].copy_(state)
        here = inputs.at(steps)
        decays, states = (buffer.first(steps.stop - steps.start) for buffer in buffers)
        state.copy_(_states(here, state, decays, states))
        y[:, steps] = _rows_times(here.C, states.whole)


def _scan_tile_backward(
    inputs: _Inputs, chunk: int, kept: Tensor, grad_y: Tensor, grad_state: Tensor, grads: _Inputs
) -> None:
    """Run a tile back through time: gradients are added to `grads`, and that of the first state written over the last.

    Each chunk's states are computed again, from the state before it.
    """
    buffers = _buffers(3, inputs, chunk)
    for k, steps in reversed(list(enumerate(_chunks(grad_y.shape[1], chunk)))):
        here, at, grad_y_k = inputs.at(steps), grads.at(steps), grad_y[:, steps]
        decays, states, flow = (buffer.first(steps.stop - steps.start) for buffer in buffers)
        _states(here, kept[k], decays, states)
        torch.mul(here.C[..., None], grad_y_k[:, :, :, None], out=flow.whole)
        flow.steps[-1].add_(grad_state)
        _walk(decays.steps[:0:-1], flow.steps[-2::-1], flow.steps[-1])
        torch.mul(decays.steps[0], flow.steps[0], out=grad_state)
        at.C.add_(_rows_times(grad_y_k, states.whole.mT))
        at.B.add_(_rows_times(here.v, flow.whole.mT))
        at.v.copy_(_rows_times(here.B, flow.whole))
        decays.steps[0].mul_(kept[k])
        decays.whole[:, 1:].mul_(states.whole[:, :-1])
        e, scratch = decays.whole.mul_(flow.whole), states.whole
        at.delta.copy_(torch.mul(e, here.rate, out=scratch).sum(-2).neg_())
        at.rate.sub_(torch.mul(e, here.delta[:, :, :, None], out=scratch).sum((0, 1)))


# ---- all tiles, as operators that a compiler takes as they are -------------------------------------------------------


@torch.library.custom_op("dsf_models::factored_scan", mutates_args=())
def _scan(
    v: Tensor, delta: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b, t, h, p), the last state (b, h, n, p), and with `keep` those before each chunk (k, b, h, n, p)."""
    inputs, (y, last, kept) = _Inputs(v, delta, rate, B, C), _scan_shapes(v, delta, rate, B, C, state, chunk, keep)
    last.copy_(state)
    for rows, channels in _tiles(v, B.shape[-1]):
        kept_tile = kept[:, rows, ..., channels] if keep else None
        _scan_tile(inputs.tile(rows, channels), last[rows, ..., channels], chunk, kept_tile, y[rows, ..., channels])
    return y, last, kept


@_scan.register_fake
def _scan_shapes(
    v: Tensor, delta: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = -(-v.shape[1] // chunk) if keep else 0
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty((kept, *state.shape))


@torch.library.custom_op("dsf_models::factored_scan_backward", mutates_args=())
def _scan_backward(
    v: Tensor,
    delta: Tensor,
    rate: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    chunk: int,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of v, delta, rate, B, C and the first state."""
    inputs = _Inputs(v, delta, rate, B, C)
    grads = _Inputs(*(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in inputs))
    first = grad_state.clone(memory_format=torch.contiguous_format)
    for rows, channels in _tiles(v, B.shape[-1]):
        _scan_tile_backward(
            inputs.tile(rows, channels),
            chunk,
            kept[:, rows, ..., channels],
            grad_y[rows, ..., channels],
            first[rows, ..., channels],
            grads.tile(rows, channels),
        )
    return *grads, first


@_scan_backward.register_fake
def _scan_backward_shapes(
    v: Tensor,
    delta: Tensor,
    rate: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    chunk: int,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    v, delta, rate, B, C, first = (x.new_empty(x.shape) for x in (v, delta, rate, B, C, grad_state))
    return v, delta, rate, B, C, first


class _FactoredScan(torch.autograd.Function):
    """The scan with its gradient; keeps its inputs and the states between chunks."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        v: Tensor,
        delta: Tensor,
        rate: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        y, last, kept = torch.ops.dsf_models.factored_scan(v, delta, rate, B, C, state, chunk, True)
        ctx.save_for_backward(v, delta, rate, B, C, kept)
        ctx.chunk = chunk
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor, grad_state: Tensor
    ) -> tuple[Tensor | None, ...]:
        grads = torch.ops.dsf_models.factored_scan_backward(*ctx.saved_tensors, ctx.chunk, grad_y, grad_state)
        return *grads, None
