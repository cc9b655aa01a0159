"""One real λ per channel and step, one state per channel: gated linear recurrent networks (qLSTM, RG-LRU).

Letters: b batch, t time, h heads, n = 1 states per channel, p head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DSFSystemError, Transition, broadcasts, causal_mask, replaced, require_floats

__all__ = ["ElementwiseDecay"]


@dataclass(frozen=True, eq=False)
class ElementwiseDecay(Transition):
    """Λ_i = diag(λ_i) with one real λ per channel and step; it may be 0 or negative, since no logarithm is taken."""

    name: ClassVar[str] = "elementwise"
    per_channel: ClassVar[bool] = True

    decay: Tensor
    """λ, (b|1, t|1, h, p). Gradients are with respect to it."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `decay` broadcasts to (b, t, h, p) and there is one state per channel."""
        require_floats(decay=self.decay)
        shape = tuple(self.decay.shape)
        fits = len(shape) == 4 and broadcasts(shape[0], batch) and broadcasts(shape[1], length)
        if not fits or shape[2:] != (num_heads, head_dim):
            raise DSFSystemError(
                f"decay has shape {shape}, but u asks for ({batch}|1, {length}|1, {num_heads}, {head_dim}): "
                "give one λ per channel, for each batch row and step or broadcast over them."
            )
        if state_size != 1:
            raise DSFSystemError(
                f"B has {state_size} states per channel, but Λ of structure {self.name!r} acts on one: "
                "give B and C of width 1."
            )

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return λ_time * S, row by channel."""
        decay_bhp = self.decay[:, time if self.decay.shape[1] > 1 else 0]
        decay = decay_bhp[:, :, None].to(state.dtype)
        return state.mul_(decay) if in_place else state * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i b_j λ_i … λ_{j+1} for j <= i: (b, h, p, t, t)."""
        products = self.products(B_bthn.shape[1]).to(B_bthn.dtype)
        return torch.einsum("bihn,bjhn->bhij", C_bthn, B_bthn)[:, :, None] * products

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return λ_i as matrices, (b, t, h, p, 1, 1)."""
        return self.eigenvalues(batch, length, num_heads)[..., None, None]

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return λ_i, (b, t, h, p)."""
        return self.decay.double().expand(batch, length, -1, -1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Self:
        """Return the structure with each λ replaced; see `Transition.with_eigenvalues`."""
        found = replaced(self.decay.double(), function)
        if found is None:
            return self
        return replace(self, decay=found.to(self.decay.dtype).expand(-1, -1, *self.decay.shape[2:]))

    def products(self, length: int) -> Tensor:
        """Return λ_i … λ_{j+1} in row i and column j <= i, zero above the diagonal: (b|1, h, p, t, t) in float64."""
        rows = self.decay.double().expand(-1, length, -1, -1).movedim(1, -1)[..., None]
        below = causal_mask(length, rows.device).tril(-1)
        return torch.where(below, rows, 1.0).cumprod(-2).tril()

    def narrow(self, start: int, length: int) -> Self:
        """Return the decays of `length` steps from `start`."""
        return self if self.decay.shape[1] == 1 else replace(self, decay=self.decay.narrow(1, start, length))

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the decays of `length` steps with steps of λ = 1 at both ends."""
        decay = self.decay.expand(-1, length, -1, -1)
        return replace(self, decay=F.pad(decay, (0, 0, 0, 0, before, after), value=1.0))

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the decays with λ = 0 at document starts and λ = 1 at pads."""
        decay = self.decay
        if starts is not None:
            decay = decay.masked_fill(starts[..., None, None], 0.0)
        if padded is not None:
            decay = decay.masked_fill(padded[..., None, None], 1.0)
        return replace(self, decay=decay)
