"""Chunked kernel for Λ diagonal over the n key features: weights by halving, so that no decay is ever divided by.

Within a chunk, W_ij = Σ_a c_ia b_ja λ_ia … λ_{j+1,a} for j <= i. Blocks of H steps are joined in pairs, H = 1, 2, 4, …:
a row i of the right block and a column j of the left one meet at the border between them,

    W_ij = (c_i * λ_i … λ_first)^T (b_j * λ_last … λ_{j+1})        last, first: the steps beside the border

so every factor is a product of the decays that W_ij holds, never a quotient: exact for any decay, 0 included, where
the factored form c exp(s), b exp(-s) overflows. From pair to pair both factors take in the decay of the neighbouring
block, whose log is the sum of that block's own: no sum is ever subtracted from another, so it needs no wider type. When
the chunk is one block, the factors, C~ and B~, are what carries states in and out:

    Y = W V + C~ S        S' = (λ_{c-1} … λ_0) * S + B~^T V

Letters: b batch, k chunks, c chunk length, h heads, n states, p head width.

Source: the chunked form of gated linear attention, Yang et al. 2023 (arXiv 2312.06635), here without its secondary
chunks.
"""

import math

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import LOG_ZERO
from .chunks import cut_chunks, head_chunks
from .cost import Flops

__all__ = ["evaluate_key_diagonal", "key_diagonal_flops"]

DEFAULT_CHUNK = 64
"""Chunk length c: the cost a step is c·(n + p) inside chunks, 2·n·p between them and 2·n·log c for the factors."""


def evaluate_key_diagonal(system: DSFSystem, state: Tensor, chunk_size: int = DEFAULT_CHUNK) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ diagonal over n chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        chunk_size: c; rounded up to a power of 2, and shortened to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    length, dtype = system.length, system.u.dtype
    chunk = _power_of_two(chunk_size if length >= chunk_size else length)
    transition = system.effective_transition()
    log_decay = transition.log_decay.to(dtype).clamp(min=LOG_ZERO)
    B, C, log_decay = (head_chunks(x, system, chunk) for x in (system.B, system.C, log_decay))
    sign = None if transition.sign is None else head_chunks(transition.sign.to(dtype), system, chunk, fill=1.0)
    V = cut_chunks(system.drive(), chunk).transpose(2, 3)
    weights, decayed_B, decayed_C, total = _join_blocks(B, C, log_decay, sign)
    before, last = _carry(decayed_B.mT @ V, total, state)
    raw = weights @ V + decayed_C @ before
    return system.read(raw.transpose(2, 3).flatten(1, 2)[:, :length]), last


def key_diagonal_flops(system: DSFSystem, length: int, chunk_size: int = DEFAULT_CHUNK) -> Flops:
    """Return what `evaluate_key_diagonal` costs for one sequence of `length` steps and a system of these sizes."""
    _, num_heads, n, p = system.state_shape
    c = _power_of_two(chunk_size if length >= chunk_size else length)
    heads = num_heads * math.ceil(length / c)
    # Blocks of H steps make c / 2H products of H·n·H each, over all H below c: half of n·c·(c - 1).
    matmul = n * c * (c - 1) + 2 * c * c * p + 4 * c * n * p
    levels = c.bit_length() - 1
    return Flops(matmul, 2 * n * c * levels + 5 * n * c + c * p + 2 * n * p) * heads


def _power_of_two(size: int) -> int:
    power = 1
    while power < size:
        power *= 2
    return power


def _join_blocks(B: Tensor, C: Tensor, log_decay: Tensor, sign: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join single steps to blocks of 2, 4, … until each chunk is one block.

    Args:
        B: input factors, (b, k, h, c, n).
        C: output factors, (b, k, h, c, n).
        log_decay: log |λ|, (b, k, h, c, n).
        sign: signs of λ, in the shape of `log_decay`; None for +1.

    Returns:
        Weights W (b, k, h, c, c); b_j λ_{c-1} … λ_{j+1} and c_i λ_i … λ_0, (b, k, h, c, n); λ_{c-1} … λ_0, (b, k,
        h, n, 1).
    """
    weights = (C * B).sum(-1)[..., None, None]
    log_decay, rows, columns = (x.unsqueeze(-2) for x in (log_decay, C, B))
    sign = None if sign is None else sign.unsqueeze(-2)
    decay = _decay(log_decay, sign)
    rows = rows * decay
    while rows.shape[-3] > 1:
        pairs = (rows.shape[-3] // 2, 2)
        rows, columns, decay, weights = (x.unflatten(-3, pairs) for x in (rows, columns, decay, weights))
        across = rows[..., 1, :, :] @ columns[..., 0, :, :].mT
        left, right = weights.unbind(-3)
        upper, lower = torch.cat([left, torch.zeros_like(left)], -1), torch.cat([across, right], -1)
        weights = torch.cat([upper, lower], -2)
        one = torch.ones_like(decay[..., 0, :, :])
        rows = (rows * torch.stack([one, decay[..., 0, :, :]], -3)).flatten(-3, -2)
        columns = (columns * torch.stack([decay[..., 1, :, :], one], -3)).flatten(-3, -2)
        log_decay = log_decay.unflatten(-3, pairs).sum(-3)
        sign = None if sign is None else sign.unflatten(-3, pairs).prod(-3)
        decay = _decay(log_decay, sign)
    return weights.squeeze(-3), columns.squeeze(-3), rows.squeeze(-3), decay.squeeze(-3).mT


def _decay(log_decay: Tensor, sign: Tensor | None) -> Tensor:
    decay = log_decay.exp()
    return decay if sign is None else decay * sign


def _carry(local: Tensor, total: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run S_k = total_k * S_{k-1} + local_k over the chunks.

    Args:
        local: what each chunk adds, (b, k, h, n, p).
        total: each chunk's whole decay, (b, k, h, n, 1).
        state: (b, h, n, p).

    Returns:
        The states before each chunk, in the shape of `local`, and the last one (b, h, n, p).
    """
    before = []
    for added_k, decay_k in zip(local.unbind(1), total.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(added_k, state, decay_k)
    return torch.stack(before, dim=1), state
