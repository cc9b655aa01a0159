"""Λ diagonal over the states of a channel: each of the n key features fades at a rate of its own (GLA).

Letters: b batch, t time, h heads, g groups of heads that share Λ, n states per channel, p head width.
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
    expand_groups,
    log_and_sign,
    replaced,
    require_floats,
    scores_by_recursion,
)

__all__ = ["KeyDiagonal"]


@dataclass(frozen=True, eq=False)
class KeyDiagonal(Transition):
    """Λ_i = diag(λ_i) with n decays λ_i = sign_i · exp(log_decay_i) per head and step."""

    name: ClassVar[str] = "key_diagonal"

    log_decay: Tensor
    """log |λ|, (b|1, t|1, g, n), g divides h; -inf means λ = 0. Gradients are with respect to it."""
    sign: Tensor | None = None
    """Signs of λ, +1 or -1 in the shape of `log_decay`; None where no λ is negative."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `log_decay` broadcasts to (b, t, h, n) over groups of heads and `sign` has its shape."""
        require_floats(log_decay=self.log_decay, sign=self.sign)
        shape = tuple(self.log_decay.shape)
        fits = len(shape) == 4 and all(map(broadcasts, shape[:2], (batch, length))) and shape[3] == state_size
        if not fits or shape[2] == 0 or num_heads % shape[2]:
            raise DSFSystemError(
                f"log_decay has shape {shape}, but u and B ask for ({batch}|1, {length}|1, groups dividing "
                f"{num_heads}, {state_size}): give one log-decay per batch row, step, group and state."
            )
        if self.sign is not None and self.sign.shape != self.log_decay.shape:
            raise DSFSystemError(f"sign has shape {tuple(self.sign.shape)}; it must equal log_decay's {shape}.")

    def values(self) -> Tensor:
        """Return λ in the shape of `log_decay`."""
        decay = self.log_decay.exp()
        return decay if self.sign is None else decay * self.sign

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return λ_time * S, row by row."""
        decay = self.narrow(time, 1).values().to(state.dtype)
        decay = expand_groups(decay, state.shape[1])[:, 0, :, :, None]
        return state.mul_(decay) if in_place else state * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return Σ_a c_ia λ_ia … λ_{j+1,a} b_ja for j <= i: (b, h, 1, t, t)."""
        return scores_by_recursion(self, B_bthn, C_bthn)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return diag(λ_i), (b, t, h, p, n, n)."""
        values = self.eigenvalues(batch, length, num_heads)
        return torch.diag_embed(values)[:, :, :, None].expand(-1, -1, -1, head_dim, -1, -1)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return λ_i, (b, t, h, n)."""
        return expand_groups(self.to(torch.float64).values(), num_heads).expand(batch, length, -1, -1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> "KeyDiagonal":
        """Return the structure with each λ replaced; see `Transition.with_eigenvalues`."""
        values = expand_groups(self.to(torch.float64).values(), u.shape[2])
        found = replaced(values, function)
        if found is None:
            return self
        return KeyDiagonal(*log_and_sign(found.expand(-1, -1, *values.shape[2:]), self.log_decay.dtype))

    def narrow(self, start: int, length: int) -> Self:
        """Return the decays of `length` steps from `start`."""
        if self.log_decay.shape[1] == 1:
            return self
        sign = None if self.sign is None else self.sign.narrow(1, start, length)
        return replace(self, log_decay=self.log_decay.narrow(1, start, length), sign=sign)

    def pad(self, before: int, after: int, length: int) -> "KeyDiagonal":
        """Return the decays of `length` steps with steps of λ = 1 at both ends."""
        sign = self.sign
        if sign is not None:
            sign = F.pad(sign.expand(-1, length, -1, -1), (0, 0, 0, 0, before, after), value=1.0)
        return KeyDiagonal(F.pad(self.log_decay.expand(-1, length, -1, -1), (0, 0, 0, 0, before, after)), sign)

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> "KeyDiagonal":
        """Return the decays with λ = 0 at document starts and λ = 1 at pads."""
        log_decay, sign = self.log_decay, self.sign
        if starts is not None:
            log_decay = log_decay.masked_fill(starts[..., None, None], LOG_ZERO)
        if padded is not None:
            log_decay = log_decay.masked_fill(padded[..., None, None], 0.0)
            sign = None if sign is None else sign.masked_fill(padded[..., None, None], 1.0)
        return KeyDiagonal(log_decay, None if sign is None else sign.expand_as(log_decay))
