"""A constant Λ with steps where it is replaced: by 0 at document starts, by 1 at pads.

A time-invariant structure, which cannot say 0 or 1 at single steps, becomes this where documents or pads are written
into it.

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DSFSystemError, Transition, broadcasts, scores_by_recursion

__all__ = ["Interrupted", "interrupt"]


@dataclass(frozen=True, eq=False)
class Interrupted(Transition):
    """Λ of the time-invariant `inner`, but 0 where `starts` and 1 where `padded` hold; pads come first."""

    name: ClassVar[str] = "interrupted"

    inner: Transition
    """The time-invariant structure at all other steps."""
    starts: Tensor
    """(b|1, t) True where Λ = 0."""
    padded: Tensor
    """(b|1, t) True where Λ = 1."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless `inner` fits and both masks are booleans (b|1, t)."""
        if not self.inner.time_invariant:
            raise DSFSystemError(
                f"inner is a Λ of structure {self.inner.name!r} that depends on time: let its own mask() interrupt it."
            )
        self.inner.check(batch, length, num_heads, state_size, head_dim)
        for name, mask in (("starts", self.starts), ("padded", self.padded)):
            shape = tuple(mask.shape)
            if len(shape) != 2 or not broadcasts(shape[0], batch) or shape[1] != length or mask.dtype != torch.bool:
                raise DSFSystemError(f"{name} is {mask.dtype} of shape {shape}; give booleans ({batch}|1, {length}).")

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return 0, S or Λ S."""
        starts, padded = (mask[:, time, None, None, None] for mask in (self.starts, self.padded))
        moved = self.inner.step(state, time).masked_fill(starts, 0.0)
        moved = torch.where(padded, state, moved)
        return state.copy_(moved) if in_place else moved

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ_i … Λ_{j+1} b_j for j <= i, zero above the diagonal: (b, h, 1, t, t)."""
        return scores_by_recursion(self, B_bthn, C_bthn)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return 0, unit matrices or the blocks of `inner`, (b, t, h, p, n, n)."""
        blocks = self.inner.blocks(batch, length, num_heads, state_size, head_dim)
        eye = torch.eye(state_size, dtype=blocks.dtype, device=blocks.device)
        starts, padded = (mask[..., None, None, None, None] for mask in (self.starts, self.padded))
        return torch.where(padded, eye, blocks.masked_fill(starts, 0.0))

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return 0, 1 or the eigenvalues of `inner`, in its shape."""
        values = self.inner.eigenvalues(batch, length, num_heads)
        starts, padded = (mask.view(*mask.shape, *(1,) * (values.ndim - 2)) for mask in (self.starts, self.padded))
        return values.masked_fill(starts, 0.0).masked_fill(padded, 1.0)

    def narrow(self, start: int, length: int) -> Self:
        """Return the structure restricted to `length` steps from `start`."""
        return replace(self, starts=self.starts.narrow(1, start, length), padded=self.padded.narrow(1, start, length))

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the structure of `length` steps with steps of Λ = 1 added at both ends."""
        return replace(
            self,
            starts=F.pad(self.starts, (before, after)),
            padded=F.pad(self.padded, (before, after), value=True),
        )

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the structure with Λ = 0 where `starts` (b, t) and Λ = 1 where `padded` (b, t) hold as well."""
        new_padded = self.padded if padded is None else self.padded | padded
        new_starts = self.starts if starts is None else self.starts | starts
        # What was a pad before stays one, and what `starts` says holds at the steps that `padded` leaves alone.
        return replace(self, starts=new_starts, padded=new_padded)


def interrupt(
    inner: Transition, starts: Tensor | None, padded: Tensor | None, length: int, device: torch.device
) -> Interrupted:
    """Return a time-invariant structure with Λ = 0 where `starts` and Λ = 1 where `padded` hold, (b|1, t) or None."""
    nowhere = torch.zeros(1, length, dtype=torch.bool, device=device)
    return Interrupted(inner, nowhere if starts is None else starts, nowhere if padded is None else padded)
