"""Λ = exp(-Δ A) with one step size Δ per channel and step, and one constant rate A per state: S6.

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LOG2_E, DSFSystemError, Transition, broadcasts, replaced, require_floats
from .diagonal import Diagonal

__all__ = ["FactoredDecay"]

FORGET = 1e30
"""Step size of a reset: exp(-FORGET · A) is exactly 0 for every rate above 1e-26, and its gradient is no NaN."""


@dataclass(frozen=True, eq=False)
class FactoredDecay(Transition):
    """Λ_i = diag(λ_i), λ_i[n, p] = exp(-Δ_i[p] · A[n, p]) within each head: time and state come as two factors.

    Source: the selective state space of Gu & Dao 2023 (arXiv 2312.00752).
    """

    name: ClassVar[str] = "factored"
    per_channel: ClassVar[bool] = True

    delta: Tensor
    """Step sizes Δ >= 0, (b|1, t|1, h|1, p|1); Δ = 0 keeps the state."""
    rate: Tensor
    """Rates A > 0, (h|1, n|1, p|1)."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `delta` broadcasts to (b, t, h, p) and `rate` to (h, n, p)."""
        require_floats(delta=self.delta, rate=self.rate)
        self._check_shape("delta", (batch, length, num_heads, head_dim), "b, t, h, p")
        self._check_shape("rate", (num_heads, state_size, head_dim), "h, n, p")

    def _check_shape(self, name: str, full: tuple[int, ...], letters: str) -> None:
        shape = tuple(getattr(self, name).shape)
        if shape != full and not (len(shape) == len(full) and all(map(broadcasts, shape, full))):
            sizes = ", ".join(f"{size}|1" for size in full)
            raise DSFSystemError(f"{name} has shape {shape}; give ({letters}) = ({sizes}).")

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return exp(-Δ_time A) * S."""
        at = time if self.delta.shape[1] > 1 else 0
        # Powers of two, and the factor on the smaller tensor: a decoded token has no time for more.
        exponent = (self.delta[:, at, :, None] * -LOG2_E) * self.rate
        decay = exponent.exp2().to(state.dtype)
        return state.mul_(decay) if in_place else state * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return Σ_n c_i[n] λ_i[n, p] … λ_{j+1}[n, p] b_j[n] for j <= i: (b, h, p|1, t, t)."""
        return Diagonal(self.to(torch.float64).values()).scores(B_bthn, C_bthn)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return diag(λ_i[·, p]), (b, t, h, p, n, n)."""
        return Diagonal(self.to(torch.float64).values()).blocks(batch, length, num_heads, state_size, head_dim)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return λ_i, (b, t, h, n|1, p|1)."""
        return self.to(torch.float64).values().expand(batch, length, num_heads, -1, -1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Transition:
        """Return a `Diagonal` of the new λ, which need not be two factors; see `Transition.with_eigenvalues`."""
        found = replaced(self.to(torch.float64).values().expand(-1, -1, u.shape[2], -1, -1), function)
        return self if found is None else Diagonal(found.to(torch.promote_types(self.delta.dtype, torch.float32)))

    def values(self) -> Tensor:
        """Return exp(-Δ A), (b|1, t|1, h|1, n|1, p|1)."""
        return (self.delta[:, :, :, None] * -self.rate).exp()

    def narrow(self, start: int, length: int) -> Self:
        """Return the decays of `length` steps from `start`."""
        return self if self.delta.shape[1] == 1 else replace(self, delta=self.delta.narrow(1, start, length))

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the decays of `length` steps with steps of Δ = 0 at both ends."""
        return replace(self, delta=F.pad(self.delta.expand(-1, length, -1, -1), (0, 0, 0, 0, before, after)))

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the decays with λ = 0 at document starts and λ = 1 at pads."""
        # Half precision has no number as large as FORGET.
        delta = self.delta.to(torch.promote_types(self.delta.dtype, torch.float32))
        if starts is not None:
            delta = delta.masked_fill(starts[..., None, None], FORGET)
        if padded is not None:
            delta = delta.masked_fill(padded[..., None, None], 0.0)
        return replace(self, delta=delta)
