"""Chunked kernel for the (gated) delta rule: what a chunk erases comes from one triangular solve.

The step S_i = α_i (I - β_i k_i k_i^T) S_{i-1} + b_i v_i^T reads w_i = α_i β_i S_{i-1}^T k_i, and writes b_i v_i^T -
k_i w_i^T into a state that only decays. Within a chunk that starts from the state S, with g_i = α_i … α_0 and L_ij =
α_i … α_{j+1} for j <= i, the reads solve the unit lower triangular system

    (I + β * tril(K K^T * L, -1)) W = β * (tril(K B^T * L, -1) V + g * K S)

and the writes E = [B; K] with values X = [V; -W] = X_0 - X_1 S give outputs and state as scalar decays do:

    Y = (C E^T * L) X + g * (C S)        S' = g_{c-1} S + (E * (g_{c-1} / g))^T X

Where B is the key itself, as in the delta rule, E = K, and one solve gives X = V - W. Substitution is exact for keys
that are nearly parallel; an inverse by powers of the triangle is not. Running sums of log α are float64, one scalar a
step and head.

Letters: b batch, k chunks, c chunk length, e writes of a chunk (c or 2·c), h heads, n states, p head width.

Sources: the WY form of products of I - β k k^T over chunks, Yang et al. 2024 (arXiv 2406.06484), with decays as in Yang
et al. 2024 (arXiv 2412.06464).
"""

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import LOG_ZERO
from .chunks import cut_chunks, decay_products, head_chunks

__all__ = ["evaluate_delta_rule"]

LONGEST_CHUNK = 32
"""Longest chunk: where nothing fades, S' is what little is left of S after c erasures, and rounding grows with c."""


def evaluate_delta_rule(system: DSFSystem, state: Tensor, chunk_size: int = LONGEST_CHUNK) -> tuple[Tensor, Tensor]:
    """Evaluate a system with the delta rule's Λ chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        chunk_size: c; shortened to `LONGEST_CHUNK`, and to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    chunk, dtype = min(chunk_size, LONGEST_CHUNK, system.length), system.u.dtype
    transition = system.effective_transition()
    scalars = (transition.log_decay.double().clamp(min=LOG_ZERO), transition.beta.to(dtype))
    log_decay, beta = (head_chunks(x[..., None], system, chunk) for x in scalars)
    key, C = (head_chunks(x.to(dtype), system, chunk) for x in (transition.key, system.C))
    V = cut_chunks(system.drive(), chunk).transpose(2, 3)
    between, from_start, to_end = decay_products(log_decay.squeeze(-1), None, dtype)
    from_start = from_start[..., None]
    if system.B is transition.key:
        writes, values = key, _solve(_erased(key, key, beta, between), V, beta * from_start * key)
    else:
        B = head_chunks(system.B, system, chunk)
        writes, values = _separate_writes(key, B, V, beta, between, from_start)
        between, to_end = (torch.cat([x, x], dim=-1) for x in (between, to_end))
    widths = [V.shape[-1], key.shape[-1]]
    added, removed = ((writes * to_end[..., None]).mT @ values).split(widths, dim=-1)
    kept = from_start[..., -1:, :] * torch.eye(key.shape[-1], dtype=dtype, device=key.device)
    before, last = _carry(kept - removed, added, state)
    read, unread = ((C @ writes.mT * between) @ values).split(widths, dim=-1)
    raw = read + (from_start * C - unread) @ before
    return system.read(raw.transpose(2, 3).flatten(1, 2)[:, : system.length]), last


def _erased(key: Tensor, written: Tensor, beta: Tensor, between: Tensor) -> Tensor:
    """Return β * tril(K E^T * L, -1): how much of each earlier write every step erases, (b, k, h, c, c)."""
    return (beta * (key @ written.mT) * between).tril(-1)


def _solve(triangle: Tensor, *right: Tensor) -> Tensor:
    """Return (I + T)^{-1} R for a strictly lower triangular T (…, c, c) and R (…, c, ·), given in pieces."""
    return torch.linalg.solve_triangular(triangle, torch.cat(right, dim=-1), upper=False, unitriangular=True)


def _separate_writes(
    key: Tensor, B: Tensor, V: Tensor, beta: Tensor, between: Tensor, from_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the writes E = [B; K] (…, 2·c, n), and their values [X_0 X_1] (…, 2·c, p + n), where B is not the key."""
    found = _erased(key, B, beta, between) @ V
    reads = _solve(_erased(key, key, beta, between), -found, beta * from_start * key)
    inputs = torch.cat([V, torch.zeros_like(B)], dim=-1)
    return torch.cat([B, key], dim=-2), torch.cat([inputs, reads], dim=-2)


def _carry(kept: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run S_k = M_k S_{k-1} + N_k over the chunks.

    Args:
        kept: M, each chunk's whole Λ, (b, k, h, n, n).
        added: N, what each chunk adds, (b, k, h, n, p).
        state: (b, h, n, p).

    Returns:
        The states before each chunk, in the shape of `added`, and the last one (b, h, n, p).
    """
    before = []
    for kept_k, added_k in zip(kept.unbind(1), added.unbind(1), strict=True):
        before.append(state)
        state = added_k + kept_k @ state
    return torch.stack(before, dim=1), state
