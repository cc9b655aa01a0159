"""Chunked kernel for diagonal-plus-low-rank Λ = diag(ρ) - w g^T with constant B and C: convolution in segments (S4).

The rank-one term is a scalar feedback f around a diagonal system. In a chunk of c steps that starts from the state S,

    f_i = g^T S_{i-1}        S_i = ρ * S_{i-1} - w f_i + b v_i        y_i = c^T S_i

f solves a triangular Toeplitz system in the powers ρ^j, so that everything a chunk needs comes from matrix products
with them, and no eigenvector of Λ is ever formed:

    Y = K V + R S        S' = Λ^c S + X V        K_ij = c^T Λ^{i-j} b,  R_i = c^T Λ^{i+1},  X_j = Λ^{c-1-j} b

These operators are float64 whatever the inputs are: the feedback cancels most of what the diagonal part says. So is the
recurrence from chunk to chunk, where a rounded Λ^c would err alike every time. Inputs and states are rows, (…, c) and
(…, n): batches of products with tall matrices of few columns are several times slower.

Letters: b batch, k chunks, c chunk length (i rows, j columns), h heads, n states, m = n/2 modes, p head width.

Sources: the S4 kernel as a truncated generating function, Gu et al. 2022 (arXiv 2111.00396); overlap-add.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import DPLR, DSFSystemError, expand_groups, multiply_pairs
from .cost import Flops

__all__ = ["chunked_dplr_flops", "evaluate_chunked_dplr"]

DEFAULT_CHUNK = 32
"""Chunk length c: c + 2n + n²/c products a step and channel, and about 3·c²·n once a call and channel."""
MANY_STATES = 64
"""With more states than these a chunk is twice as long."""


class _Operators(NamedTuple):
    """What one chunk does, for each head, in float64: see the module."""

    kernel: Tensor
    """c^T Λ^j b, (h, c)."""
    read: Tensor
    """Rows c^T Λ^{i+1}, (h, c, n)."""
    write: Tensor
    """Rows Λ^{c-1-j} b, (h, c, n)."""
    feedback: Tensor
    """Rows g^T Λ^i, (h, c, n): f from the state in front of the chunk."""
    push: Tensor
    """Rows ρ^{c-1-j} * w, (h, c, n): what f does to the state behind the chunk, less."""
    powers: Tensor
    """ρ^0 … ρ^c as pairs, (h, c + 1, m, 2)."""


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
    length = system.length
    chunk = _chunk_for(length, state.shape[2], chunk_size)
    operators = _operators(system.transition, B_hn, C_hn, chunk)
    V_hbkpc = F.pad(system.drive(), (0, 0, 0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)).permute(3, 0, 1, 4, 2)
    starts_bkc = None
    if system.starts is not None:
        starts_bkc = F.pad(system.starts, (0, -length % chunk)).unflatten(1, (-1, chunk))
    before_hbkpn = _carry(operators, V_hbkpc, starts_bkc, state.permute(1, 0, 3, 2))
    raw_hbkpc = _inside(operators.kernel.to(state.dtype), V_hbkpc, starts_bkc)
    raw_hbkpc = raw_hbkpc + _from_state(operators.read.to(state.dtype), before_hbkpn, starts_bkc)
    lengths = system.lengths
    if lengths is None:
        lengths = torch.full(V_hbkpc.shape[1:2], length, device=V_hbkpc.device)
    last_hbpn = _last_state(operators, V_hbkpc, starts_bkc, before_hbkpn, lengths)
    return system.read(raw_hbkpc.permute(1, 2, 4, 0, 3).flatten(1, 2)[:, :length]), last_hbpn.permute(1, 0, 3, 2)


def _chunk_for(length: int, num_states: int, chunk_size: int | None = None) -> int:
    """Return the chunk length: a power of two, the kernel's own where none is given."""
    if chunk_size is None:
        chunk_size = DEFAULT_CHUNK if num_states <= MANY_STATES else 2 * DEFAULT_CHUNK
    chunk = 1
    while chunk < min(chunk_size, length):
        chunk *= 2
    return chunk


def chunked_dplr_flops(system: DSFSystem, length: int) -> Flops:
    """Return what `evaluate_chunked_dplr` costs for one sequence of `length` steps and a system of these sizes.

    The operators of a chunk, which all sequences of a batch share, count in full.
    """
    _, num_heads, n, p = system.state_shape
    c = _chunk_for(length, n)
    chunks = -(-length // c)
    operators = 4 * c * n + c * c + 2 * c * c * n + c * n * n
    per_head = operators + p * (chunks * (2 * c * n + c * c) + (chunks - 1) * n * n + 3 * c * n)
    # Triangular solve; sums of what comes from inside the chunk and from its state.
    return Flops(2 * num_heads * per_head, num_heads * (c * c * (n + 1) + p * chunks * (c + n)))


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
    turned_back = powers * powers.new_tensor([1.0, -1.0])
    gain = _turn(turned_back[:, :-1], transition.right)
    push, added = _turn(powers[:, :-1], transition.left), _turn(powers[:, :-1], B_hn)
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
        write=(added - _toeplitz(impulse.squeeze(-1)) @ push).flip(1),
        feedback=feedback,
        push=push.flip(1),
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
        V: inputs (h, b, k, p, c).
        starts: (b, k, c) or None.
        state: (h, b, p, n).

    Returns:
        The states before each chunk, (h, b, k, p, n).
    """
    dtype, cut_kbpn = state.dtype, None
    if starts is not None:
        V = V.masked_fill(_behind(starts)[:, :, None], 0.0)
        cut_kbpn = starts.any(-1).mT[..., None, None]
    added_hbkpn = (V.flatten(1, 3) @ operators.write.to(dtype)).double().unflatten(1, V.shape[1:4])
    before_khbpn = _Scan.apply(state.double(), added_hbkpn.movedim(2, 0), _transposed_power(operators), cut_kbpn)
    return before_khbpn.to(dtype).movedim(0, 2)


class _Scan(torch.autograd.Function):
    """The states before each chunk, S_{k+1} = S_k P + X_k, forgetting S_k where a document starts in chunk k.

    One product gives the gradient of P, where recording every step would add up a matrix P's size a chunk.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        state_hbpn: Tensor,
        added_khbpn: Tensor,
        power_hnn: Tensor,
        cut_kbpn: Tensor | None,
    ) -> Tensor:
        before = [state_hbpn]
        for index in range(added_khbpn.shape[0] - 1):
            kept = before[-1] if cut_kbpn is None else before[-1].masked_fill(cut_kbpn[index], 0.0)
            before.append(torch.baddbmm(added_khbpn[index].flatten(1, 2), kept.flatten(1, 2), power_hnn).view_as(kept))
        before_khbpn = torch.stack(before)
        ctx.save_for_backward(before_khbpn, power_hnn, cut_kbpn)
        return before_khbpn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_khbpn: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        before, power, cut = ctx.saved_tensors
        total = [grad_khbpn[-1]]
        for index in range(grad_khbpn.shape[0] - 2, -1, -1):
            through = (total[-1].flatten(1, 2) @ power.mT).view_as(total[-1])
            total.append(grad_khbpn[index] + (through if cut is None else through.masked_fill(cut[index], 0.0)))
        total_khbpn = torch.stack(total[::-1])
        later = torch.cat([total_khbpn[1:], torch.zeros_like(total_khbpn[:1])])
        kept = before if cut is None else before.masked_fill(cut[:, None], 0.0)
        rows, columns = (x.movedim(0, 1).flatten(1, 3) for x in (kept, later))
        return total_khbpn[0], later, rows.mT @ columns, None


def _transposed_power(operators: _Operators) -> Tensor:
    """Return the transpose of Λ^c, (h, n, n): the diagonal's power, less what the feedback pushes through it."""
    last = operators.powers[:, -1] * operators.powers.new_tensor([1.0, -1.0])
    n = operators.push.shape[-1]
    eye_mn = torch.eye(n, dtype=last.dtype, device=last.device).unflatten(0, (-1, 2))
    turned = multiply_pairs(last[..., None], eye_mn, dim=-2).flatten(-3, -2)
    return turned - operators.feedback.mT @ operators.push


def _behind(starts: Tensor) -> Tensor:
    """Return True where a document starts at a later place of the last dimension, (…, c)."""
    return F.pad(starts.flip(-1).cumsum(-1).flip(-1)[..., 1:] > 0, (0, 1))


def _from_state(read: Tensor, before: Tensor, starts: Tensor | None) -> Tensor:
    """Return what the states before the chunks (h, b, k, p, n) give to the outputs, R S: (h, b, k, p, c)."""
    given = (before.flatten(1, 3) @ read.mT).unflatten(1, before.shape[1:4])
    return given if starts is None else given.masked_fill((starts.cumsum(-1) > 0)[:, :, None], 0.0)


def _inside(kernel: Tensor, V: Tensor, starts: Tensor | None) -> Tensor:
    """Convolve within the chunks, and within the documents in them, K V: (h, b, k, p, c)."""
    if starts is None:
        return (V.flatten(1, 3) @ _toeplitz(kernel).mT).unflatten(1, V.shape[1:4])
    return _inside_documents(kernel, V, starts)


def _inside_documents(kernel: Tensor, V: Tensor, starts: Tensor) -> Tensor:
    """Convolve within documents by halving the chunk: from a first half to the second, a start is felt as two masks.

    What passes from step j of the first half to step i of the second meets no start iff none lies behind j in the first
    half and none up to i in the second.
    """
    chunk, half = kernel.shape[1], 1
    y = kernel[:, None, None, None, :1] * V
    while half < chunk:
        first, second = starts.unflatten(-1, (-1, 2, half))[:, :, None].unbind(-2)
        heard = V.unflatten(-1, (-1, 2, half))[..., 0, :].masked_fill(_behind(first), 0.0)
        if half == 1:  # A product of one column: its gradient would be one long dot product, summed up carelessly.
            passed = heard * kernel[:, 1, None, None, None, None, None]
        else:  # Column i and row j hold K_{half + i - j}.
            block = kernel[:, 1 : 2 * half].unfold(1, half, 1).flip(2).mT
            passed = (heard.flatten(1, 4) @ block).view_as(heard)
        passed = passed.masked_fill(second.cumsum(-1) > 0, 0.0)
        y = y + F.pad(passed, (half, 0)).flatten(-2)
        half *= 2
    return y


def _last_state(operators: _Operators, V: Tensor, starts: Tensor | None, before: Tensor, lengths: Tensor) -> Tensor:
    """Return the state at each row's last real token, r <= c steps into one of the chunks: (h, b, p, n).

    Inputs and feedback of the r steps are moved to the end of a chunk, where they meet the last rows of its operators.
    """
    chunk, chunks, dtype = V.shape[-1], V.shape[2], V.dtype
    index = (lengths // chunk).clamp(max=chunks - 1)
    rest = lengths - index * chunk
    rows = torch.arange(lengths.shape[0], device=V.device)
    V_hbpc, state_hbpn = V[:, rows, index], before[:, rows, index]
    # The step that comes to each place; negative where none does.
    source_bc = torch.arange(chunk, device=V.device) - (chunk - rest)[:, None]
    place_bc = source_bc.clamp(min=0)
    absent_bc = source_bc < 0
    if starts is not None:
        moved_bc = starts[rows, index].gather(1, place_bc) & ~absent_bc
        state_hbpn = state_hbpn.masked_fill(moved_bc.any(1)[:, None, None], 0.0)
        absent_bc = absent_bc | _behind(moved_bc)
    place = place_bc[:, None].expand_as(V_hbpc)
    V_hbpc = V_hbpc.gather(-1, place).masked_fill(absent_bc[:, None], 0.0)
    feedback_hbpc = (state_hbpn.flatten(1, 2) @ operators.feedback.mT.to(dtype)).view_as(V_hbpc).gather(-1, place)
    feedback_hbpc = feedback_hbpc.masked_fill((source_bc < 0)[:, None], 0.0)
    turned = multiply_pairs(operators.powers[:, rest, None].to(dtype), state_hbpn.unflatten(-1, (-1, 2))).flatten(-2)
    added = V_hbpc.flatten(1, 2) @ operators.write.to(dtype) - feedback_hbpc.flatten(1, 2) @ operators.push.to(dtype)
    return turned + added.view_as(turned)
