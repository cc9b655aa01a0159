"""Λ diagonal without any further structure: one real λ per state, channel and step.

No architecture starts from it: it is what is left where the eigenvalues of a more special structure were replaced.

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DSFSystemError, Transition, broadcasts, causal_mask, replaced, require_floats

__all__ = ["Diagonal"]


@dataclass(frozen=True, eq=False)
class Diagonal(Transition):
    """Λ_i = diag(λ_i), λ_i[n, p] a real number of each state and channel; it may be 0 or negative."""

    name: ClassVar[str] = "diagonal"
    per_channel: ClassVar[bool] = True

    decay: Tensor
    """λ, (b|1, t|1, h|1, n|1, p|1). Gradients are with respect to it."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `decay` broadcasts to (b, t, h, n, p)."""
        require_floats(decay=self.decay)
        shape, full = tuple(self.decay.shape), (batch, length, num_heads, state_size, head_dim)
        if len(shape) != 5 or not all(map(broadcasts, shape, full)):
            sizes = ", ".join(f"{size}|1" for size in full)
            raise DSFSystemError(f"decay has shape {shape}; give (b, t, h, n, p) = ({sizes}).")

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return λ_time * S."""
        decay = self.decay[:, time if self.decay.shape[1] > 1 else 0].to(state.dtype)
        return state.mul_(decay) if in_place else state * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return Σ_n c_i[n] λ_i[n, p] … λ_{j+1}[n, p] b_j[n] for j <= i: (b, h, p|1, t, t)."""
        length, states = B_bthn.shape[1], B_bthn.shape[-1]
        values = self.decay.double().expand(-1, length, -1, states, -1)
        below = causal_mask(length, values.device).tril(-1)
        scores = B_bthn.new_zeros(())
        # State after state: one (t, t) product for each channel is much, one for each state of it too much.
        for rows_bthp, b_bth, c_bth in zip(values.unbind(3), B_bthn.unbind(-1), C_bthn.unbind(-1), strict=True):
            rows = rows_bthp.permute(0, 2, 3, 1)[..., None]
            products = torch.where(below, rows, 1.0).cumprod(-2).tril().to(B_bthn.dtype)
            c_bhi, b_bhj = c_bth.transpose(1, 2), b_bth.transpose(1, 2)
            scores = scores + c_bhi[:, :, None, :, None] * products * b_bhj[:, :, None, None, :]
        return scores

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return diag(λ_i[·, p]), (b, t, h, p, n, n)."""
        values = self.decay.double().expand(batch, length, num_heads, state_size, head_dim)
        return torch.diag_embed(values.transpose(-1, -2))

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return λ_i, (b, t, h, n|1, p|1)."""
        return self.decay.double().expand(batch, length, num_heads, -1, -1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Self:
        """Return the structure with each λ replaced; see `Transition.with_eigenvalues`."""
        values = self.decay.double().expand(-1, -1, u.shape[2], -1, -1)
        found = replaced(values, function)
        return self if found is None else replace(self, decay=found.to(self.decay.dtype))

    def narrow(self, start: int, length: int) -> Self:
        """Return the decays of `length` steps from `start`."""
        return self if self.decay.shape[1] == 1 else replace(self, decay=self.decay.narrow(1, start, length))

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the decays of `length` steps with steps of λ = 1 at both ends."""
        decay = self.decay.expand(-1, length, -1, -1, -1)
        return replace(self, decay=F.pad(decay, (0,) * 6 + (before, after), value=1.0))

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the decays with λ = 0 at document starts and λ = 1 at pads."""
        decay = self.decay
        if starts is not None:
            decay = decay.masked_fill(starts[..., None, None, None], 0.0)
        if padded is not None:
            decay = decay.masked_fill(padded[..., None, None, None], 1.0)
        return replace(self, decay=decay)
