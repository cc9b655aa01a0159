"""Λ of the (gated) delta rule: a decaying state in which each key's old value is, in part, erased.

Letters: b batch, t time, h heads, g groups of heads that share keys, n states per channel, p head width.
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
    nonzero,
    replaced,
    require_floats,
    scores_by_recursion,
)

__all__ = ["DeltaRule"]


@dataclass(frozen=True, eq=False)
class DeltaRule(Transition):
    """Λ_i = α_i (I - β_i k_i k_i^T) with α_i = exp(log_decay_i) per head and step: a matrix product, not elementwise.

    With ‖k_i‖ = 1 and 0 <= β_i <= 1 it erases the share β_i of what lies along k_i; 1 < β_i <= 2 gives the eigenvalue
    α_i (1 - β_i) < 0. What it writes, b_i = β_i k_i in the delta rule, is the system's B.

    Sources: Schlag et al. 2021 (arXiv 2102.11174); Yang et al. 2024 (arXiv 2412.06464).
    """

    name: ClassVar[str] = "delta_rule"
    flops_per_entry: ClassVar[int] = 3
    matmul_flops_per_entry: ClassVar[int] = 2

    log_decay: Tensor
    """log α, (b|1, t|1, h|1); -inf means Λ = 0. Gradients are with respect to it."""
    key: Tensor
    """k, (b|1, t|1, g, n); g divides h."""
    beta: Tensor
    """β, (b|1, t|1, h|1)."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `log_decay` and `beta` broadcast to (b, t, h) and `key` to (b, t, groups, n)."""
        require_floats(log_decay=self.log_decay, key=self.key, beta=self.beta)
        for name in ("log_decay", "beta"):
            shape = tuple(getattr(self, name).shape)
            if len(shape) != 3 or not all(map(broadcasts, shape, (batch, length, num_heads))):
                raise DSFSystemError(
                    f"{name} has shape {shape}, but u asks for ({batch}|1, {length}|1, {num_heads}|1): "
                    "give one number per batch row, step and head (or broadcast it)."
                )
        shape = tuple(self.key.shape)
        fits = len(shape) == 4 and all(map(broadcasts, shape[:2], (batch, length))) and shape[3] == state_size
        if not fits or shape[2] == 0 or num_heads % shape[2]:
            raise DSFSystemError(
                f"key has shape {shape}, but u and B ask for ({batch}|1, {length}|1, groups dividing {num_heads}, "
                f"{state_size}): give one key of B's width per batch row, step and group."
            )

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return α (S - β k (k^T S)) at `time`."""
        now = self.narrow(time, 1).to(state.dtype)
        key = expand_groups(now.key, state.shape[1])[:, 0]
        erased, decay = key * -now.beta[:, 0, :, None], now.log_decay[:, 0, :, None, None].exp()
        found = key[..., None, :] @ state
        if in_place:
            return state.addcmul_(erased[..., None], found).mul_(decay)
        return torch.addcmul(state, erased[..., None], found) * decay

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ_i … Λ_{j+1} b_j for j <= i: (b, h, 1, t, t)."""
        return scores_by_recursion(self, B_bthn, C_bthn)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return α_i (I - β_i k_i k_i^T), (b, t, h, p, n, n)."""
        wide = self.to(torch.float64)
        key = expand_groups(wide.key, num_heads)
        eye = torch.eye(state_size, dtype=torch.float64, device=key.device)
        erased = wide.beta[..., None, None] * key[..., :, None] * key[..., None, :]
        blocks = wide.log_decay.exp()[..., None, None] * (eye - erased)
        return blocks[:, :, :, None].expand(batch, length, num_heads, head_dim, -1, -1)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return the distinct eigenvalues, α_i (n - 1 times) and α_i (1 - β_i ‖k_i‖²) (once): (b, t, h, 2).

        With n = 1 there is no room for the first: (b, t, h, 1).
        """
        wide = self.to(torch.float64)
        decay = wide.log_decay.exp()
        along = decay * (1 - wide.beta * expand_groups(wide.key, num_heads).square().sum(-1))
        full = (batch, length, num_heads)
        values = [along.expand(full)] if self.key.shape[3] == 1 else [decay.expand(full), along.expand(full)]
        return torch.stack(values, dim=-1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> "DeltaRule":
        """Return the structure with α_i and α_i (1 - β_i ‖k_i‖²) replaced, the keys as they are.

        Raises:
            DSFSystemError: α_i becomes negative, or 0 beside another eigenvalue; see `Transition.with_eigenvalues`.
        """
        wide = self.to(torch.float64)
        lead = torch.broadcast_shapes(wide.log_decay.shape[:2], wide.beta.shape[:2], wide.key.shape[:2])
        squares = expand_groups(wide.key, u.shape[2]).square().sum(-1)
        values = self.eigenvalues(*lead, u.shape[2])
        found = replaced(values, function)
        if found is None:
            return self
        found = found.expand_as(values)
        decay, along = found[..., 0], found[..., -1]
        # Where the key is 0, or nothing is orthogonal to it, one of the two eigenvalues belongs to no eigenvector.
        decay = along.abs() if values.shape[-1] == 1 else decay
        decay, along = torch.where(squares == 0, along.abs(), decay), along.expand(decay.shape)
        if bool((decay < 0).any() | ((decay == 0) & (along != 0)).any()):
            raise DSFSystemError(
                "the eigenvalue α of a delta rule's Λ = α (I - β k k^T) became negative, or 0 beside another one that "
                "is not: give it a positive number, or 0 to both."
            )
        beta = torch.where(decay == 0, 0.0, (1 - along / nonzero(decay)) / nonzero(squares))
        dtype = self.log_decay.dtype
        return replace(self, log_decay=log_and_sign(decay, dtype)[0], beta=beta.to(self.beta.dtype))

    def narrow(self, start: int, length: int) -> Self:
        """Return the factors of `length` steps from `start`."""

        def cut(x: Tensor) -> Tensor:
            return x if x.shape[1] == 1 else x.narrow(1, start, length)

        return replace(self, log_decay=cut(self.log_decay), key=cut(self.key), beta=cut(self.beta))

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the factors of `length` steps with steps of α = 1, β = 0 at both ends."""

        def extend(x: Tensor) -> Tensor:
            return F.pad(x.expand(-1, length, *x.shape[2:]), (0, 0) * (x.ndim - 2) + (before, after))

        return replace(self, log_decay=extend(self.log_decay), key=extend(self.key), beta=extend(self.beta))

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the factors with α = 0 at document starts, and α = 1, β = 0 at pads."""
        log_decay, beta = self.log_decay, self.beta
        if starts is not None:
            log_decay = log_decay.masked_fill(starts[..., None], LOG_ZERO)
        if padded is not None:
            log_decay = log_decay.masked_fill(padded[..., None], 0.0)
            beta = beta.masked_fill(padded[..., None], 0.0)
        return replace(self, log_decay=log_decay, beta=beta)
