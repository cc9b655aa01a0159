"""What chunked kernels share: time cut into chunks, and the products of scalar decays within one.

Letters: b batch, t time, h heads, k chunks, c chunk length.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import expand_groups

__all__ = ["cut_chunks", "decay_products", "head_chunks"]


def cut_chunks(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """Cut time into chunks, the last one filled up (log λ = 0, no input): (b, t, …) -> (b, k, c, …)."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing), value=fill)
    return x.unflatten(1, (-1, chunk))


def head_chunks(x: Tensor, system: DSFSystem, chunk: int, fill: float = 0.0) -> Tensor:
    """Give every row, step and head its own factor, and cut time into chunks: (b|1, t|1, g, n) -> (b, k, h, c, n)."""
    by_step = x.expand(system.u.shape[0], system.length, -1, -1)
    return cut_chunks(expand_groups(by_step, system.num_heads), chunk, fill).transpose(2, 3)


def decay_products(log_decay: Tensor, sign: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the products of λ between the steps of a chunk, from its start, and to its end.

    What is 1 by definition, L_ii and the decay behind the last step, is kept from being a difference s_i - s_i: its
    gradient would be rounding, and drown that of a λ near 0.

    Args:
        log_decay: log |λ|, (…, c), in float64.
        sign: signs of λ, (…, c), or None.
        dtype: dtype of the products.

    Returns:
        λ_i … λ_{j+1} in row i and column j <= i, 0 above (…, c, c); λ_i … λ_0 (…, c); λ_{c-1} … λ_{j+1} (…, c).
    """
    size = log_decay.shape[-1]
    running = log_decay.cumsum(-1)
    remaining = F.pad(log_decay[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    below = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    rest = torch.full((size, size), -math.inf, dtype=dtype, device=log_decay.device).triu(1)
    # A sum with -s, not a difference: the backward pass then negates (…, c) instead of (…, c, c).
    between = torch.where(below, (running[..., :, None] + (-running)[..., None, :]).to(dtype), rest).exp()
    from_start, to_end = running.exp().to(dtype), remaining.exp().to(dtype)
    if sign is None:
        return between, from_start, to_end
    sign = sign.cumprod(-1)
    return between * sign[..., :, None] * sign[..., None, :], from_start * sign, to_end * sign * sign[..., -1:]
