"""From continuous time x' = a x + b u to steps of Δ: the constant Λ, and what the step makes of b.

    zero-order hold ("zoh")  λ = exp(Δa)                    b̄ = (λ - 1) / a · b
    "bilinear"               λ = (1 + Δa/2) / (1 - Δa/2)    b̄ = Δ / (1 - Δa/2) · b

Real numbers throughout: a = re + i im, or re alone.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .rotation import Rotation

__all__ = ["Discretization", "Discretized", "discretize"]

Discretization = Literal["zoh", "bilinear"]


class Discretized(NamedTuple):
    """Λ of one step, and the factor b̄ / b of its input."""

    transition: Rotation
    gain_re: Tensor
    """(h|1, m)"""
    gain_im: Tensor | None
    """(h|1, m); None where a is real."""


def discretize(method: Discretization, delta: Tensor, re: Tensor, im: Tensor | None = None) -> Discretized:
    """Discretise diagonal dynamics, in float64: (λ - 1) / a is smooth at a = 0, but its gradient cancels there.

    Args:
        method: "zoh" or "bilinear".
        delta: Δ > 0, (h|1, m|1).
        re: Re a < 0, (h|1, m).
        im: Im a, (h|1, m); None where a is real.

    Returns:
        `Discretized`: a `Rotation` in float64, and the input's factor b̄ / b in the dtype of `re`.
    """
    method = _hold if method == "zoh" else _bilinear
    transition, *gains = method(delta.double(), re.double(), None if im is None else im.double())
    return Discretized(transition, *(None if gain is None else gain.to(re.dtype) for gain in gains))


def _hold(delta: Tensor, re: Tensor, im: Tensor | None) -> Discretized:
    z_re = delta * re
    if im is None:
        return Discretized(Rotation(z_re), torch.expm1(z_re) / re, None)
    z_im = delta * im
    # λ - 1 without the cancellation: exp(x) cos y - 1 = expm1(x) cos y - 2 sin²(y / 2).
    grown_re = torch.expm1(z_re) * z_im.cos() - 2 * (z_im / 2).sin().square()
    grown_im = z_re.exp() * z_im.sin()
    return Discretized(Rotation(z_re, z_im), *_divide(grown_re, grown_im, re, im))


def _bilinear(delta: Tensor, re: Tensor, im: Tensor | None) -> Discretized:
    w_re = delta * re / 2
    if im is None:
        # |1 + w| = 1 + max(w, -2 - w), so that log1p keeps what is near 1.
        size = _log1p(torch.maximum(w_re, -2 - w_re)) - torch.log1p(-w_re)
        return Discretized(Rotation(size, sign=torch.where(w_re < -1, -1.0, 1.0)), delta / (1 - w_re), None)
    w_im = delta * im / 2
    # |1 + w|² = |1 - w|² + 4 Re w, and arg λ = arg (1 + w)(1 - w̄).
    below = (1 - w_re).square() + w_im.square()
    radius = _log1p(4 * w_re / below) / 2
    angle = torch.atan2(2 * w_im, 1 - w_re.square() - w_im.square())
    one = torch.ones_like(w_re)
    return Discretized(Rotation(radius, angle), *_divide(delta * one, 0 * one, 1 - w_re, -w_im))


def _log1p(x: Tensor) -> Tensor:
    """Return log(1 + x), finite also where λ is 0 (x = -1)."""
    return torch.log1p(x.clamp(min=-1 + torch.finfo(x.dtype).eps))


def _divide(a_re: Tensor, a_im: Tensor, b_re: Tensor, b_im: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of a / b."""
    size = b_re.square() + b_im.square()
    return (a_re * b_re + a_im * b_im) / size, (a_im * b_re - a_re * b_im) / size
