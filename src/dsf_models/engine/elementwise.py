"""Blocked two-pass scan for one real λ per channel: h_i = λ_i * h_{i-1} + x_i, every channel by itself.

A segment of the sequence is cut into blocks of c positions, and position j of all its blocks is one tensor, so that a
sequence of c·k steps takes about c operations, each on k blocks:

    1. walk the c positions from zero: the last state of each block alone, and each block's product of λ
    2. carry the state over the blocks: before every block, h = last + product * h
    3. walk the c positions again, each block from the state before it

Segments follow one another, so that what lies between is small whatever the length. No logarithm is taken: λ may be 0
or negative. Backward is the same scan from the other end: with g_i the gradient of h_i and x, λ as above,

    dx_i = g_i + λ_{i+1} * dx_{i+1}        dλ_i = dx_i * h_{i-1}

Letters: b batch, t time, w channels (heads · head width), k blocks, c positions of a block.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import expand_groups

__all__ = ["evaluate_elementwise", "scan_channels"]

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 64
"""Bounds of c, which is near √t between them: c and the number of blocks are what the scan does one by one."""
OPERATION_SIZE = 2**15
"""Numbers that one operation of a walk should touch: enough to outweigh its start, few enough to stay in cache."""


def evaluate_elementwise(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with one real λ per channel by a blocked scan, exactly.

    Args:
        system: the system, in the compute dtype; one state per channel.
        state: S_{-1}, (b, h, 1, p), in the compute dtype.
        chunk_size: positions c of a block; None to choose them by the length.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    drive = system.drive()
    inputs = drive * _by_head(system.B, system.num_heads)
    decay = system.effective_transition().decay.to(drive.dtype).expand_as(drive)
    h, last = scan_channels(inputs.flatten(2), decay.flatten(2), state.flatten(1), chunk_size)
    raw = h.view(drive.shape) * _by_head(system.C, system.num_heads)
    return system.read(raw), last.view(state.shape)


def scan_channels(inputs: Tensor, decay: Tensor, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Return h_i = λ_i * h_{i-1} + x_i for all i (b, t, w), and the last of them (b, w).

    Args:
        inputs: x, (b, t, w).
        decay: λ, (b, t, w).
        state: h_{-1}, (b, w).
        chunk_size: positions of a block; None to choose them by the length.
    """
    return _Scan.apply(inputs, decay, state, chunk_size or _block_for(inputs.shape[1]))


def _by_head(factor: Tensor, num_heads: int) -> Tensor:
    """Return a factor (b|1, t|1, g, 1) that broadcasts over heads: a single group does, more are repeated."""
    return factor if factor.shape[2] == 1 else expand_groups(factor, num_heads)


def _block_for(length: int) -> int:
    """Return the power of two nearest to √length, within its bounds."""
    return min(max(2 ** round(math.log2(length) / 2), SMALLEST_BLOCK), LARGEST_BLOCK)


class _Segment(NamedTuple):
    """`blocks` blocks of `size` positions from `start` on."""

    start: int
    blocks: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.blocks * self.size

    def positions(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return position j of all blocks for every j, as views: (b, t, w) -> c times (b, k, w)."""
        views = x[:, self.start : self.stop].unflatten(1, (self.blocks, self.size))
        if torch.compiler.is_exporting():  # Where gradients are recorded, what unbind gives must not be written to.
            return tuple(views.select(2, place) for place in range(self.size))
        return views.unbind(2)

    def next_starts(self, x: Tensor) -> Tensor:
        """Return x (b, t, w) where the next block starts, for each block; 1 behind the end: (b, k, w)."""
        starts = x[:, self.start + self.size : self.stop + 1 : self.size]
        return F.pad(starts, (0, 0, 0, self.blocks - starts.shape[1]), value=1.0)


def _segments(x: Tensor, block: int) -> Iterator[_Segment]:
    """Cut the time of x (b, t, w) into segments of whole blocks, and what is left into one shorter block."""
    batch, length, width = x.shape
    most = max(1, OPERATION_SIZE // max(1, batch * width))
    whole = length // block
    for first in range(0, whole, most):
        yield _Segment(first * block, min(most, whole - first), block)
    if length % block:
        yield _Segment(whole * block, 1, length % block)


def _scan_(values: Sequence[Tensor], decays: Sequence[Tensor], state: Tensor, reverse: bool) -> Tensor:
    """Replace inputs by states in one segment, v_j <- d_j * v_{j-1} + v_j, and return the last state.

    Args:
        values: inputs in the order of the walk, c times (b, k, w); overwritten by the states.
        decays: what multiplies the state on the way into each position, c times (b, k, w).
        state: (b, w) before the first position.
        reverse: whether the walk goes through the blocks from the last to the first.
    """
    before = state[:, None]
    if values[0].shape[1] > 1:
        local, total = values[0], decays[0]
        for value, decay in itertools.islice(zip(values, decays, strict=True), 1, None):
            local, total = torch.addcmul(value, decay, local), total * decay
        before = _carry(local, total, state, reverse)
    for value, decay in zip(values, decays, strict=True):
        before = value.addcmul_(decay, before)
    return before[:, 0 if reverse else -1]


def _carry(local: Tensor, total: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Return the states before each block (b, k, w), from what each adds and by how much it decays, both (b, k, w)."""
    step = -1 if reverse else 1
    before = []
    for local_k, total_k in zip(local.unbind(1)[::step], total.unbind(1)[::step], strict=True):
        before.append(state)
        state = torch.addcmul(local_k, total_k, state)
    return torch.stack(before[::step], dim=1)


class _Scan(torch.autograd.Function):
    """h_i = λ_i * h_{i-1} + x_i; backward needs nothing but λ and h."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, inputs: Tensor, decay: Tensor, state: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        h, last = inputs.clone(memory_format=torch.contiguous_format), state
        for segment in _segments(h, block):
            last = _scan_(segment.positions(h), segment.positions(decay), last, reverse=False)
        ctx.save_for_backward(decay, h, state)
        ctx.block = block
        return h, last.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_h: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, None]:
        decay, h, state = ctx.saved_tensors
        grad_inputs, carried = grad_h.clone(memory_format=torch.contiguous_format), grad_last
        for segment in reversed(list(_segments(h, ctx.block))):
            into = [segment.next_starts(decay), *segment.positions(decay)[:0:-1]]
            carried = _scan_(segment.positions(grad_inputs)[::-1], into, carried, reverse=True)
        grad_decay = None
        if ctx.needs_input_grad[1]:
            grad_decay = torch.cat([state[:, None], h[:, :-1]], dim=1).mul_(grad_inputs)
        return grad_inputs, grad_decay, decay[:, 0] * grad_inputs[:, 0], None
