"""What every structure of Λ offers, and the small tensor helpers that structures and systems share.

Letters: b batch, t time, h heads, g groups, n states per channel, p head width; q is 1 where the channels of a head
share Λ, else p.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Record = TypeVar("Record")

LOG_ZERO = -1e3
"""Stand-in for log 0: exp(LOG_ZERO) is exactly 0 in every dtype, while sums of it stay finite."""
LOG2_E = math.log2(math.e)
"""exp(x) = 2^(x · LOG2_E): on CPUs torch computes powers of two several times faster than exp, and as exactly."""


class DSFSystemError(ValueError):
    """A system was built or used with sizes, dtypes or options that do not fit together."""


def broadcasts(size: int, full: int) -> bool:
    """Return whether a dimension of this size fits one of size `full` by broadcasting."""
    return size in (1, full)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Return the (t, t) boolean mask that is True where column j <= row i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def require_floats(**tensors: Tensor | None) -> None:
    """Raise unless all tensors that are given hold real floating-point numbers.

    Raises:
        DSFSystemError: one does not; the message names it and its dtype.
    """
    for name, value in tensors.items():
        if value is not None and not value.is_floating_point():
            raise DSFSystemError(f"{name} is {value.dtype}: give real floating-point numbers.")


def nonzero(denominator: Tensor) -> Tensor:
    """Replace exact zeros by 1: a row whose weights all underflowed has a zero numerator too, and reads 0."""
    return denominator.masked_fill(denominator == 0, 1.0)


def beyond(lengths: Tensor, length: int) -> Tensor:
    """Return (b, t) True at the steps behind each row's last real token, from the numbers of real tokens (b,)."""
    return torch.arange(length, device=lengths.device) >= lengths[:, None]


def expand_groups(x: Tensor, num_heads: int) -> Tensor:
    """Repeat the groups (dimension 2) of (b, t, g, n) so that every head has its own: (b, t, h, n)."""
    groups = x.shape[2]
    return x if groups == num_heads else x.repeat_interleave(num_heads // groups, dim=2)


def map_floats(record: Record, dtype: torch.dtype) -> Record:
    """Return the dataclass with every floating-point tensor, and those of its transition, in `dtype`."""
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Transition) or (isinstance(value, Tensor) and value.is_floating_point()):
            changes[field.name] = value.to(dtype)
    return replace(record, **changes)


@dataclass(frozen=True, eq=False)
class Transition(ABC):
    """Structure of Λ_i: how one step of the recurrence acts on the head states S (b, h, n, p).

    A new structure is one subclass, in a file beside this one, and one kernel in `engine`; the sequential reference, Φ
    and the dense matrices need nothing else.
    """

    name: ClassVar[str]
    """Name of the structure, for messages and tables."""
    flops_per_entry: ClassVar[int] = 1
    """Elementwise operations by which one step of Λ moves one entry of the state."""
    matmul_flops_per_entry: ClassVar[int] = 0
    """Operations of matrix products beside them."""
    per_channel: ClassVar[bool] = False
    """Whether the channels of a head have each their own Λ, so that no normaliser can be shared by them."""

    @property
    def time_invariant(self) -> bool:
        """Whether Λ is the same at every step; a structure that can be says so itself."""
        return False

    @abstractmethod
    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise `DSFSystemError` unless the parameters of Λ fit a system of these sizes."""

    @abstractmethod
    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return Λ_time(S) for the head states S (b, h, n, p); `in_place` lets it overwrite them."""

    @abstractmethod
    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ_i … Λ_{j+1} b_j for all j <= i, zero above the diagonal: (b, h, q, t, t)."""

    @abstractmethod
    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return Λ_0 … Λ_{t-1} as they act on the n states of each channel, (b, t, h, p, n, n) in float64."""

    @abstractmethod
    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return the distinct eigenvalues of Λ_0 … Λ_{t-1}, in float64 or complex128.

        (b, t, h) where a head has one, (b, t, h, …) where they differ within a head.
        """

    @abstractmethod
    def narrow(self, start: int, length: int) -> Self:
        """Return the structure restricted to `length` steps from `start`."""

    @abstractmethod
    def pad(self, before: int, after: int, length: int) -> "Transition":
        """Return the structure of `length` steps with steps of Λ = 1 added at both ends."""

    @abstractmethod
    def mask(self, starts: Tensor | None, padded: Tensor | None) -> "Transition":
        """Return the structure with Λ = 0 where `starts` (b, t) and Λ = 1 where `padded` (b, t) hold."""

    def orbit(self, state: Tensor, length: int) -> Tensor:
        """Return Λ^e S for e = 0 … length - 1, from S (b|1, h, n, p): (b, length, h, n, p).

        Raises:
            DSFSystemError: Λ depends on time, so that its powers mean nothing.
        """
        if not self.time_invariant:
            raise DSFSystemError(f"Λ of structure {self.name!r} depends on time here: it has products, but no powers.")
        states = [state]
        for _ in range(length - 1):
            states.append(self.step(states[-1], 0))
        return torch.stack(torch.broadcast_tensors(*states), dim=1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> "Transition":
        """Return the structure with each eigenvalue λ replaced by function(λ), its eigenvectors as they are.

        Args:
            function: maps the eigenvalues, (b|1, t|1, h, …) as in `eigenvalues`, to a tensor that broadcasts with them.
            u: inner input of the system, (b, t, h, p), whose heads and device the eigenvalues take.

        Raises:
            DSFSystemError: the structure does not let its eigenvalues be replaced one by one, or cannot hold the new.
        """
        raise DSFSystemError(
            f"the eigenvalues of Λ of structure {self.name!r} cannot be replaced one by one, since its eigenvectors "
            "depend on them: replace Λ as a whole, or choose a layer whose Λ is diagonal."
        )

    def to(self, dtype: torch.dtype) -> Self:
        """Return the structure with its floating-point tensors in `dtype`."""
        return map_floats(self, dtype)


def replaced(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return the eigenvalues that a function puts in place of `values`, or None where it leaves all as they are.

    Raises:
        DSFSystemError: they do not broadcast with `values`, hold NaN, or are complex in place of real ones.
    """
    found = function(values)
    fits = found.ndim == values.ndim and all(map(broadcasts, found.shape, values.shape))
    if not fits or (found.is_complex() and not values.is_complex()) or bool(found.isnan().any()):
        raise DSFSystemError(
            f"the new eigenvalues are {found.dtype} of shape {tuple(found.shape)}: give numbers of a shape that "
            f"broadcasts to that of the old ones, {tuple(values.shape)}, real in place of real ones, and no NaN."
        )
    found = found.to(values.dtype)
    return None if torch.equal(found.expand_as(values), values) else found


def log_and_sign(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return log |λ| and the sign of λ, both in `dtype`; None for the sign where no λ is negative."""
    log = torch.where(values == 0, LOG_ZERO, values.abs().clamp(min=torch.finfo(values.dtype).tiny).log())
    sign = torch.where(values < 0, -1.0, 1.0).to(dtype) if bool((values < 0).any()) else None
    return log.to(dtype), sign


def scores_by_recursion(transition: Transition, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
    """Return c_i^T Λ_i … Λ_{j+1} b_j for j <= i by running the recurrence once, its channels the b_j met so far.

    It takes O(t²) steps' work a head, for any Λ that acts on the channels of a head alike.

    Args:
        transition: the structure, in any dtype; products are taken in float64.
        B_bthn: input factors of every head.
        C_bthn: output factors of every head.

    Returns:
        (b, h, 1, t, t), zero above the diagonal, in B's dtype.
    """
    transition, length = transition.to(torch.float64), B_bthn.shape[1]
    columns, rows = B_bthn.double()[..., None].unbind(1), C_bthn.double()[..., None, :].unbind(1)
    carried, scores = torch.zeros_like(columns[0][..., :0]), []
    for time in range(length):
        carried = torch.cat([transition.step(carried, time), columns[time]], dim=-1)
        scores.append(F.pad((rows[time] @ carried).squeeze(-2), (0, length - 1 - time)))
    return torch.stack(scores, dim=-2)[:, :, None].to(B_bthn.dtype)
