"""Chunked kernel for Λ = 1 and for one scalar λ per head: products inside chunks, a short recurrence between them.

Within a chunk of c steps that starts from the state S, with s_i the running sum of log λ, and L_ij = exp(s_i - s_j)
for j <= i:

    Y = ((C B^T) * L) V + exp(s) * (C S)        S' = exp(s_c) S + B^T (exp(s_c - s) * V)

Running sums are float64, one scalar a step and head: float32 differences of them lose 1e-3 where λ is reset to 0.

Letters: b batch, k chunks, c chunk length (i rows, j columns), h heads, g groups, r = h/g heads a group, n states, p
head width.

Source: the block decomposition of semiseparable matrices, Dao & Gu 2024 (arXiv 2405.21060), section 6.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import LOG_ZERO, DSFSystem, Identity, ScalarDecay, causal_mask

__all__ = ["DEFAULT_CHUNK", "evaluate_chunked"]

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
    drive, length = system.drive(), system.length
    chunk = min(chunk_size, length)
    transition = system.effective_transition()
    B, C = (_chunks(x if x.shape[1] == length else x.expand(-1, length, -1, -1), chunk) for x in (system.B, system.C))
    values = _chunks(drive, chunk)
    if isinstance(transition, Identity):
        raw, state = _scan_identity(values, B, C, state)
    else:
        raw, state = _scan_scalar(values, B, C, *_log_decays(transition, drive, chunk), state)
    return system.read(raw.flatten(1, 2)[:, :length]), state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut time into chunks, the last one filled up with zeros (λ = 1, no input): (b, t, …) -> (b, k, c, …)."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unflatten(1, (-1, chunk))


def _log_decays(transition: ScalarDecay, drive: Tensor, chunk: int) -> tuple[Tensor, Tensor | None]:
    """Return running log-decays (float64) and running signs inside each chunk: (b, k, h, c)."""
    shape = (transition.log_decay.shape[0], drive.shape[1], drive.shape[2])
    log_decay = transition.log_decay.double().clamp(min=LOG_ZERO).expand(shape)
    running = _chunks(log_decay, chunk).transpose(2, 3).cumsum(-1)
    if transition.sign is None:
        return running, None
    missing = -drive.shape[1] % chunk
    sign = F.pad(transition.sign.to(drive.dtype).expand(shape), (0, 0, 0, missing), value=1.0)
    return running, sign.unflatten(1, (-1, chunk)).transpose(2, 3).cumprod(-1)


def _scan_identity(V: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Sum up: Y = tril(C B^T) V + C S, S' = S + B^T V for all chunks; V (b, k, c, h, p) -> Y of its shape."""
    weights = _group_scores(B, C).tril()
    local = _outer_states(B, V)
    before, last = _carry(local, None, state)
    return _apply_weights(weights, V) + _read_states(C, before), last


def _scan_scalar(
    V: Tensor, B: Tensor, C: Tensor, running: Tensor, sign: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate all chunks at once with scalar decays; V (b, k, c, h, p) -> Y of its shape, and the last state."""
    dtype = V.dtype
    mask = causal_mask(running.shape[-1], running.device)
    between = (running[..., :, None] - running[..., None, :]).to(dtype).masked_fill(~mask, -math.inf).exp()
    from_start = running.to(dtype).exp()
    to_end = (running[..., -1:] - running).to(dtype).exp()
    total = from_start[..., -1]
    if sign is not None:
        between = between * sign[..., :, None] * sign[..., None, :]
        from_start, to_end, total = from_start * sign, to_end * sign * sign[..., -1:], total * sign[..., -1]
    heads, groups = V.shape[3], B.shape[3]
    weights = _group_scores(B, C).repeat_interleave(heads // groups, dim=2) if groups < heads else _group_scores(B, C)
    local = _outer_states(B, V * to_end.transpose(2, 3)[..., None])
    before, last = _carry(local, total, state)
    inter = _read_states(C, before) * from_start.transpose(2, 3)[..., None]
    return _apply_weights(weights * between, V) + inter, last


def _group_scores(B: Tensor, C: Tensor) -> Tensor:
    """Return c_i^T b_j in every chunk: (b, k, c, g, n) -> (b, k, g, c, c)."""
    return C.transpose(2, 3) @ B.permute(0, 1, 3, 4, 2)


def _apply_weights(weights: Tensor, V: Tensor) -> Tensor:
    """Return Σ_j w_ij v_j per head: (b, k, h|g, c, c), (b, k, c, h, p) -> (b, k, c, h, p)."""
    return (weights @ V.transpose(2, 3)).transpose(2, 3)


def _outer_states(B: Tensor, V: Tensor) -> Tensor:
    """Return Σ_j b_j v_j^T of each chunk, a product a group: (b, k, c, g, n), (b, k, c, h, p) -> (b, k, g, n, r·p)."""
    return B.permute(0, 1, 3, 4, 2) @ V.unflatten(3, (B.shape[3], -1)).flatten(4).transpose(2, 3)


def _read_states(C: Tensor, states: Tensor) -> Tensor:
    """Return S^T c_i for the states (b, k, h, n, p) that chunks start from: (b, k, c, h, p)."""
    groups = C.shape[3]
    grouped = states.unflatten(2, (groups, -1)).transpose(3, 4).flatten(4)
    read = C.transpose(2, 3) @ grouped
    return read.unflatten(4, (-1, states.shape[-1])).permute(0, 1, 3, 2, 4, 5).flatten(3, 4)


def _carry(local: Tensor, total: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run S_k = total_k S_{k-1} + local_k over the chunks; return the states before each chunk, and the last one.

    Args:
        local: (b, k, g, n, r·p) what each chunk adds.
        total: (b, k, h) each chunk's whole decay; None for 1.
        state: (b, h, n, p).
    """
    heads, width = state.shape[1], state.shape[-1]
    per_head = local.unflatten(4, (-1, width)).permute(0, 1, 2, 4, 3, 5).flatten(2, 3)
    decays = (
        [None] * per_head.shape[1] if total is None else total[..., None, None].expand(-1, -1, heads, 1, 1).unbind(1)
    )
    before = []
    for added, decay in zip(per_head.unbind(1), decays, strict=True):
        before.append(state)
        state = added + state if decay is None else torch.addcmul(added, state, decay)
    return torch.stack(before, dim=1), state
