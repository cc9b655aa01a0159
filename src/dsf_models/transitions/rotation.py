"""Constant Λ with complex eigenvalues in real numbers: 2 x 2 rotation-scaling blocks, or plain real eigenvalues.

    Λ = blkdiag_k ρ_k [[cos ω_k, -sin ω_k], [sin ω_k, cos ω_k]]        λ_k = ρ_k e^{iω_k} and its conjugate

States 2k and 2k + 1 hold real and imaginary part of the complex state k.

Letters: b batch, t time, h heads, n states per channel, p head width, m eigenvalues given (n / 2 pairs or n real ones).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .base import LOG_ZERO, DSFSystemError, Transition, log_and_sign, replaced, require_floats, scores_by_recursion
from .interrupted import Interrupted, interrupt

__all__ = ["Rotation", "rotate"]


@dataclass(frozen=True, eq=False)
class Rotation(Transition):
    """Λ_i = Λ, constant and diagonal over the complex numbers: λ_k = exp(log_radius_k + i angle_k) (S4D, S5, LRU).

    Without `angle` the eigenvalues are real, λ_k = sign_k · exp(log_radius_k), one a state.
    """

    name: ClassVar[str] = "rotation"
    time_invariant: ClassVar[bool] = True
    flops_per_entry: ClassVar[int] = 3

    log_radius: Tensor
    """log |λ|, (h|1, m) with m = n / 2, or m = n without angle; -inf means λ = 0, 0 a rotation that never fades."""
    angle: Tensor | None = None
    """ω in radians, in the shape of `log_radius`; None for real eigenvalues."""
    sign: Tensor | None = None
    """Sign of real eigenvalues, +1 or -1 in the shape of `log_radius`; None where none is negative."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless the eigenvalues fit the heads and states."""
        require_floats(log_radius=self.log_radius, angle=self.angle, sign=self.sign)
        shape = tuple(self.log_radius.shape)
        needed = f"({num_heads}|1, {state_size})" if self.angle is None else f"({num_heads}|1, {state_size} / 2)"
        per_pair = 1 if self.angle is None else 2
        if len(shape) != 2 or shape[0] not in (1, num_heads) or shape[1] * per_pair != state_size:
            raise DSFSystemError(
                f"log_radius has shape {shape}; give {needed}: one number for each real eigenvalue, "
                "or for each conjugate pair where there are angles."
            )
        for name, value in (("angle", self.angle), ("sign", self.sign)):
            if value is not None and value.shape != self.log_radius.shape:
                raise DSFSystemError(f"{name} has shape {tuple(value.shape)}; it must equal log_radius's {shape}.")
        if self.angle is not None and self.sign is not None:
            raise DSFSystemError("angle and sign are both given: a sign is an angle of π; leave sign out.")

    # ---- powers -----------------------------------------------------------------------------------------------------

    def powers(self, exponents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return Re λ^e and Im λ^e (None for real eigenvalues) in float64, (h|1, m, *exponents.shape).

        Args:
            exponents: whole numbers e >= 0. Float64 throughout: in float32, e · angle alone errs by 1e-5.
        """
        e = exponents.to(torch.float64)
        around = (..., *(None,) * e.ndim)
        radius = (e * self.log_radius.double().clamp(min=LOG_ZERO)[around]).exp()
        if self.angle is not None:
            phase = e * self.angle.double()[around]
            return radius * phase.cos(), radius * phase.sin()
        if self.sign is not None:
            radius = torch.where(exponents % 2 == 1, self.sign.double()[around], 1.0) * radius
        return radius, None

    def orbit(self, state: Tensor, length: int) -> Tensor:
        """Return Λ^e S for e = 0 … length - 1, from S (b, h, n, p): (b, length, h, n, p)."""
        re, im = self.powers(torch.arange(length, device=self.log_radius.device))
        re, im = (None if x is None else x.permute(2, 0, 1)[..., None].to(state.dtype) for x in (re, im))
        return rotate(state[:, None], re, im)

    # ---- the interface of every structure ---------------------------------------------------------------------------

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return Λ S. It multiplies in float64: rounded, a constant λ would err alike at every step."""
        re, im = self.powers(torch.ones((), device=self.log_radius.device))
        re, im = (None if x is None else x[..., None] for x in (re, im))
        moved = rotate(state.double(), re, im).to(state.dtype)
        return state.copy_(moved) if in_place else moved

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ^{i-j} b_j for j <= i: (b, h, 1, t, t)."""
        return scores_by_recursion(self, B_bthn, C_bthn)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return the blocks of Λ side by side, (b, t, h, p, n, n)."""
        eye = torch.eye(state_size, dtype=torch.float64, device=self.log_radius.device)
        Lambda = self.orbit(eye.expand(1, num_heads, -1, -1), 2)[:, 1]
        return Lambda[:, None, :, None].expand(batch, length, -1, head_dim, -1, -1)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return the n eigenvalues of each head, (b, t, h, n): λ_k at 2k and its conjugate at 2k + 1, or real ones."""
        re, im = self.powers(torch.ones((), device=self.log_radius.device))
        values = re if im is None else torch.stack([torch.complex(re, im), torch.complex(re, -im)], dim=-1).flatten(-2)
        return values.expand(batch, length, num_heads, -1)

    def with_eigenvalues(self, function: Callable[[Tensor], Tensor], u: Tensor) -> "Rotation":
        """Return the structure with each λ replaced; the conjugate of a pair follows its first eigenvalue.

        See `Transition.with_eigenvalues`; the new ones are constant like the old.
        """
        values = self.eigenvalues(1, 1, u.shape[2])
        found = replaced(values, function)
        if found is None:
            return self
        found, dtype = found.expand_as(values)[0, 0], self.log_radius.dtype
        if self.angle is None:
            log_radius, sign = log_and_sign(found, dtype)
            return Rotation(log_radius, sign=sign)
        first = found[..., ::2]
        return Rotation(log_and_sign(first.abs(), dtype)[0], first.angle().to(dtype))

    def narrow(self, start: int, length: int) -> Self:
        """Return itself: Λ does not depend on time."""
        return self

    def pad(self, before: int, after: int, length: int) -> Interrupted:
        """Return the structure of `length` steps with steps of Λ = 1 added at both ends."""
        return interrupt(self, None, None, length, self.log_radius.device).pad(before, after, length)

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Transition:
        """Return the structure with Λ = 0 where `starts` (b, t) and Λ = 1 where `padded` (b, t) hold."""
        given = starts if padded is None else padded
        return self if given is None else interrupt(self, starts, padded, given.shape[1], given.device)


def rotate(x: Tensor, re: Tensor, im: Tensor | None) -> Tensor:
    """Multiply pairs of real numbers by complex ones, or numbers by real ones.

    Args:
        x: (…, n, p), pairs side by side in n.
        re: real parts, (…, m, 1); m = n / 2, or n where `im` is None.
        im: imaginary parts in the shape of `re`, or None.

    Returns:
        (…, n, p).
    """
    if im is None:
        return re * x
    x_re, x_im = x.unflatten(-2, (-1, 2)).unbind(-2)
    return torch.stack([re * x_re - im * x_im, im * x_re + re * x_im], dim=-2).flatten(-3, -2)
