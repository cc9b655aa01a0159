"""Constant Λ with complex eigenvalues in real numbers: 2 x 2 rotation-scaling blocks, or plain real eigenvalues.

    Λ = blkdiag_k ρ_k [[cos ω_k, -sin ω_k], [sin ω_k, cos ω_k]]        λ_k = ρ_k e^{iω_k} and its conjugate

States 2k and 2k + 1 hold real and imaginary part of the complex state k.

Letters: b batch, t time, h heads, n states per channel, p head width, m eigenvalues given (n / 2 pairs or n real ones).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LOG_ZERO, DSFSystemError, Transition

__all__ = ["Rotation", "rotate"]


@dataclass(frozen=True, eq=False)
class Rotation(Transition):
    """Λ_i = Λ, constant and diagonal over the complex numbers: λ_k = exp(log_radius_k + i angle_k) (S4D, S5, LRU).

    Without `angle` the eigenvalues are real, λ_k = sign_k · exp(log_radius_k), one a state.
    """

    name: ClassVar[str] = "rotation"

    log_radius: Tensor
    """log |λ|, (h|1, m) with m = n / 2, or m = n without angle; -inf means λ = 0, 0 a rotation that never fades."""
    angle: Tensor | None = None
    """ω in radians, in the shape of `log_radius`; None for real eigenvalues."""
    sign: Tensor | None = None
    """Sign of real eigenvalues, +1 or -1 in the shape of `log_radius`; None where none is negative."""
    starts: Tensor | None = None
    """(b, t) True where Λ is 0 instead; written by `mask` alone."""
    padded: Tensor | None = None
    """(b|1, t) True where Λ is 1 instead; written by `mask` and `pad` alone."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless the eigenvalues fit the heads and states."""
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
        if self.starts is not None or self.padded is not None:
            raise DSFSystemError("starts and padded belong to the system: give it starts and lengths instead.")

    @property
    def time_invariant(self) -> bool:
        """True, unless document starts or pads are written into it."""
        return self.starts is None and self.padded is None

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
        if self.starts is not None:
            moved = moved.masked_fill(self.starts[:, time, None, None, None], 0.0)
        if self.padded is not None:
            moved = torch.where(self.padded[:, time, None, None, None], state, moved)
        return state.copy_(moved) if in_place else moved

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ^e b_j, e the steps from j to i, for j <= i: (b, h, 1, t, t)."""
        steps, document = self._clock(B_bthn.shape[1])
        gaps = (steps[:, :, None] - steps[:, None, :]).clamp(min=0)
        re, im = (None if x is None else x.movedim(2, 0).to(B_bthn.dtype) for x in self.powers(gaps))
        B, C = B_bthn.permute(0, 2, 3, 1)[..., None, :], C_bthn.permute(0, 2, 3, 1)[..., None]
        if im is None:
            weights = (re * C * B).sum(2)
        else:
            (b_re, b_im), (c_re, c_im) = (x.unflatten(2, (-1, 2)).unbind(3) for x in (B, C))
            weights = (re * (c_re * b_re + c_im * b_im) + im * (c_im * b_re - c_re * b_im)).sum(2)
        same = document[:, :, None] == document[:, None, :]
        return weights.masked_fill(~same[:, None], 0.0).tril()[:, :, None]

    def _clock(self, length: int) -> tuple[Tensor, Tensor]:
        """Return how often Λ was applied, and the number of the document, at each step: (b|1, t) each."""
        moving = torch.ones(1, length, dtype=torch.bool, device=self.log_radius.device)
        if self.padded is not None:
            moving = ~self.padded
        starts = torch.zeros_like(moving) if self.starts is None else self.starts & moving
        return moving.long().cumsum(1), starts.long().cumsum(1)

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return the blocks of Λ side by side, (b, t, h, p, n, n)."""
        eye = torch.eye(state_size, dtype=torch.float64, device=self.log_radius.device)
        constant = self.orbit(eye.expand(1, num_heads, -1, -1), 2)[:, 1]
        blocks = constant[:, None].expand(batch, length, -1, -1, -1)
        if self.starts is not None:
            blocks = blocks.masked_fill(self.starts[..., None, None, None], 0.0)
        if self.padded is not None:
            blocks = torch.where(self.padded[..., None, None, None], eye, blocks)
        return blocks[:, :, :, None].expand(-1, -1, -1, head_dim, -1, -1)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return the n eigenvalues of each head, (b, t, h, n): λ_k at 2k and its conjugate at 2k + 1, or real ones."""
        re, im = self.powers(torch.ones((), device=self.log_radius.device))
        values = re if im is None else torch.stack([torch.complex(re, im), torch.complex(re, -im)], dim=-1).flatten(-2)
        values = values.expand(batch, length, num_heads, -1)
        if self.starts is not None:
            values = values.masked_fill(self.starts[..., None, None], 0.0)
        return values if self.padded is None else values.masked_fill(self.padded[..., None, None], 1.0)

    def narrow(self, start: int, length: int) -> Self:
        """Return itself, its document starts and pads restricted to `length` steps from `start`."""
        starts, padded = (None if x is None else x.narrow(1, start, length) for x in (self.starts, self.padded))
        return replace(self, starts=starts, padded=padded)

    def pad(self, before: int, after: int, length: int) -> Self:
        """Return the structure of `length` steps with steps of Λ = 1 added at both ends."""
        padded = self.padded
        if padded is None:
            padded = torch.zeros(1, length, dtype=torch.bool, device=self.log_radius.device)
        starts = None if self.starts is None else F.pad(self.starts, (before, after))
        return replace(self, starts=starts, padded=F.pad(padded, (before, after), value=True))

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Self:
        """Return the structure with Λ = 0 at document starts and Λ = 1 at pads."""
        return replace(self, starts=starts, padded=padded)


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
