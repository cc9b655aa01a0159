"""Chunked kernel for the (gated) delta rule: what a chunk erases comes from one triangular solve.

The step S_i = α_i (I - β_i k_i k_i^T) S_{i-1} + b_i v_i^T writes k_i x_i^T with x_i = -α_i β_i S_{i-1}^T k_i, and b_i
v_i^T, into a state that only decays. Within a chunk that starts from the state S, with g_i = α_i … α_0 and L_ij = α_i …
α_{j+1} for j <= i, the erasures solve a unit lower triangular system,

    (I + T) X = -β * (tril(K B^T * L, -1) V + g * K S)        T = β * tril(K K^T * L, -1)

and outputs and state follow as with scalar decays, here with S' for the state behind the chunk and g' = g_{c-1}:

    Y = (C K^T * L) X + (C B^T * L) V + g * C S        S' = g' S + (K * g'/g)^T X + (B * g'/g)^T V

Where B is the key itself, as in the delta rule, x_i takes v_i in: (I + T) X = V - β * g * K S, and the terms in B go.

(I + T)^{-1} is found by substitution and applied in float64: with keys that are nearly parallel an inverse by powers of
T overflows, and rounding of T grows with the c erasures that follow. Running sums of log α are float64 too.

Letters: b batch, k chunks, c chunk length, h heads, n states, p head width.

Sources: the WY form of products of I - β k k^T over chunks, Yang et al. 2024 (arXiv 2406.06484), with decays as in Yang
et al. 2024 (arXiv 2412.06464).
"""

import math

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import LOG_ZERO
from .chunks import cut_chunks, decay_products, head_chunks
from .cost import Flops

__all__ = ["delta_rule_flops", "evaluate_delta_rule"]

LONGEST_CHUNK = 32
"""Longest chunk: where nothing fades, erasing is a difference of all that was written, and rounding grows with c."""


def evaluate_delta_rule(system: DSFSystem, state: Tensor, chunk_size: int = LONGEST_CHUNK) -> tuple[Tensor, Tensor]:
    """Evaluate a system with the delta rule's Λ chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        chunk_size: c; shortened to `LONGEST_CHUNK`. A shorter sequence is filled up: products of one shape round alike,
            whatever stands behind a token.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    chunk, dtype = min(chunk_size, LONGEST_CHUNK), system.u.dtype
    transition = system.effective_transition()
    log_decay = head_chunks(transition.log_decay.double().clamp(min=LOG_ZERO)[..., None], system, chunk)
    beta = head_chunks(transition.beta.to(dtype)[..., None], system, chunk)
    key, C = (head_chunks(x.to(dtype), system, chunk) for x in (transition.key, system.C))
    V = cut_chunks(system.drive(), chunk).transpose(2, 3)
    between, from_start, to_end = decay_products(log_decay.squeeze(-1), None, torch.float64)
    solution = _inverse(_erasure(key.double(), key.double(), beta, between))
    between, from_start, to_end = between.to(dtype), from_start[..., None].to(dtype), to_end[..., None].to(dtype)
    if system.B is transition.key:
        inputs, written, passed = V, None, None
    else:
        B = head_chunks(system.B, system, chunk)
        inputs = -_erasure(key, B, beta, between) @ V
        written, passed = (B * to_end).mT @ V, (C @ B.mT * between) @ V
    share, ended, total = beta * from_start, (key * to_end).mT, from_start[..., -1:, :]
    before, X, last = _carry(key, solution, inputs, share, ended, total, written, state)
    raw = (C @ key.mT * between) @ X + (from_start * C) @ before
    raw = raw if passed is None else raw + passed
    return system.read(raw.transpose(2, 3).flatten(1, 2)[:, : system.length]), last


def delta_rule_flops(system: DSFSystem, length: int, chunk_size: int = LONGEST_CHUNK) -> Flops:
    """Return what `evaluate_delta_rule` costs for one sequence of `length` steps and a system of these sizes."""
    _, num_heads, n, p = system.state_shape
    c = min(chunk_size, LONGEST_CHUNK)
    own = system.B is not system.transition.key
    matmul = (2 + own) * (2 * c * c * (n + p)) + (3 + own) * (2 * c * n * p)
    # The triangular solve against the unit matrix, the decays and what they multiply, the state's own.
    elementwise = c * c * c + (4 + own) * c * c + 3 * c * n + (3 + own) * c * p + (2 + own) * n * p
    return Flops(matmul, elementwise) * (num_heads * math.ceil(length / c))


def _erasure(key: Tensor, written: Tensor, beta: Tensor, between: Tensor) -> Tensor:
    """Return β * tril(K E^T * L, -1): how much of each earlier write along E every step erases, (b, k, h, c, c)."""
    return (beta * (key @ written.mT) * between).tril(-1)


def _inverse(triangle: Tensor) -> Tensor:
    """Return (I + T)^{-1} for a strictly lower triangular T (…, c, c)."""
    eye = torch.eye(triangle.shape[-1], dtype=triangle.dtype, device=triangle.device)
    return torch.linalg.solve_triangular(triangle, eye, upper=False, unitriangular=True)


def _carry(
    key: Tensor,
    solution: Tensor,
    inputs: Tensor,
    share: Tensor,
    ended: Tensor,
    total: Tensor,
    written: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run X_k = (I + T_k)^{-1} (inputs_k - share_k * K_k S_{k-1}), S_k = total_k S_{k-1} + ended_k X_k + written_k.

    Args:
        key: K, (b, k, h, c, n).
        solution: (I + T)^{-1}, (b, k, h, c, c), in float64.
        inputs: what the reads of S are subtracted from, (b, k, h, c, p).
        share: β * g, (b, k, h, c, 1).
        ended: keys decayed to the end of their chunk, (b, k, h, n, c).
        total: each chunk's whole decay, (b, k, h, 1, 1).
        written: what a chunk adds beside X, (b, k, h, n, p); None for nothing.
        state: (b, h, n, p).

    Returns:
        The states before each chunk (b, k, h, n, p), X (b, k, h, c, p), and the last state (b, h, n, p).
    """
    chunks = [x.unbind(1) for x in (key, solution, inputs, share, ended, total)]
    added = (None,) * key.shape[1] if written is None else written.unbind(1)
    before, values = [], []
    for key_k, solution_k, inputs_k, share_k, ended_k, total_k, added_k in zip(*chunks, added, strict=True):
        before.append(state)
        right = torch.addcmul(inputs_k, share_k, key_k @ state, value=-1)
        values.append((solution_k @ right.double()).to(state.dtype))
        state = state * total_k + ended_k @ values[-1]
        state = state if added_k is None else state + added_k
    return torch.stack(before, dim=1), torch.stack(values, dim=1), state
