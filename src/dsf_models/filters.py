"""Time-invariant systems used as filters: of a finite window, two-sided, or both.

    y_i = Σ_{0<=l<=U} K_l u_{i-l} + Σ_{1<=l<=U} K'_l u_{i+l}        K_l = C Λ^l B + D δ_{l0}        K'_l = C' Λ^{l-1} B

The second sum runs over the sequence from its end: the same Λ and B, a read-out C' of its own, so that the filter need
not be even (C' = C Λ makes it so). It starts one step late, so that lag 0 is counted once.

Letters: b batch, t time, h heads, n states per channel, p head width; l lag, U window.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .system import DSFSystem, DSFSystemError, Spectrum, SystemMatrices, check_window

__all__ = ["FilterSystem", "mirror"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FilterSystem:
    """A time-invariant system used as a filter: of finite window, two-sided, or both.

    Raises:
        DSFSystemError: a part depends on the time or on the batch row, is normalised or has other inputs, the backward
            one has a D, or the window holds no lag.
    """

    forward: DSFSystem
    """The system (Λ, B, C, D) of lags l >= 0."""
    backward: DSFSystem | None = None
    """The system (Λ, B, C') of lags below 0, at the same inputs in the same order; None for a causal filter."""
    window: int | None = None
    """Largest lag U: the kernel is exactly 0 beyond it; None for an infinite window."""

    def __post_init__(self) -> None:
        _check_time_invariant("forward", self.forward)
        if self.backward is not None:
            _check_time_invariant("backward", self.backward)
            if self.backward.u.shape != self.forward.u.shape:
                raise DSFSystemError(
                    f"backward.u has shape {tuple(self.backward.u.shape)}; give the forward system's inputs, "
                    f"{tuple(self.forward.u.shape)}."
                )
            if self.backward.D is not None:
                raise DSFSystemError("backward.D is given, but lag 0 is the forward system's: give D to that one.")
        check_window(self.window, "give the largest lag, or None for no window.")

    @property
    def u(self) -> Tensor:
        """Inner input, (b, t, h, p)."""
        return self.forward.u

    @property
    def starts(self) -> Tensor | None:
        """(b, t) True where a packed document starts, or None."""
        return self.forward.starts

    @property
    def lengths(self) -> Tensor | None:
        """(b,) number of real tokens of each row, or None."""
        return self.forward.lengths

    @property
    def length(self) -> int:
        """Number of steps t."""
        return self.forward.length

    @property
    def state_size(self) -> int:
        """Size of what runs along the sequence: N numbers a pass, or the U · d inputs of the delay line."""
        if self.window is not None:
            return self.window * self.u.shape[2] * self.u.shape[3]
        return self.forward.state_size + (0 if self.backward is None else self.backward.state_size)

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of the carried state: the delay line (b, U, h, p), or without a window that of the forward system."""
        batch, _, num_heads, head_dim = self.u.shape
        return self.forward.state_shape if self.window is None else (batch, self.window, num_heads, head_dim)

    def to(self, dtype: torch.dtype) -> "FilterSystem":
        """Return the filter with every floating-point tensor in `dtype`."""
        backward = None if self.backward is None else self.backward.to(dtype)
        return replace(self, forward=self.forward.to(dtype), backward=backward)

    def mirrored(self) -> DSFSystem:
        """Return the backward system in the order that it runs in: each row from its last real token, one step late."""
        system = self.backward
        starts = None
        if self.starts is not None:
            starts = mirror(F.pad(self.starts[:, 1:], (0, 1)), self.lengths)
        late = F.pad(mirror(system.u, self.lengths)[:, :-1], (0, 0, 0, 0, 1, 0))
        if starts is not None:
            late = late.masked_fill(starts[..., None, None], 0.0)
        return replace(system, u=late, starts=starts)

    def transfer_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return Φ: y_i = Σ_j Φ_ij u_j with Φ_ij = K_{i-j} for j <= i, K'_{j-i} for j > i, and 0 beyond the window.

        Returns:
            (b, h, t, t), (b, h, p, t, t) or (b, 1, d, d, t, t), in `dtype`; see `DSFSystem.transfer_matrix`.
        """
        phi = self._cut(self.forward.transfer_matrix(dtype))
        if self.backward is None:
            return phi
        behind = self._behind(dtype)
        if phi.ndim != behind.ndim:
            phi, behind = (x if x.ndim == 5 else x.unsqueeze(2) for x in (phi, behind))
        return phi + behind

    def _behind(self, dtype: torch.dtype) -> Tensor:
        """Return the part of Φ above the diagonal."""
        mirrored = self.mirrored()
        # Column j of the late system is fed by token j - 1; what falls on the first token of a document is none.
        phi = mirrored.transfer_matrix(dtype)
        if mirrored.starts is not None:
            phi = phi.masked_fill(mirrored.starts.view(phi.shape[0], *(1,) * (phi.ndim - 2), -1), 0.0)
        phi = self._cut(F.pad(phi[..., 1:], (0, 1)))
        rows_first = mirror(phi.movedim(-2, 1), self.lengths).movedim(1, -2)
        return mirror(rows_first.movedim(-1, 1), self.lengths).movedim(1, -1)

    def _cut(self, phi: Tensor) -> Tensor:
        return phi if self.window is None else phi.triu(-self.window)

    def eigenvalues(self, realisation: str | None = None) -> Spectrum:
        """Return the eigenvalues of Λ, which both passes share; see `DSFSystem.eigenvalues`."""
        return self.forward.eigenvalues(realisation)

    def matrices(self) -> SystemMatrices:
        """Raise: a two-sided or windowed filter is not one recurrence over (Λ, B, C, D).

        Raises:
            DSFSystemError: always; the remedy is the matrices of its `forward` and `backward` systems.
        """
        raise DSFSystemError(
            "a two-sided or windowed filter is no single recurrence: use forward.matrices() and backward.matrices()."
        )


def mirror(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the order of each row's real tokens, which stand at its front: (b, t, …) -> (b, t, …); pads stay."""
    if lengths is None:
        return x.flip(1)
    slots = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths[:, None] - 1 - slots
    index = torch.where(mirrored < 0, slots, mirrored)
    return x.gather(1, index.view(*index.shape, *(1,) * (x.ndim - 2)).expand_as(x))


def _check_time_invariant(name: str, system: DSFSystem) -> None:
    if not isinstance(system, DSFSystem):
        raise DSFSystemError(f"{name} is a {type(system).__name__}: a filter is made of `DSFSystem`s.")
    system.require_time_invariant("a filter")
    for name in ("B", "C", "input_gain", "output_gain", "log_normalizer"):
        value = getattr(system, name)
        if value is not None and value.shape[0] != 1:
            raise DSFSystemError(f"{name} has shape {tuple(value.shape)}: a filter takes one for all rows, (1, 1, …).")
