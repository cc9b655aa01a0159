"""Chunked kernel for Λ = 1 and for one scalar λ per head: products inside chunks, a short recurrence between them.

Within a chunk of c steps that starts from the state S, with s_i the running sum of log λ, and L_ij = exp(s_i - s_j)
for j <= i:

    Y = ((C B^T) * L) V + exp(s) * (C S)        S' = exp(s_c) S + B^T (exp(s_c - s) * V)

Running sums are float64, one scalar a step and head: float32 differences of them lose 1e-3 where λ is reset to 0.

Letters: b batch, k chunks, c chunk length (i rows, j columns), h heads, g groups of r heads each that share B and C, n
states, p head width, x = r·p. B and C make one product a group; V, decays and states are viewed as (…, g, r, …).

Source: the block decomposition of semiseparable matrices, Dao & Gu 2024 (arXiv 2405.21060).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import LOG_ZERO, Identity, ScalarDecay, expand_groups
from .chunks import cut_chunks, decay_products
from .cost import Flops

__all__ = ["DEFAULT_CHUNK", "chunked_flops", "evaluate_chunked"]

DEFAULT_CHUNK = 64
"""Chunk length c: the cost a step is c·(n + p) inside chunks plus 2·n·p between them."""


def evaluate_chunked(system: DSFSystem, state: Tensor, chunk_size: int = DEFAULT_CHUNK) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ = 1 or scalar Λ chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        chunk_size: c; shortened to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    length = system.length
    chunk = min(chunk_size, length)
    B, C = (cut_chunks(factor, chunk) for factor in _factors(system))
    groups = B.shape[3]
    V = cut_chunks(system.drive(), chunk).unflatten(3, (groups, -1))
    state = state.unflatten(1, (groups, -1)).transpose(2, 3)
    transition = system.effective_transition()
    if isinstance(transition, Identity):
        raw, state = _scan_identity(V, B, C, state)
    else:
        raw, state = _scan_scalar(V, B, C, *_chunk_decays(transition, system, chunk, groups), state)
    return system.read(raw.flatten(3, 4).flatten(1, 2)[:, :length]), state.transpose(2, 3).flatten(1, 2)


def chunked_flops(system: DSFSystem, length: int, chunk_size: int = DEFAULT_CHUNK) -> Flops:
    """Return what `evaluate_chunked` costs for one sequence of `length` steps and a system of these sizes.

    C B^T is made once a group and the rest once a head; squares are counted whole, as they are computed.
    """
    _, num_heads, n, p = system.state_shape
    groups = system.B.shape[2] if system.B.shape[2] == system.C.shape[2] else num_heads
    chunk = min(chunk_size, length)
    chunks = math.ceil(length / chunk)
    square, state = chunk * chunk, num_heads * n * p
    matmul = 2 * (groups * square * n + num_heads * square * p + 2 * chunk * state)
    if isinstance(system.transition, Identity):
        return Flops(matmul, groups * square + state + num_heads * chunk * p) * chunks
    # exp(s_i - s_j) and its product with C B^T; the decays of V and of C S; the state's own decay.
    return Flops(matmul, 3 * num_heads * square + 3 * num_heads * chunk * p + 2 * state) * chunks


def _factors(system: DSFSystem) -> tuple[Tensor, Tensor]:
    """Return B and C at every step, with equally many groups: (b|1, t, g, n)."""
    B, C = (x if x.shape[1] == system.length else x.expand(-1, system.length, -1, -1) for x in (system.B, system.C))
    if B.shape[2] == C.shape[2]:
        return B, C
    return expand_groups(B, system.num_heads), expand_groups(C, system.num_heads)


def _chunk_decays(transition: ScalarDecay, system: DSFSystem, chunk: int, groups: int) -> tuple[Tensor, Tensor | None]:
    """Return log λ (float64) and its sign at the steps of each chunk: (b|1, k, g, r, c)."""
    shape = (transition.log_decay.shape[0], system.length, system.num_heads)

    def by_group(x: Tensor, fill: float) -> Tensor:
        return cut_chunks(x.expand(shape), chunk, fill).transpose(2, 3).unflatten(2, (groups, -1))

    sign = transition.sign
    log_decay = by_group(transition.log_decay.double().clamp(min=LOG_ZERO), 0.0)
    return log_decay, None if sign is None else by_group(sign.to(system.u.dtype), 1.0)


def _scan_identity(V: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Sum up: Y = tril(C B^T) V + C S, S' = S + B^T V for all chunks; V (b, k, c, g, r, p) -> Y of its shape."""
    B_bkgnc, C_bkgcn = B.permute(0, 1, 3, 4, 2), C.transpose(2, 3)
    V_bkgcx = V.flatten(4).transpose(2, 3)
    before, last = _carry(B_bkgnc @ V_bkgcx, None, state)
    Y_bkgcx = (C_bkgcn @ B_bkgnc).tril() @ V_bkgcx + C_bkgcn @ before
    return Y_bkgcx.transpose(2, 3).unflatten(4, V.shape[4:]), last


def _scan_scalar(
    V: Tensor, B: Tensor, C: Tensor, log_decay: Tensor, sign: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate all chunks at once with scalar decays; V (b, k, c, g, r, p) -> Y of its shape, and the last state."""
    B_bkgnc, C_bkgcn = B.permute(0, 1, 3, 4, 2), C.transpose(2, 3)
    between, from_start, to_end = decay_products(log_decay, sign, V.dtype)
    decayed = V * to_end.movedim(-1, 2)[..., None]
    before, last = _carry(B_bkgnc @ decayed.flatten(4).transpose(2, 3), from_start[..., -1], state)
    weights = (C_bkgcn @ B_bkgnc)[:, :, :, None] * between
    intra = (weights @ V.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)
    inter = (C_bkgcn @ before).transpose(2, 3).unflatten(4, V.shape[4:])
    return torch.addcmul(intra, inter, from_start.movedim(-1, 2)[..., None]), last


def _carry(local: Tensor, total: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run S_k = total_k S_{k-1} + local_k over the chunks.

    Args:
        local: (b, k, g, n, r·p) what each chunk adds.
        total: (b|1, k, g, r) each chunk's whole decay; None for 1.
        state: (b, g, n, r, p).

    Returns:
        The states before each chunk, in the shape of `local`, and the last one (b, g, n, r, p).
    """
    added = local.unflatten(4, state.shape[3:]).unbind(1)
    decays: Sequence[Tensor | None] = [None] * len(added) if total is None else total[:, :, :, None, :, None].unbind(1)
    before = []
    for added_k, decay_k in zip(added, decays, strict=True):
        before.append(state)
        state = added_k + state if decay_k is None else torch.addcmul(added_k, state, decay_k)
    return torch.stack(before, dim=1).flatten(4), state
