"""Chunked kernel for diagonal-plus-low-rank Λ = diag(ρ) - w g^T with constant B and C: convolution in segments (S4).

The rank-one term is a scalar feedback f around a diagonal system. In a chunk of c steps that starts from the state S,

    f_i = g^T S_{i-1}        S_i = ρ * S_{i-1} - w f_i + b v_i        y_i = c^T S_i

f solves a triangular Toeplitz system in the powers ρ^j, so that everything a chunk needs comes from matrix products
with them, and no eigenvector of Λ is ever formed:

    Y = K V + R S        S' = Λ^c S + X V        K_ij = c^T Λ^{i-j} b,  R_i = c^T Λ^{i+1},  X_j = Λ^{c-1-j} b

These operators are float64 whatever the inputs are: the feedback cancels most of what the diagonal part says.

Letters: b batch, k chunks, c chunk length (i rows, j columns), h heads, n states, m = n/2 modes, p head width.

Sources: the S4 kernel as a truncated generating function, Gu et al. 2022 (arXiv 2111.00396); overlap-add.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import DPLR, DSFSystemError, expand_groups, multiply_pairs

__all__ = ["evaluate_chunked_dplr"]

DEFAULT_CHUNK = 32
"""Chunk length c: c + 2n + n²/c products a step and channel, and about 3·c²·n once a call and channel."""
MANY_STATES = 64
"""With more states than these a chunk is twice as long."""


class _Operators(NamedTuple):
    """What one chunk does, for each head: see the module."""

    kernel: Tensor
    """c^T Λ^j b, (h, c)."""
    read: Tensor
    """Rows c^T Λ^{i+1}, (h, c, n)."""
    write: Tensor
    """Rows Λ^j b, (h, c, n)."""
    feedback: Tensor
    """Rows g^T Λ^i, (h, c, n): f from the state in front of the chunk."""
    push: Tensor
    """Rows ρ^j * w, (h, c, n)."""
    powers: Tensor
    """ρ^0 … ρ^c as pairs, (h, c + 1, m, 2)."""

    def to(self, dtype: torch.dtype) -> "_Operators":
        return _Operators(*(operator.to(dtype) for operator in self))


def evaluate_chunked_dplr(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with DPLR Λ and constant B and C chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        chunk_size: c, rounded up to a power of two; shortened to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.

    Raises:
        DSFSystemError: B or C depends on time or on the batch row.
    """
    B_hn, C_hn = (_constant(name, factor, system.num_heads) for name, factor in (("B", system.B), ("C", system.C)))
    length, chunk = system.length, 1
    if chunk_size is None:
        chunk_size = DEFAULT_CHUNK if state.shape[2] <= MANY_STATES else 2 * DEFAULT_CHUNK
    while chunk < min(chunk_size, length):
        chunk *= 2
    operators = _operators(system.transition, B_hn, C_hn, chunk).to(state.dtype)
    V = F.pad(system.drive(), (0, 0, 0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)).permute(3, 2, 0, 1, 4)
    starts = None
    if system.starts is not None:
        starts = F.pad(system.starts, (0, -length % chunk)).unflatten(1, (-1, chunk))
    before = _carry(operators, V, starts, state.permute(1, 2, 0, 3))
    raw = _inside(operators.kernel, V, starts) + _from_state(operators.read, before, starts)
    lengths = torch.full_like(V[0, 0, :, 0, 0], length, dtype=torch.long) if system.lengths is None else system.lengths
    last = _last_state(operators, V, starts, before, lengths)
    raw_bthp = raw.permute(2, 3, 1, 0, 4).flatten(1, 2)[:, :length]
    return system.read(raw_bthp), last.permute(2, 0, 1, 3)


def _constant(name: str, factor: Tensor, num_heads: int) -> Tensor:
    """Return a factor that is the same at every step of every row, for each head: (h, n)."""
    if factor.shape[:2] != (1, 1):
        raise DSFSystemError(
            f'{name} has shape {tuple(factor.shape)}, but mode="chunked" for a DPLR Λ needs (1, 1, groups, states), '
            'the same at every step of every row; use mode="recurrent" or "matrix".'
        )
    return expand_groups(factor, num_heads)[0, 0]


# ---- the operators of a chunk ---------------------------------------------------------------------------------------


def _operators(transition: DPLR, B_hn: Tensor, C_hn: Tensor, chunk: int) -> _Operators:
    """Work out a chunk's operators in float64.

    With the strictly lower Toeplitz matrix L of g^T ρ^j w, the feedback is f = (I + L)^{-1} (rows g^T ρ^i) S from a
    state, and (I + L)^{-1} (0, g^T ρ^0 b, g^T ρ^1 b, …) from an input 1 at the first step.
    """
    transition, B_hn, C_hn = transition.to(torch.float64), B_hn.double(), C_hn.double()
    powers = _powers(transition.diagonal, chunk)
    steps, turned_back = powers[:, :-1], powers * powers.new_tensor([1.0, -1.0])
    gain = _turn(turned_back[:, :-1], transition.right)
    push, added = _turn(steps, transition.left), _turn(steps, B_hn)
    loop = F.pad((gain @ transition.left[..., None]).squeeze(-1), (1, -1))
    heard = F.pad(gain @ B_hn[..., None], (0, 0, 1, -1))
    # The diagonal of ones is implied.
    solved = torch.linalg.solve_triangular(
        _toeplitz(loop), torch.cat([gain, heard], dim=-1), upper=False, unitriangular=True
    )
    feedback, impulse = solved[..., :-1], solved[..., -1:]
    seen = _toeplitz((push @ C_hn[..., None]).squeeze(-1))
    return _Operators(
        kernel=(added @ C_hn[..., None] - seen @ impulse).squeeze(-1),
        read=_turn(turned_back[:, 1:], C_hn) - seen @ feedback,
        write=added - _toeplitz(impulse.squeeze(-1)) @ push,
        feedback=feedback,
        push=push,
        powers=powers,
    )


def _powers(diagonal: Tensor, count: int) -> Tensor:
    """Return ρ^0 … ρ^count by doubling: (h, m, 2) -> (h, count + 1, m, 2); `count` is a power of two."""
    one = torch.zeros_like(diagonal)
    one[..., 0] = 1.0
    powers, last = one[:, None], diagonal
    while powers.shape[1] < count:
        powers = torch.cat([powers, multiply_pairs(powers, last[:, None])], dim=1)
        last = multiply_pairs(last, last)
    return torch.cat([powers, last[:, None]], dim=1)


def _turn(powers: Tensor, vector: Tensor) -> Tensor:
    """Multiply the modes of a vector (h, n) by powers (h, c, m, 2): (h, c, n)."""
    return multiply_pairs(powers, vector.unflatten(-1, (-1, 2))[:, None]).flatten(-2)


def _toeplitz(column: Tensor) -> Tensor:
    """Return the lower triangular Toeplitz matrix (…, c, c) of its first column (…, c)."""
    size = column.shape[-1]
    return F.pad(column, (size - 1, 0)).unfold(-1, size, 1).flip(-1)


# ---- their use ------------------------------------------------------------------------------------------------------


def _carry(operators: _Operators, V: Tensor, starts: Tensor | None, state: Tensor) -> Tensor:
    """Run S' = Λ^c S + X V over the chunks.

    Args:
        operators: those of a chunk.
        V: inputs (h, c, b, k, p).
        starts: (b, k, c) or None.
        state: (h, n, b, p).

    Returns:
        The states before each chunk, (h, n, b, k, p).
    """
    batch, chunks, width = V.shape[2:]
    cut = None
    if starts is not None:
        # An input lives on to the end of its chunk unless a document starts behind it.
        later = F.pad(starts.flip(-1).cumsum(-1).flip(-1)[..., 1:] > 0, (0, 1))
        V = V.masked_fill(later.permute(2, 0, 1)[None, ..., None], 0.0)
        cut = starts.any(-1)
    n = state.shape[1]
    added = operators.write.flip(1).mT @ V.flatten(2)
    added = added.unflatten(2, (batch, chunks, width)).transpose(2, 3).flatten(3).unbind(2)
    power = _chunk_power(operators)
    state, before = state.flatten(2), []
    for index in range(chunks):
        before.append(state)
        if cut is not None:
            lost = cut[:, index, None].expand(-1, width).flatten()
            state = state.masked_fill(lost, 0.0)
        state = torch.baddbmm(added[index], power, state)
    return torch.stack(before, dim=2).view(-1, n, chunks, batch, width).transpose(2, 3)


def _chunk_power(operators: _Operators) -> Tensor:
    """Return Λ^c, (h, n, n): the diagonal's power, less what the feedback pushes through it."""
    n = operators.push.shape[-1]
    eye_mn = torch.eye(n, dtype=operators.push.dtype, device=operators.push.device).unflatten(0, (-1, 2))
    turned = multiply_pairs(operators.powers[:, -1, ..., None], eye_mn, dim=-2).flatten(-3, -2)
    return turned - operators.push.flip(1).mT @ operators.feedback


def _from_state(read: Tensor, before: Tensor, starts: Tensor | None) -> Tensor:
    """Return what the states before the chunks (h, n, b, k, p) give to the outputs, R S: (h, c, b, k, p)."""
    given = (read @ before.flatten(2)).unflatten(2, before.shape[2:])
    if starts is None:
        return given
    forgotten = starts.cumsum(-1) > 0
    return given.masked_fill(forgotten.permute(2, 0, 1)[None, ..., None], 0.0)


def _inside(kernel: Tensor, V: Tensor, starts: Tensor | None) -> Tensor:
    """Convolve within the chunks, and within the documents in them: K V, (h, c, b, k, p)."""
    if starts is None:
        return (_toeplitz(kernel) @ V.flatten(2)).unflatten(2, V.shape[2:])
    return _inside_documents(kernel, V, starts)


def _inside_documents(kernel: Tensor, V: Tensor, starts: Tensor) -> Tensor:
    """Convolve within documents by halving the chunk: from a first half to the second, a start is felt as two masks.

    What passes from step j of the first half to step i of the second meets no start iff none lies behind j in the first
    half and none up to i in the second.
    """
    chunk = kernel.shape[1]
    y = kernel[:, 0, None, None, None, None] * V
    half = 1
    while half < chunk:
        halves = starts.permute(2, 0, 1).unflatten(0, (-1, 2, half))
        later = F.pad(halves[:, 0].flip(1).cumsum(1).flip(1)[:, 1:] > 0, (0, 0, 0, 0, 0, 1))
        reached = (halves[:, 1].cumsum(1) > 0)[None, ..., None]
        first = V.unflatten(1, (-1, 2, half))[:, :, 0].masked_fill(later[None, ..., None], 0.0)
        # Row i and column j hold K_{half + i - j}.
        block = kernel[:, 1 : 2 * half].unfold(1, half, 1).flip(2)
        passed = (block[:, None] @ first.flatten(3)).unflatten(3, first.shape[3:]).masked_fill(reached, 0.0)
        y = y + torch.stack([torch.zeros_like(passed), passed], dim=2).flatten(1, 3)
        half *= 2
    return y


def _last_state(operators: _Operators, V: Tensor, starts: Tensor | None, before: Tensor, lengths: Tensor) -> Tensor:
    """Return the state at each row's last real token, r <= c steps into one of the chunks: (h, n, b, p).

    Inputs and feedback of the r steps are moved to the end of a chunk, where they meet the last rows of its operators.
    """
    chunk, chunks = V.shape[1], V.shape[3]
    index = (lengths // chunk).clamp(max=chunks - 1)
    rest = lengths - index * chunk
    rows = torch.arange(lengths.shape[0], device=V.device)
    V, state = V.movedim(3, 2)[:, :, index, rows], before.movedim(3, 2)[:, :, index, rows]
    # Step `source` of the chunk stands at each place, negative where there is none.
    source = torch.arange(chunk, device=V.device)[:, None] - (chunk - rest)
    absent = source < 0
    if starts is not None:
        started = starts[rows, index].mT
        moved = started.gather(0, source.clamp(min=0)) & ~absent
        state = state.masked_fill(moved.any(0)[:, None], 0.0)
        absent = absent | F.pad(moved.flip(0).cumsum(0).flip(0)[1:] > 0, (0, 0, 0, 1))
    feedback = (operators.feedback @ state.flatten(2)).unflatten(2, state.shape[2:])
    place = source.clamp(min=0)[None, ..., None].expand_as(V)
    V = V.gather(1, place).masked_fill(absent[..., None], 0.0)
    feedback = feedback.gather(1, place).masked_fill((source < 0)[..., None], 0.0)
    turn = operators.powers[:, rest].movedim(1, -1)[..., None]
    turned = multiply_pairs(turn, state.unflatten(1, (-1, 2)), dim=2).flatten(1, 2)
    moved = operators.write.flip(1).mT @ V.flatten(2) - operators.push.flip(1).mT @ feedback.flatten(2)
    return turned + moved.unflatten(2, state.shape[2:])
