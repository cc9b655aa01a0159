"""Λ diagonal plus low rank and constant in time, the structure of S4, in real coordinates.

A complex mode x_k and its conjugate are one pair of real states (Re x_k, Im x_k), so that n states are n/2 modes, and a
complex number is a pair in the last dimension. Nothing here is ever diagonalised but for `DPLR.eigenvalues`.

Letters: b batch, t time, h heads, n states per channel, m = n/2 modes, p head width.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .base import DSFSystemError, Transition, require_floats, scores_by_recursion
from .interrupted import Interrupted, interrupt

__all__ = ["DPLR", "bilinear_dplr", "multiply_pairs"]

SPECTRUM_TOLERANCE = 1e-2
"""How far rounding may move an eigenvalue: at most ε · cond(V), by the theorem of Bauer and Fike where ‖Λ‖ <= 1."""


@dataclass(frozen=True, eq=False)
class DPLR(Transition):
    """Λ = diag(ρ) - w g^T for all steps, with ρ in conjugate pairs and one real rank-one term per head (S4)."""

    name: ClassVar[str] = "dplr"
    time_invariant: ClassVar[bool] = True
    flops_per_entry: ClassVar[int] = 7

    diagonal: Tensor
    """ρ as pairs (Re, Im), (h, n/2, 2): mode k turns and shrinks the states 2k and 2k + 1."""
    left: Tensor
    """w, (h, n)."""
    right: Tensor
    """g, (h, n)."""
    precision: torch.dtype | None = None
    """Dtype of the parameters that Λ was made from, whose rounding its eigenvalues feel; None for that of Λ."""

    def check(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> None:
        """Raise unless n is even and the parameters are (h, n/2, 2), (h, n) and (h, n)."""
        require_floats(diagonal=self.diagonal, left=self.left, right=self.right)
        if state_size % 2:
            raise DSFSystemError(
                f"B has {state_size} states per channel; a DPLR Λ has pairs of them: give an even number."
            )
        wanted = {
            "diagonal": (num_heads, state_size // 2, 2),
            "left": (num_heads, state_size),
            "right": (num_heads, state_size),
        }
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise DSFSystemError(f"{name} has shape {found}, but u and B ask for {shape}.")

    def step(self, state: Tensor, time: int, in_place: bool = False) -> Tensor:
        """Return ρ * S - w (g^T S), in O(n) a channel; in float64: a constant Λ would err alike at every step."""
        diagonal, left, right = (x.double() for x in (self.diagonal, self.left, self.right))
        wide = state.double()
        feedback_bh1p = (right[..., None] * wide).sum(-2, keepdim=True)
        turned = multiply_pairs(diagonal[..., None], wide.unflatten(-2, (-1, 2)), dim=-2).flatten(-3, -2)
        moved = torch.addcmul(turned, left[..., None], feedback_bh1p, value=-1).to(state.dtype)
        return state.copy_(moved) if in_place else moved

    def scores(self, B_bthn: Tensor, C_bthn: Tensor) -> Tensor:
        """Return c_i^T Λ^{i-j} b_j for j <= i: (b, h, 1, t, t)."""
        return scores_by_recursion(self, B_bthn, C_bthn)

    def orbit(self, state: Tensor, length: int) -> Tensor:
        """Return Λ^e S for e = 0 … length - 1 by doubling, from S (b|1, h, n, p): (b|1, length, h, n, p)."""
        power, states = self.dense(), state.double()[:, None]
        while states.shape[1] < length:
            states = torch.cat([states, power @ states], dim=1)
            power = power @ power
        return states[:, :length].to(state.dtype)

    def dense(self) -> Tensor:
        """Return Λ as matrices (h, n, n) in float64."""
        diagonal, left, right = (x.double() for x in (self.diagonal, self.left, self.right))
        n = left.shape[-1]
        eye_mn = torch.eye(n, dtype=torch.float64, device=left.device).unflatten(0, (-1, 2))
        turned = multiply_pairs(diagonal[..., None], eye_mn, dim=-2).flatten(-3, -2)
        return turned - left[..., :, None] * right[..., None, :]

    def blocks(self, batch: int, length: int, num_heads: int, state_size: int, head_dim: int) -> Tensor:
        """Return Λ, (b, t, h, p, n, n)."""
        return self.dense()[:, None].expand(batch, length, num_heads, head_dim, state_size, state_size)

    def eigenvalues(self, batch: int, length: int, num_heads: int) -> Tensor:
        """Return the n eigenvalues of Λ from its dense form, (b, t, h, n) in complex128.

        Raises:
            DSFSystemError: the eigenvectors V are so nearly dependent that rounding the parameters can move the
                eigenvalues by more than `SPECTRUM_TOLERANCE` (HiPPO-LegS: from 10 states on in float32, from 32 on in
                float64); the message gives cond(V).
        """
        values, condition = self._diagonalised()
        worst = condition.max().item() if condition.numel() else 1.0
        precision = self.precision or self.diagonal.dtype
        limit = SPECTRUM_TOLERANCE / torch.finfo(precision).eps
        if not worst <= limit:
            raise DSFSystemError(
                f"the eigenvalues of a DPLR Λ of {self.left.shape[-1]} states mean nothing: cond(V) = {worst:.1e} of "
                f"its eigenvectors is above {limit:.1e}, so that rounding its parameters to {precision} may move them "
                f"by more than {SPECTRUM_TOLERANCE}; look at transfer_matrix() or matrices(), or choose fewer states."
            )
        return values.expand(batch, length, -1, -1)

    def eigenvector_condition(self) -> Tensor:
        """Return the condition number of the eigenvectors of Λ, cond(V) (h,) in float64."""
        return self._diagonalised()[1]

    def _diagonalised(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues (h, n) and cond(V) (h,), V's columns of unit length."""
        values, vectors = torch.linalg.eig(self.dense())
        singular = torch.linalg.svdvals(vectors.detach())
        return values, singular[..., 0] / singular[..., -1]

    def narrow(self, start: int, length: int) -> Self:
        """Return itself: Λ does not depend on time."""
        return self

    def pad(self, before: int, after: int, length: int) -> Interrupted:
        """Return the structure of `length` steps with steps of Λ = 1 added at both ends."""
        return interrupt(self, None, None, length, self.left.device).pad(before, after, length)

    def mask(self, starts: Tensor | None, padded: Tensor | None) -> Transition:
        """Return the structure with Λ = 0 where `starts` (b, t) and Λ = 1 where `padded` (b, t) hold."""
        given = starts if padded is None else padded
        return self if given is None else interrupt(self, starts, padded, given.shape[1], given.device)


def bilinear_dplr(poles: Tensor, P: Tensor, B: Tensor, step: Tensor) -> tuple[DPLR, Tensor]:
    """Discretise x' = A x + B u, A = diag(poles) - P P^H (the modes with their conjugates), by the bilinear rule.

        Λ = (I - Δ/2 A)^{-1} (I + Δ/2 A)        B̄ = (I - Δ/2 A)^{-1} Δ B

    In real coordinates A = R - 2 q q^T, with R the turning and shrinking of each pair and q the pairs of P. The inverse
    is Woodbury's: with E = (I - Δ/2 R)^{-1}, e_k = 1 / (1 - Δ/2 pole_k), g = E^T q and w = 2Δ E q / (1 + Δ q^T E q),

        (I - Δ/2 A)^{-1} v = E v - w (g^T v) / 2        Λ = diag(2 e - 1) - w g^T

    so that Λ is diagonal plus low rank again. Where Re(poles) < 0 it is a contraction, ‖Λ‖ < 1.

    Args:
        poles: (h, m, 2) pairs with negative real parts.
        P: (h, m, 2) pairs.
        B: (h, m, 2) pairs.
        step: Δ > 0, (h,).

    Returns:
        Λ, and B̄ in the real coordinates (h, n), both worked out in float64.

    Source: the bilinear rule and Woodbury step of S4, Gu et al. 2022 (arXiv 2111.00396).
    """
    precision = poles.dtype
    poles, P, B, step = (x.double() for x in (poles, P, B, step))
    half = step[:, None] / 2
    real, imaginary = 1 - half * poles[..., 0], half * poles[..., 1]
    resolvent = torch.stack([real, imaginary], dim=-1) / (real.square() + imaginary.square())[..., None]
    q_hn, moved_hn = P.flatten(-2), multiply_pairs(resolvent, P).flatten(-2)
    right = multiply_pairs(resolvent * resolvent.new_tensor([1.0, -1.0]), P).flatten(-2)
    left = moved_hn * (2 * step / (1 + step * (q_hn * moved_hn).sum(-1)))[:, None]
    feedback_h1 = (right * B.flatten(-2)).sum(-1, keepdim=True)
    B_hn = step[:, None] * (multiply_pairs(resolvent, B).flatten(-2) - left * feedback_h1 / 2)
    return DPLR(2 * resolvent - resolvent.new_tensor([1.0, 0.0]), left, right, precision), B_hn


def multiply_pairs(x: Tensor, y: Tensor, dim: int = -1) -> Tensor:
    """Multiply complex numbers that are held as pairs (Re, Im) in the dimension `dim` of both."""
    (a, b), (c, d) = x.unbind(dim), y.unbind(dim)
    return torch.stack([a * c - b * d, a * d + b * c], dim=dim)
