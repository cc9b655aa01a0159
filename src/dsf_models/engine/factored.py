"""Streamed scan for Λ = exp(-Δ A): states of a few steps at a time, forgotten and computed again for the gradient.

Every state of every channel has its own decay, so that no matrix product over time exists. The (b, t, h, n, p) states
are too many to keep: they pass through buffers of a few megabytes that are used over and over, chunk by chunk. A chunk
is walked through blockwise, all of its blocks at once, from a first walk's ends to the states between blocks, and from
those to all states; of these, the backward pass gets those between blocks. With g_i = ∂loss/∂S_i it runs

    g_i = λ_{i+1} * g_{i+1} + c_i ȳ_i^T        ∂b_i = g_i v_i        ∂v_i = g_i^T b_i        ∂c_i = S_i ȳ_i
    e_i = g_i * λ_i * S_{i-1}                  ∂Δ_i = -Σ_n A * e_i   ∂A = -Σ_i Δ_i * e_i

Letters: b batch, t time, h heads, n states per channel, p channels per head; c steps in a chunk, k blocks of i steps in
it; v driven input.

Source: the recomputation of the selective scan, Gu & Dao 2023 (arXiv 2312.00752).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import LOG2_E, expand_groups

__all__ = ["evaluate_factored"]

BLOCK = 16
"""Steps of a block: one in so many states is kept for the gradient, and so many roundings of λ meet in a product."""
TILE = 2**14
"""States (rows x heads x n x channels) that go through time together."""
BUFFER = 2**19
"""Numbers in one buffer, the states of a chunk: a few of these stay in a processor's cache."""


class _Inputs(NamedTuple):
    """A system's tensors, all of full size: the driven input v = s * u in two factors, step sizes, rates, and b, c."""

    u: Tensor
    """(b, t, h, p)"""
    gain: Tensor
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
        u, gain, delta = (x[rows, ..., channels] for x in (self.u, self.gain, self.delta))
        return _Inputs(u, gain, delta, self.rate[..., channels], self.B[rows], self.C[rows])

    def at(self, steps: slice) -> "_Inputs":
        """Return views of some steps."""
        return self.over_time(lambda x: x[:, steps])

    def padded(self, after: int) -> "_Inputs":
        """Return them with steps of zeros behind the last one, of Δ = 0 among others: these change no state."""
        return self.over_time(lambda x: _pad(x, after))

    def over_time(self, function: Callable[[Tensor], Tensor]) -> "_Inputs":
        """Return them with all but the rates changed by a function."""
        u, gain, delta, B, C = (function(x) for x in (self.u, self.gain, self.delta, self.B, self.C))
        return _Inputs(u, gain, delta, self.rate, B, C)


def _pad(x: Tensor, after: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, after)) if after else x


def evaluate_factored(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ = exp(-Δ A), exactly and in memory that does not grow with its states.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p), in the compute dtype.
        chunk_size: steps whose states are held at once (whole blocks); default what fits the caches.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    inputs = _inputs(system)
    chunk = min(chunk_size or _default_chunk(inputs.u, state.shape[2]), system.length)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, state)):
        raw, state = _FactoredScan.apply(*inputs, state, chunk)
    else:
        raw, state, _ = torch.ops.dsf_models.factored_scan(*inputs, state, chunk, False)
    return system.read(raw), state


def _inputs(system: DSFSystem) -> _Inputs:
    """Return a system's tensors in full size, broadcast and not copied; neither is the product s * u made."""
    u, gain, transition = system.u, system.input_gain, system.effective_transition()
    gain = u.new_ones(1, 1, 1, 1) if gain is None else gain.to(u.dtype)
    gain = gain[..., None] if gain.ndim == 3 else gain
    if system.lengths is not None:
        u = u.masked_fill(system.padded[..., None, None], 0.0)
    B, C = (expand_groups(x, system.num_heads).expand(*u.shape[:3], -1) for x in (system.B, system.C))
    delta = transition.delta.to(u.dtype).expand(u.shape)
    rate = transition.rate.to(u.dtype).expand(system.num_heads, B.shape[-1], system.head_dim)
    return _Inputs(u, gain.expand(u.shape), delta, rate, B, C)


# ---- how the work is divided -----------------------------------------------------------------------------------------


def _tile_sizes(u: Tensor, states: int) -> tuple[int, int]:
    """Return how many rows and how many channels of each head make one tile; other devices than CPUs take all."""
    batch, _, num_heads, channels = u.shape
    if u.device.type != "cpu":
        return max(batch, 1), channels
    fitting = max(TILE // (num_heads * states), 16)
    return max(min(fitting // channels, batch), 1), min(fitting, channels)


def _tiles(u: Tensor, states: int) -> Iterator[tuple[slice, slice]]:
    rows, channels = _tile_sizes(u, states)
    for row in range(0, u.shape[0], rows):
        for channel in range(0, u.shape[3], channels):
            yield slice(row, row + rows), slice(channel, channel + channels)


def _default_chunk(u: Tensor, states: int) -> int:
    rows, channels = _tile_sizes(u, states)
    buffer = BUFFER if u.device.type == "cpu" else 64 * BUFFER
    return max(BLOCK, buffer // (rows * u.shape[2] * states * channels))


def _block(chunk: int) -> int:
    return min(BLOCK, chunk)


def _chunks(length: int, chunk: int) -> list[tuple[slice, slice]]:
    """Return the steps of each chunk, cut to whole blocks, and the numbers of its blocks."""
    block = _block(chunk)
    size = chunk // block * block
    steps = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    return [(step, slice(step.start // block, -(-step.stop // block))) for step in steps]


# ---- one tile -------------------------------------------------------------------------------------------------------


class _Buffer(NamedTuple):
    """One number for each state of a tile at each step of a chunk, and views of its steps, which take time to make."""

    whole: Tensor
    """(b, k, i, h, n, p)"""
    steps: tuple[Tensor, ...]
    """i times (b, k, h, n, p)"""

    @classmethod
    def of(cls, whole: Tensor) -> "_Buffer":
        """Make the views."""
        return cls(whole, whole.unbind(2))

    def blocks(self, number: int) -> "_Buffer":
        """Return the first blocks only."""
        return self if number == self.whole.shape[1] else self.of(self.whole[:, :number])

    def flat(self) -> Tensor:
        """Return a view of all steps in turn, (b, c, h, n, p)."""
        return self.whole.flatten(1, 2)


def _buffers(count: int, inputs: _Inputs, chunk: int) -> list[_Buffer]:
    """Return uninitialised buffers for chunks of a tile."""
    (batch, length), block = inputs.u.shape[:2], _block(chunk)
    number = min(chunk // block, -(-length // block))
    shape = (batch, number, block, *inputs.rate.shape)
    # One by one: pieces of moderate size find their place between the tensors that are kept.
    return [_Buffer.of(inputs.u.new_empty(shape)) for _ in range(count)]


def _fill(inputs: _Inputs, decays: _Buffer, added: _Buffer) -> Tensor:
    """Write λ_i and b_i v_i^T of a chunk into two buffers, and return each block's whole decay in float64.

    What is carried from block to block is multiplied by decays in float64: the rounding of float32 ones, where it is
    the same block after block, would add up.
    """
    exponent = inputs.rate * -LOG2_E
    torch.mul(inputs.delta[:, :, :, None], exponent, out=decays.flat()).exp2_()
    torch.mul(inputs.B[..., None], (inputs.gain * inputs.u)[:, :, :, None], out=added.flat())
    sums = inputs.delta.unflatten(1, decays.whole.shape[1:3]).sum(2, dtype=torch.float64)
    return (sums[:, :, :, None] * exponent).exp2_()


def _walk(decays: Sequence[Tensor], added: Sequence[Tensor], before: Tensor) -> None:
    """Run S_i = λ_i * S_{i-1} + added_i in every block, the states written over what is added."""
    for decay, state in zip(decays, added, strict=True):
        before = state.addcmul_(decay, before)


def _ends(decays: Sequence[Tensor], added: Sequence[Tensor]) -> Tensor:
    """Return the last state of every block that begins with a zero state, (b, k, h, n, p)."""
    end = added[0].clone(memory_format=torch.contiguous_format)
    for decay, x in zip(decays[1:], added[1:], strict=True):
        torch.addcmul(x, decay, end, out=end)
    return end


def _carry(totals: Tensor, ends: Tensor, state: Tensor, order: Sequence[int], between: Tensor) -> None:
    """Run S_k = total_k * S_{k-1} + end_k over blocks, (b, h, n, p) in float64; write the states before them."""
    for k in order:
        between[:, k].copy_(state)
        state.mul_(totals[:, k]).add_(ends[:, k])


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return row vectors times matrices: (…, i), (…, i, j) -> (…, j)."""
    return (rows[..., None, :] @ matrices).squeeze(-2)


def _scan_tile(inputs: _Inputs, state: Tensor, chunk: int, kept: Tensor | None, y: Tensor) -> None:
    """Run a tile through time: y (b, t, h, p), the states before each block, and the last one over `state`."""
    buffers = _buffers(2, inputs, chunk)
    between, carried = torch.empty_like(buffers[0].steps[0]), state.double()
    for steps, blocks in _chunks(y.shape[1], chunk):
        number = blocks.stop - blocks.start
        decays, states = (buffer.blocks(number) for buffer in buffers)
        size = steps.stop - steps.start
        here = inputs.at(steps).padded(number * len(decays.steps) - size)
        totals = _fill(here, decays, states)
        starts = between[:, :number] if kept is None else kept[:, blocks]
        _carry(totals, _ends(decays.steps, states.steps), carried, range(number), starts)
        _walk(decays.steps, states.steps, starts)
        y[:, steps] = _rows_times(here.C, states.flat())[:, :size]
    state.copy_(carried)


def _scan_tile_backward(
    inputs: _Inputs, chunk: int, kept: Tensor, grad_y: Tensor, grad_state: Tensor, grads: _Inputs
) -> None:
    """Run a tile back through time: gradients are added to `grads`, and that of the first state written over the last.

    Each chunk's states are computed again, from the states before its blocks.
    """
    buffers = _buffers(3, inputs, chunk)
    between, carried = torch.empty_like(buffers[0].steps[0]), grad_state.double()
    for steps, blocks in reversed(_chunks(grad_y.shape[1], chunk)):
        number = blocks.stop - blocks.start
        decays, states, flow = (buffer.blocks(number) for buffer in buffers)
        missing = number * len(decays.steps) - (steps.stop - steps.start)
        here, grad_y_k = inputs.at(steps).padded(missing), _pad(grad_y[:, steps], missing)
        totals = _fill(here, decays, states)
        _walk(decays.steps, states.steps, kept[:, blocks])
        torch.mul(here.C[..., None], grad_y_k[:, :, :, None], out=flow.flat())
        ends = _ends([decays.steps[0], *decays.steps[:0:-1]], flow.steps[::-1]).mul_(decays.steps[0])
        after = between[:, :number]
        _carry(totals, ends, carried, range(number)[::-1], after)
        flow.steps[-1].add_(after)
        _walk(decays.steps[:0:-1], flow.steps[-2::-1], flow.steps[-1])
        _add_gradients(here, kept[:, blocks], grad_y_k, decays, states, flow, grads.at(steps))
    grad_state.copy_(carried)


def _add_gradients(
    inputs: _Inputs, starts: Tensor, grad_y: Tensor, decays: _Buffer, states: _Buffer, flow: _Buffer, grads: _Inputs
) -> None:
    """Add a chunk's gradients to `grads`, from λ, S and g in the buffers, which it overwrites."""
    size = grads.u.shape[1]
    grads.C.add_(_rows_times(grad_y, states.flat().mT)[:, :size])
    grads.B.add_(_rows_times(inputs.gain * inputs.u, flow.flat().mT)[:, :size])
    grad_v = _rows_times(inputs.B, flow.flat())
    torch.mul(grad_v[:, :size], inputs.gain[:, :size], out=grads.u)
    torch.mul(grad_v[:, :size], inputs.u[:, :size], out=grads.gain)
    decays.whole[:, :, 0].mul_(starts)
    decays.whole[:, :, 1:].mul_(states.whole[:, :, :-1])
    e, scratch = decays.flat().mul_(flow.flat()), states.flat()
    grads.delta.copy_(torch.mul(e, inputs.rate, out=scratch).sum(-2).neg_()[:, :size])
    grads.rate.sub_(torch.mul(e, inputs.delta[:, :, :, None], out=scratch).sum((0, 1)))


# ---- all tiles, as operators that a compiler takes as they are -------------------------------------------------------


@torch.library.custom_op("dsf_models::factored_scan", mutates_args=())
def _scan(
    u: Tensor, gain: Tensor, delta: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (b, t, h, p), the last state (b, h, n, p), and with `keep` those before each block, (b, k, h, n, p)."""
    inputs = _Inputs(u, gain, delta, rate, B, C)
    y, last, kept = _scan_shapes(*inputs, state, chunk, keep)
    last.copy_(state)
    for rows, channels in _tiles(u, B.shape[-1]):
        kept_tile = kept[rows, ..., channels] if keep else None
        _scan_tile(inputs.tile(rows, channels), last[rows, ..., channels], chunk, kept_tile, y[rows, ..., channels])
    return y, last, kept


@_scan.register_fake
def _scan_shapes(
    u: Tensor, gain: Tensor, delta: Tensor, rate: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = -(-u.shape[1] // _block(chunk)) if keep else 0
    return u.new_empty(u.shape), state.new_empty(state.shape), state.new_empty((u.shape[0], kept, *state.shape[1:]))


@torch.library.custom_op("dsf_models::factored_scan_backward", mutates_args=())
def _scan_backward(
    u: Tensor,
    gain: Tensor,
    delta: Tensor,
    rate: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    chunk: int,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, gain, delta, rate, B, C and the first state."""
    inputs = _Inputs(u, gain, delta, rate, B, C)
    # Tiles share rates, b and c: their gradients are sums over tiles.
    grads = _Inputs(*(x.new_empty(x.shape) for x in inputs[:3]), *(x.new_zeros(x.shape) for x in inputs[3:]))
    first = grad_state.clone(memory_format=torch.contiguous_format)
    # It has more buffers than the way there, and beside them lies everything that was kept.
    chunk = max(chunk // 2, _block(chunk))
    for rows, channels in _tiles(u, B.shape[-1]):
        _scan_tile_backward(
            inputs.tile(rows, channels),
            chunk,
            kept[rows, ..., channels],
            grad_y[rows, ..., channels],
            first[rows, ..., channels],
            grads.tile(rows, channels),
        )
    return *grads, first


@_scan_backward.register_fake
def _scan_backward_shapes(
    u: Tensor,
    gain: Tensor,
    delta: Tensor,
    rate: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    chunk: int,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    u, gain, delta, rate, B, C, first = (x.new_empty(x.shape) for x in (u, gain, delta, rate, B, C, grad_state))
    return u, gain, delta, rate, B, C, first


class _FactoredScan(torch.autograd.Function):
    """The scan with its gradient; keeps its inputs and the states between blocks."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        u: Tensor,
        gain: Tensor,
        delta: Tensor,
        rate: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        y, last, kept = torch.ops.dsf_models.factored_scan(u, gain, delta, rate, B, C, state, chunk, True)
        ctx.save_for_backward(u, gain, delta, rate, B, C, kept)
        ctx.chunk = chunk
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor, grad_state: Tensor
    ) -> tuple[Tensor | None, ...]:
        grads = torch.ops.dsf_models.factored_scan_backward(*ctx.saved_tensors, ctx.chunk, grad_y, grad_state)
        return *grads, None
