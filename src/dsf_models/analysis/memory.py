"""What Φ says of a layer: attention-like weights for every architecture, and how far back they reach.

    y_i = Σ_j Φ_ij u_j

Letters: b batch, h heads, t time, p head width, d inner width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require

__all__ = ["EffectiveMemory", "RowSums", "effective_memory", "magnitude", "row_sums", "token_weights"]


def magnitude(phi: Tensor) -> Tensor:
    """Return |Φ_ij| by head, the Frobenius norm over channels where they do not share Φ.

    Args:
        phi: (b, h, t, t), (b, h, p, t, t) or (b, 1, d, d, t, t), as `DSFSystem.transfer_matrix` returns it.

    Returns:
        (b, h, t, t).

    Raises:
        ValueError: phi has another number of dimensions.
    """
    require(phi.ndim in (4, 5, 6), "phi.ndim", phi.ndim, "give Φ as transfer_matrix returns it: 4, 5 or 6 dimensions.")
    return phi.abs() if phi.ndim == 4 else phi.square().sum(tuple(range(2, phi.ndim - 2))).sqrt()


def token_weights(phi: Tensor, position: int) -> Tensor:
    """Return the share of each token in one output, |Φ_ij| / Σ_j |Φ_ij|: a row of an attention-like map.

    Args:
        phi: Φ in any of its shapes; see `magnitude`.
        position: i; negative counts from the end.

    Returns:
        (b, h, t); NaN where the row is zero, as at a pad.
    """
    row = magnitude(phi)[..., position, :]
    return row / row.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class EffectiveMemory:
    """How far from its own position each output looks; NaN where a row of Φ is zero, as at a pad."""

    lag: Tensor
    """(b, h, t): the least L such that |i - j| <= L holds the given share of Σ_j |Φ_ij|."""
    mean_lag: Tensor
    """(b, h, t): Σ_j |Φ_ij| |i - j| / Σ_j |Φ_ij|."""
    share: float
    """The share."""


def effective_memory(phi: Tensor, share: float = 0.9) -> EffectiveMemory:
    """Return how far Φ reaches from each position, in positions.

    Args:
        phi: Φ in any of its shapes; see `magnitude`. Give it in the order of `DSFSystem.transfer_matrix`, in which no
            pad stands between two tokens.
        share: of the weights, in (0, 1]; what is below 1e-12 of a row counts as rounding.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    require(0 < share <= 1, "share", share, "give the share of Σ_j |Φ_ij| to reach, above 0 and at most 1.")
    weights = magnitude(phi).double()
    length = weights.shape[-1]
    time = torch.arange(length, device=weights.device)
    total = weights.sum(-1)
    empty = total == 0
    distance = (time[:, None] - time).abs()
    mean_lag = (weights * distance).sum(-1) / total.masked_fill(empty, math.nan)
    reached = _by_lag(weights).cumsum(-1)
    # A sum in another order may miss the whole by rounding.
    enough = reached >= share * total[..., None] * (1 - 1e-12)
    lag = enough.double().argmax(-1).double().masked_fill(empty, math.nan)
    return EffectiveMemory(lag, mean_lag, share)


def _by_lag(weights: Tensor) -> Tensor:
    """Return the weight at each distance L = 0 … t - 1 from the diagonal, both sides together: (b, h, t, t)."""
    length = weights.shape[-1]
    time = torch.arange(length, device=weights.device)
    back, ahead = time[:, None] - time, time[:, None] + time
    behind = weights.gather(-1, back.clamp(min=0).expand_as(weights)).masked_fill(back < 0, 0.0)
    before = weights.gather(-1, ahead.clamp(max=length - 1).expand_as(weights))
    before = before.masked_fill((ahead >= length) | (time == 0), 0.0)
    return behind + before


@dataclass(frozen=True, eq=False)
class RowSums:
    """What the weights of each output add up to."""

    absolute: Tensor
    """(b, h, t): Σ_j |Φ_ij|, as in `magnitude`."""
    signed: Tensor | None
    """(b, h, t): Σ_j Φ_ij, which is 1 for normalised attention; None where the channels of a head do not share Φ."""


def row_sums(phi: Tensor) -> RowSums:
    """Return the sums of the rows of Φ; see `magnitude` for its shapes."""
    return RowSums(magnitude(phi).sum(-1), phi.sum(-1) if phi.ndim == 4 else None)
