"""Λ = 1, and one scalar λ per head and step: attention's gauge, SSD, resets.

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import (
    LOG_ZERO,
    DSFSystemError,
    Transition,
    broadcasts,
    causal_mask,
    log_and_sign,
    replaced,
    require_floats,
)

__all__ = ["Identity", "ScalarDecay"]


@dataclass(frozen=True, eq=False)
class Identity(Transition):
    """Λ_i = 1: the state sums up everything it was given (attention in the gauge of its normaliser)."""

    name: ClassVar[str] = "identity"
    flops_per_entry: ClassVar[int] = 0

    @property
    def time_invariant(self) -> bool:
        """True."""
        return True

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Accept every size."""

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return S unchanged."""
        return state

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T b_j for j <= i: (b, h, 1, t, t)."""
        return torch.einsum("bihn,bjhn->bhij", C_bthn, B_bthn).tril()[:, :, None]

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return unit matrices, (b, t, h, p, n, n)."""
        eye = torch.eye(state_size, dtype=torch.float64)
        return eye.expand(batch, length, num_heads, head_dim, state_size, state_size)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return ones (b, t, h)."""
        return torch.ones(batch, length, num_heads, dtype=torch.float64)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Transition:
        """Return a `ScalarDecay` of the new λ, one a head; see `Transition.with_eigenvalues`."""
        found = replaced(torch.ones(1, 1, u.shape[2], dtype=torch.float64, device=u.device), function)
        return self if found is None else ScalarDecay(*log_and_sign(found, torch.float64))

    def narrow(self, start: int, length: int) -> Self:
        """Return itself: Λ does not depend on time."""
        return self

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return itself: Λ is 1 at every step."""
        return self

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Transition:
        """Return a `ScalarDecay` that is 0 at document starts and 1 elsewhere (pads need no change: Λ is 1)."""
        if starts is None:
            return self
        starts = starts if padded is None else starts & ~padded
        log_decay = torch.zeros(starts.shape, dtype=torch.float32, device=starts.device)
        return ScalarDecay(log_decay.masked_fill(starts, LOG_ZERO)[..., None])


@dataclass(frozen=True, eq=False)
class ScalarDecay(Transition):
    """Λ_i = λ_i I with one scalar λ_i = sign_i · exp(log_decay_i) per head and step (SSD, gauge changes, resets)."""

    name: ClassVar[str] = "scalar"

    log_decay: Tensor
    """log |λ|, (b|1, t|1, h|1); -inf means λ = 0. Gradients are with respect to it."""
    sign: Tensor | None = None
    """Sign of λ, +1 or -1 in the shape of `log_decay`; None where λ is never negative."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `log_decay` broadcasts to (b, t, h) and `sign` has its shape."""
        require_floats(log_decay=self.log_decay, sign=self.sign)
        shape = tuple(self.log_decay.shape)
        if len(shape) != 3 or not all(map(broadcasts, shape, (batch, length, num_heads))):
            raise DSFSystemError(
                f"log_decay has shape {shape}, but u asks for ({batch}|1, {length}|1, {num_heads}|1): "
                "give one log-decay per batch row, step and head (or broadcast it)."
            )
        if self.sign is not None and self.sign.shape != self.log_decay.shape:
            raise DSFSystemError(f"sign has shape {tuple(self.sign.shape)}; it must equal log_decay's {shape}.")

    @property
    def time_invariant(self) -> bool:
        """Whether one λ per head holds for all steps."""
        return self.log_decay.shape[1] == 1

    def values(self) -> Tensor:
        """Return λ in the shape of `log_decay`."""
        decay = self.log_decay.exp()
        return decay if self.sign is None else decay * self.sign

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return λ_time · S."""
        at = time if self.log_decay.shape[1] > 1 else 0
        decay_bh = self.log_decay[:, at].exp()
        if self.sign is not None:
            decay_bh = decay_bh * self.sign[:, at]
        decay = decay_bh[..., None, None].to(state.dtype)
        return state.mul_(decay) if in_place else state * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T b_j λ_i … λ_{j+1} for j <= i: (b, h, 1, t, t)."""
        products = self.products(B_bthn.shape[1]).to(B_bthn.dtype)
        return (torch.einsum("bihn,bjhn->bhij", C_bthn, B_bthn) * products)[:, :, None]

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return λ_i I, (b, t, h, p, n, n)."""
        eye = torch.eye(state_size, dtype=torch.float64, device=self.log_decay.device)
        return self.eigenvalues(batch, length, num_heads)[..., None, None, None] * eye.expand(head_dim, -1, -1)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return λ_i, (b, t, h)."""
        return self.to(torch.float64).values().expand(batch, length, num_heads)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> Self:
        """Return the structure with each λ replaced; see `Transition.with_eigenvalues`."""
        found = replaced(self.to(torch.float64).values().expand(-1, -1, u.shape[2]), function)
        return self if found is None else ScalarDecay(*log_and_sign(found, self.log_decay.dtype))

    def products(self, length: int) -> Tensor:
        """Return λ_i … λ_{j+1} in row i and column j <= i, zero above the diagonal: (b|1, h|1, t, t) in float64."""
        rows = self.to(torch.float64).values().expand(-1, length, -1).transpose(1, 2)[..., None]
        below = causal_mask(length, rows.device).tril(-1)
        return torch.where(below, rows, 1.0).cumprod(-2).tril()

    def narrow(self, start: int, length: int) -> Self:
        """Return the decays of `length` steps from `start`."""
        if self.log_decay.shape[1] == 1:
            return self
        sign = None if self.sign is None else self.sign.narrow(1, start, length)
        return replace(self, log_decay=self.log_decay.narrow(1, start, length), sign=sign)

    def pad(self, before: int, after: int, length: int) -> "ScalarDecay":
        """Return the decays of `length` steps with steps of λ = 1 at both ends."""
        sign = self.sign
        if sign is not None:
            sign = F.pad(sign.expand(-1, length, -1), (0, 0, before, after), value=1.0)
        return ScalarDecay(F.pad(self.log_decay.expand(-1, length, -1), (0, 0, before, after)), sign)

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> "ScalarDecay":
        """Return the decays with λ = 0 at document starts and λ = 1 at pads."""
        log_decay, sign = self.log_decay, self.sign
        if starts is not None:
            log_decay = log_decay.masked_fill(starts[..., None], LOG_ZERO)
        if padded is not None:
            log_decay = log_decay.masked_fill(padded[..., None], 0.0)
            sign = None if sign is None else sign.masked_fill(padded[..., None], 1.0)
        return ScalarDecay(log_decay, None if sign is None else sign.expand_as(log_decay))
