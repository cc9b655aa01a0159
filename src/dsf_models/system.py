"""The Dynamical Systems Framework: one equation, and the choices (Λ, B, C, D) that make an architecture.

    h_i = Λ_i h_{i-1} + B_i u_i        y_i = C_i h_i + D_i u_i        h_{-1} = 0 unless a state is given

A `DSFSystem` is one realisation of the equation at given inputs, in factored form. Per head the state is an n x p
matrix S:

    S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

b_i, c_i are the factors of B_i, C_i that a head's channels share; the input gain s_i (Δ_i, input gates) belongs to
B_i and the output gain g_i to C_i. Where every channel drives every state (MIMO systems), B_i and C_i are constant
dense matrices instead, `input_map` and `output_map`. `DSFSystem.matrices` multiplies all of it out into the dense
matrices of the equation.

Letters: b batch, t time, h heads, g groups of heads that share B or C, n states per channel, p head width, d = h·p
inner width, N = d·n size of the whole state.

Source: Sieber et al. 2024, "Understanding the Differences in Foundation Models", section 3 (arXiv 2405.15731v3).
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .transitions import (
    DSFSystemError,
    Identity,
    Rotation,
    ScalarDecay,
    Transition,
    beyond,
    broadcasts,
    causal_mask,
    expand_groups,
    map_floats,
    nonzero,
    require_floats,
)

__all__ = [
    "DSFSystem",
    "DSFSystemError",
    "Identity",
    "Rotation",
    "ScalarDecay",
    "SoftmaxSystem",
    "Spectrum",
    "SystemMatrices",
    "Transition",
    "apply_transfer_matrix",
    "rescale_state",
]


MOST_MATRIX_BYTES = 2**33
"""What `DSFSystem.matrices` may take: beyond it a mistake is more likely than a wish."""


class Spectrum(NamedTuple):
    """Distinct eigenvalues of Λ_1 … Λ_{t-1} (Λ_0 multiplies the zero state and is left out), with their realisation.

    Eigenvalues of a time-varying system belong to a realisation, not to the input-output map: never compare two spectra
    whose `realisation` differs. Positions behind a row's last real token hold NaN.
    """

    values: Tensor
    """(b, t-1, h, …) in float64 or complex128; further dimensions where Λ differs within a head."""
    realisation: str
    """"native": the Λ that the engine applies. "normalised": λ_i = η_{i-1} / η_i, the normaliser η inside Λ and B."""


class SystemMatrices(NamedTuple):
    """Dense matrices of the equation; state index = (channel e)·n + a, channel e = head·p + position in the head."""

    Lambda: Tensor
    """(b, t, N, N)"""
    B: Tensor
    """(b, t, N, d)"""
    C: Tensor
    """(b, t, d, N)"""
    D: Tensor
    """(b, t, d, d)"""


# ---------------------------------------------------------------------------------------------------------------------
# Systems
# ---------------------------------------------------------------------------------------------------------------------


def _check_layout(starts: Tensor | None, lengths: Tensor | None, batch: int, length: int) -> None:
    if starts is not None and (tuple(starts.shape) != (batch, length) or starts.dtype != torch.bool):
        raise DSFSystemError(
            f"starts is {starts.dtype} of shape {tuple(starts.shape)}; give booleans ({batch}, {length}), one a token."
        )
    if lengths is not None and (tuple(lengths.shape) != (batch,) or lengths.dtype not in (torch.int32, torch.int64)):
        raise DSFSystemError(
            f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}; give integers ({batch},), one length a row."
        )


def check_window(window: int | None, remedy: str) -> None:
    """Raise unless a window is None or a whole number of at least 1.

    Raises:
        DSFSystemError: it is not.
    """
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise DSFSystemError(f"window={window!r} is no whole number of at least 1: {remedy}")


def _checked_realisation(realisation: str) -> str:
    if realisation not in ("native", "normalised"):
        raise DSFSystemError(f'realisation={realisation!r} is unknown: use "native" or "normalised".')
    return realisation


@dataclass(frozen=True, eq=False, kw_only=True)
class DSFSystem:
    """One realisation of the system at given inputs, in factored form: what an architecture chooses, and no more.

        S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

    Tensors broadcast over batch, time and the heads of a group; they are never expanded. With maps in place of B and C

        h_i = Λ h_{i-1} + input_map u_i        y_i = output_map h_i + D * u_i

    the d channels form one head that drives N states: its state is S (N, 1), and Λ must be constant.

    With `normalized` the read-out is divided by the summed weights of its row, η_i = Σ_j c_i^T Λ_i … Λ_{j+1} b_j s_j,
    so that Φ's rows sum to one; with `log_normalizer` by an η_i that is given.

    Raises:
        DSFSystemError: a tensor's shape or dtype does not fit; the message names the field, its shape and what it
            needs.
    """

    u: Tensor
    """Inner input, (b, t, h, p)."""
    transition: Transition
    """Structure and values of Λ."""
    B: Tensor | None = None
    """Input factors b_i, (b|1, t|1, g, n); g divides h."""
    C: Tensor | None = None
    """Output factors c_i, (b|1, t|1, g, n); g divides h."""
    input_map: Tensor | None = None
    """Constant dense B, (N, d), instead of factors; u then has one head of width d."""
    output_map: Tensor | None = None
    """Constant dense C, (d, N), beside `input_map`."""
    D: Tensor | None = None
    """Feed-through, (h,) or (h, p); None for none."""
    input_gain: Tensor | None = None
    """s_i, part of B_i, (b|1, t|1, h) or (b|1, t|1, h, p); None for 1."""
    output_gain: Tensor | None = None
    """g_i, part of C_i, (b|1, t|1, h) or (b|1, t|1, h, p); None for 1."""
    normalized: bool = False
    """Divide each row of Φ by its sum; the normaliser's running sum is one more column of the carried state."""
    log_normalizer: Tensor | None = None
    """log η_i of a normaliser that depends on the token alone, (b|1, t|1, h): the read-out is divided by η_i."""
    starts: Tensor | None = None
    """(b, t) True where a packed document starts: Λ_i = 0 there."""
    lengths: Tensor | None = None
    """(b,) number of real tokens at the front of each row; the steps behind them are pads: Λ = 1, B = 0, y = 0."""

    def __post_init__(self) -> None:
        if self.u.ndim != 4 or 0 in self.u.shape[1:] or not self.u.is_floating_point():
            raise DSFSystemError(
                f"u is {self.u.dtype} of shape {tuple(self.u.shape)}; it must be a floating-point tensor "
                "(batch, time, heads, head width) of at least one step, head and channel."
            )
        if not isinstance(self.transition, Transition):
            raise DSFSystemError(f"transition={self.transition!r} is no structure of Λ: give one of `transitions`.")
        if not isinstance(self.normalized, bool):
            raise DSFSystemError(f"normalized={self.normalized!r} is neither True nor False.")
        batch, length, num_heads, head_dim = self.u.shape
        if self.input_map is None and self.output_map is None:
            self._check_factors()
        else:
            self._check_maps()
        if self.D is not None and self.D.shape not in ((num_heads,), (num_heads, head_dim)):
            raise DSFSystemError(
                f"D has shape {tuple(self.D.shape)}; give ({num_heads},) or ({num_heads}, {head_dim})."
            )
        require_floats(D=self.D)
        if self.starts is not None or self.lengths is not None:
            _check_layout(self.starts, self.lengths, batch, length)
        self.transition.check(batch, length, num_heads, *self.state_shape[2:])

    def _check_factors(self) -> None:
        self._check_factor("B", self.B)
        self._check_factor("C", self.C)
        if self.B.shape[-1] != self.C.shape[-1]:
            raise DSFSystemError(
                f"B has {self.B.shape[-1]} states per channel and C has {self.C.shape[-1]}: the two must be equal."
            )
        for name in ("input_gain", "output_gain"):
            if (gain := getattr(self, name)) is not None:
                self._check_gain(name, gain)
        if self.log_normalizer is not None:
            self._check_normalizer(self.log_normalizer)
        if self.normalized:
            self._check_normalized()

    def _check_normalized(self) -> None:
        batch, length, num_heads, _ = self.u.shape
        if self.input_gain is not None and self.input_gain.ndim == 4:
            raise DSFSystemError(
                f"input_gain has shape {tuple(self.input_gain.shape)}, but a normalized system has one normaliser a "
                f"head: give one gain a head, ({batch}|1, {length}|1, {num_heads}), or multiply it into u."
            )
        if self.transition.per_channel:
            raise DSFSystemError(
                f"normalized is True, but Λ of structure {self.transition.name!r} differs between the channels of a "
                "head, which share one normaliser: leave normalized out."
            )

    def _check_maps(self) -> None:
        d, names = self.u.shape[3], ("input_map", "output_map")
        for name in ("B", "C", "input_gain", "output_gain", "log_normalizer"):
            if getattr(self, name) is not None:
                raise DSFSystemError(f"{name} is given beside input_map and output_map, which are all of B and C.")
        if self.normalized:
            raise DSFSystemError("normalized is True, but a system with input_map and output_map has no normaliser.")
        for name, value in ((name, getattr(self, name)) for name in names):
            if value is None:
                raise DSFSystemError(f"{name} is None: input_map and output_map come together.")
            self._check_dtype(name, value)
        shapes = tuple(self.input_map.shape), tuple(self.output_map.shape)
        if self.u.shape[2] != 1 or len(shapes[0]) != 2 or shapes[0][1] != d or shapes[1] != shapes[0][::-1]:
            raise DSFSystemError(
                f"input_map has shape {shapes[0]}, output_map {shapes[1]} and u {tuple(self.u.shape)}; give (N, d), "
                "(d, N) and (batch, time, 1, d)."
            )
        if not self.transition.time_invariant:
            raise DSFSystemError(f"Λ of structure {self.transition.name!r} depends on time: maps need a constant Λ.")

    def _check_factor(self, name: str, value: Tensor | None) -> None:
        if value is None:
            raise DSFSystemError(f"{name} is None: give the factors B and C, or input_map and output_map.")
        batch, length, num_heads, _ = self.u.shape
        shape = value.shape
        fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, length)
        if not fits or 0 in shape[2:] or num_heads % shape[2]:
            raise DSFSystemError(
                f"{name} has shape {tuple(shape)}, but u of shape {tuple(self.u.shape)} asks for "
                f"({batch}|1, {length}|1, groups dividing {num_heads}, states), at least one of both."
            )
        if value.dtype != self.u.dtype:
            self._check_dtype(name, value)

    def _check_dtype(self, name: str, value: Tensor) -> None:
        """Constant parameters may be more precise than a half-precision input: systems are evaluated in float32."""
        if value.dtype not in (self.u.dtype, torch.promote_types(self.u.dtype, torch.float32)):
            raise DSFSystemError(f"{name} is {value.dtype} and u is {self.u.dtype}: cast both to one dtype.")

    def _check_gain(self, name: str, value: Tensor) -> None:
        require_floats(**{name: value})
        if value.shape in (self.u.shape, self.u.shape[:-1]):
            return
        shape, full = tuple(value.shape), tuple(self.u.shape)
        if not (
            len(shape) in (3, 4) and all(map(broadcasts, shape[:2], full[:2])) and shape[2:] == full[2 : len(shape)]
        ):
            raise DSFSystemError(f"{name} has shape {shape}; give {full[:3]} or {full} (batch and time may be 1).")

    def _check_normalizer(self, value: Tensor) -> None:
        self._check_gain("log_normalizer", value)
        if value.ndim == 4 or self.normalized:
            raise DSFSystemError(
                f"log_normalizer has shape {tuple(value.shape)} and normalized is {self.normalized}: a "
                "system has one normaliser a head, its own sum (normalized=True) or a given one (b|1, t|1, h)."
            )

    # ---- sizes ------------------------------------------------------------------------------------------------------

    @property
    def num_heads(self) -> int:
        """Number of heads h."""
        return self.u.shape[2]

    @property
    def head_dim(self) -> int:
        """Head width p."""
        return self.u.shape[3]

    @property
    def length(self) -> int:
        """Number of steps t."""
        return self.u.shape[1]

    @property
    def state_size(self) -> int:
        """Size N = h·p·n of the whole state h_i (the summed normaliser, a gauge of C, is not counted)."""
        if self.input_map is not None:
            return self.input_map.shape[0]
        return self.num_heads * self.head_dim * self.B.shape[-1]

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of the carried head states: (b, h, n, p), p + 1 with a normaliser; (b, 1, N, 1) with maps."""
        batch, _, num_heads, head_dim = self.u.shape
        if self.input_map is not None:
            return batch, 1, self.input_map.shape[0], 1
        return batch, num_heads, self.B.shape[-1], head_dim + int(self.normalized)

    @property
    def time_invariant(self) -> bool:
        """Whether Λ, B and C are the same at every step, so that Φ is Toeplitz (within documents, pads aside)."""
        varying = (self.B, self.C, self.input_gain, self.output_gain, self.log_normalizer)
        constant = all(x is None or x.shape[1] == 1 for x in varying)
        return constant and not self.normalized and self.transition.time_invariant

    # ---- pieces that kernels share ----------------------------------------------------------------------------------

    @property
    def padded(self) -> Tensor | None:
        """(b, t) True behind each row's last real token, or None where every token is real."""
        return None if self.lengths is None else beyond(self.lengths, self.length)

    def drive(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the driven input s_i * u_i, zero at pads, with the normaliser's column: (b, t, h, p or p + 1).

        It is computed in `dtype`, by default u's.
        """
        drive = self.u if dtype is None else self.u.to(dtype)
        if self.normalized:
            drive = torch.cat([drive, torch.ones_like(drive[..., :1])], dim=-1)
        if self.input_gain is not None:
            drive = drive * _as_channel_gain(self.input_gain).to(drive.dtype)
        padded = self.padded
        return drive if padded is None else drive.masked_fill(padded[..., None, None], 0.0)

    def inflow(self) -> Tensor:
        """Return B_i u_i, what each step adds to the state: (b, t, h, n, p), or (b, t, 1, N, 1) with maps."""
        drive = self.drive()
        if self.input_map is not None:
            return (drive @ self.input_map.T)[..., None]
        return expand_groups(self.B, self.num_heads)[..., :, None] * drive[..., None, :]

    def outflow(self, states: Tensor) -> Tensor:
        """Return the raw read-out of the states after each step, in the shape of `inflow`: (b, t, h, p or p + 1)."""
        if self.output_map is not None:
            return states[..., 0] @ self.output_map.T
        return (expand_groups(self.C, self.num_heads)[..., None, :] @ states).squeeze(-2)

    def effective_transition(self) -> Transition:
        """Return Λ with document starts (Λ = 0) and pads (Λ = 1) written into it."""
        if self.starts is None and self.lengths is None:
            return self.transition
        return self.transition.mask(self.starts, self.padded)

    def read_gain(self) -> Tensor | None:
        """Return g_i / η_i with a given normaliser η_i, else g_i: (b|1, t|1, h[, p]), or None for 1."""
        if self.log_normalizer is None:
            return self.output_gain
        gain = (-self.log_normalizer).exp()
        if self.output_gain is None:
            return gain
        return self.output_gain * (gain if self.output_gain.ndim == 3 else gain[..., None])

    def read(self, raw: Tensor) -> Tensor:
        """Turn the raw read-out S_i^T c_i (b, t, h, p or p + 1) into y_i: normaliser, gain, feed-through, pads."""
        if self.normalized:
            raw = raw[..., :-1] / nonzero(raw[..., -1:])
        gain = self.read_gain()
        if gain is not None:
            raw = raw * _as_channel_gain(gain).to(raw.dtype)
        if self.D is not None:
            raw = torch.addcmul(raw, self.u, _as_channel_gain(self.D).to(raw.dtype))
        padded = self.padded
        return raw if padded is None else raw.masked_fill(padded[..., None, None], 0.0)

    def narrow(self, start: int, length: int) -> "DSFSystem":
        """Return the system restricted to `length` steps from `start`; carry the state across yourself."""

        def cut(value: Tensor | None) -> Tensor | None:
            return value if value is None or value.shape[1] == 1 else value.narrow(1, start, length)

        lengths = None if self.lengths is None else (self.lengths - start).clamp(0, length)
        return replace(
            self,
            u=self.u.narrow(1, start, length),
            B=cut(self.B),
            C=cut(self.C),
            transition=self.transition.narrow(start, length),
            input_gain=cut(self.input_gain),
            output_gain=cut(self.output_gain),
            log_normalizer=cut(self.log_normalizer),
            starts=None if self.starts is None else self.starts.narrow(1, start, length),
            lengths=lengths,
        )

    def to(self, dtype: torch.dtype) -> "DSFSystem":
        """Return the system with every floating-point tensor in `dtype`."""
        return map_floats(self, dtype)

    def with_layout(self, starts: Tensor | None, lengths: Tensor | None) -> "DSFSystem":
        """Return the system with document starts (b, t) and numbers of real tokens (b,) written into it."""
        return self if starts is None and lengths is None else replace(self, starts=starts, lengths=lengths)

    # ---- what theory asks for ---------------------------------------------------------------------------------------

    def transfer_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return Φ, the map from inputs to outputs, with y_i = Σ_{j<=i} Φ_ij u_j.

            Φ_ij = C_i Λ_i … Λ_{j+1} B_j   (j < i)        Φ_ii = C_i B_i + D_i        Φ_ij = 0   (j > i)

        Returns:
            In `dtype`: (b, h, t, t) where a head's channels share it; (b, h, p, t, t) where they do not; with maps,
            where channels mix, (b, 1, d, d, t, t): output channel, input channel, i, j. `apply_transfer_matrix`
            applies each of them.

        Source: the equation of Sieber et al. 2024, section 3, unrolled to y = Φ u.
        """
        system = self.to(dtype)
        phi = system._driven_weights()
        if self.normalized:
            phi = phi / nonzero(phi.sum(-1, keepdim=True))
        gain = system.read_gain()
        if gain is not None:
            phi = phi * _time_last(gain)[..., :, None]
        if system.D is not None:
            now = torch.eye(self.length, dtype=phi.dtype, device=phi.device)
            phi = phi + system._feed_through(phi)[..., None, None] * now
        if self.lengths is not None:
            padded = self.padded.view(-1, *(1,) * (phi.ndim - 3), self.length)
            phi = phi.masked_fill(padded[..., :, None] | padded[..., None, :], 0.0)
        return phi.squeeze(2) if self._shared_by_channels(phi) else phi

    def kernel(self, length: int) -> Tensor:
        """Return the kernel K of a time-invariant system, with y_i = Σ_{j<=i} K_{i-j} u_j and Φ_ij = K_{i-j}.

            K_0 = C B + D        K_t = C Λ^t B   (t > 0)

        Args:
            length: number of lags t.

        Returns:
            (b, h, length), (b, h, p, length) or (b, 1, d, d, length) in float64, channels as in `transfer_matrix`.

        Raises:
            DSFSystemError: the system depends on time.
        """
        self.require_time_invariant("kernel")
        system = self.to(torch.float64)
        kernel = system.impulse_response(length)
        for gain in (system.input_gain, system.read_gain()):
            kernel = kernel if gain is None else kernel * _time_last(gain)
        if system.D is not None:
            now = torch.arange(length, device=kernel.device) == 0
            kernel = kernel + system._feed_through(kernel[..., None])[..., None] * now
        kernel = kernel.expand(self.u.shape[0], *kernel.shape[1:])
        return kernel.squeeze(2) if self._shared_by_channels(kernel[..., None]) else kernel

    def impulse_response(self, length: int) -> Tensor:
        """Return c^T Λ^t b (gains and D aside) for constant factors: (b|1, h, 1, length), or (1, 1, d, d, length)."""
        if self.input_map is not None:
            orbit = self.transition.orbit(self.input_map.T[:, None, :, None], length)
            return (orbit[:, :, 0, :, 0] @ self.output_map.T).permute(2, 0, 1)[None, None]
        b, c = (expand_groups(x, self.num_heads)[:, 0] for x in (self.B, self.C))
        orbit = self.transition.orbit(b[..., None], length)
        return torch.einsum("bhn,bthn->bht", c, orbit[..., 0])[:, :, None]

    def require_time_invariant(self, what: str) -> None:
        """Raise unless Λ, B, C and gains are constant.

        Raises:
            DSFSystemError: `what` was asked of a system that depends on time.
        """
        if not self.time_invariant:
            raise DSFSystemError(
                f"{what} needs a time-invariant system, but Λ ({self.transition.name}), B, C, a gain or the normaliser "
                "depends on time: use transfer_matrix() for Φ, or another mode of the engine."
            )

    def _driven_weights(self) -> Tensor:
        """Return c_i^T Λ_i … Λ_{j+1} b_j s_j, (b, h, p, t, t), with p = 1 where a head's channels share Λ and s.

        (b, 1, d, d, t, t) with maps.
        """
        batch, length, num_heads, _ = self.u.shape
        if self.time_invariant:
            weights = self.toeplitz(self.impulse_response(length))
        else:
            B_bthn, C_bthn = (expand_groups(x, num_heads).expand(batch, length, -1, -1) for x in (self.B, self.C))
            weights = self.effective_transition().scores(B_bthn, C_bthn)
        return weights if self.input_gain is None else weights * _time_last(self.input_gain)[..., None, :]

    def toeplitz(self, kernel: Tensor) -> Tensor:
        """Spread a kernel (b|1, …, t) over rows i and columns j of one document: K_{i-j} in (b, …, t, t)."""
        batch, length = self.u.shape[:2]
        time = torch.arange(length, device=kernel.device)
        weights = kernel[..., (time[:, None] - time).clamp(min=0)].tril()
        weights = weights.expand(batch, *weights.shape[1:])
        if self.starts is None:
            return weights
        document = self.starts.long().cumsum(1).view(batch, *(1,) * (kernel.ndim - 2), length)
        return weights.masked_fill(document[..., :, None] != document[..., None, :], 0.0)

    def _feed_through(self, phi: Tensor) -> Tensor:
        """Return D for the channel dimensions of Φ: (h, p or 1), or (1, d, d) where channels mix."""
        D = _as_channel_gain(self.D)
        return D if phi.ndim == 5 else torch.diag_embed(D.expand(1, self.head_dim))

    def _shared_by_channels(self, phi: Tensor) -> bool:
        per_channel = any(x is not None and x.ndim == 4 for x in (self.input_gain, self.output_gain))
        return phi.ndim == 5 and phi.shape[2] == 1 and not per_channel and (self.D is None or self.D.ndim == 1)

    @property
    def has_normalizer(self) -> bool:
        """Whether the read-out is divided by a normaliser η_i, a sum of weights or a given one."""
        return self.normalized or self.log_normalizer is not None

    def normalizer(self) -> Tensor:
        """Return η_i, (b, t, h) in float64; pads mean nothing.

        It is Σ_{j<=i} c_i^T Λ_i … Λ_{j+1} b_j s_j from a zero state, or the one that `log_normalizer` gives.

        Raises:
            DSFSystemError: the system is not normalised.
        """
        if self.log_normalizer is not None:
            return self.log_normalizer.double().exp().expand(self.u.shape[:3])
        if not self.normalized:
            raise DSFSystemError(
                'normalized is False, so that there is no η: use realisation="native", or transfer_matrix() for Φ.'
            )
        return self.to(torch.float64)._driven_weights().sum(-1).squeeze(2).transpose(1, 2)

    def _normalizer_ratios(self) -> Tensor:
        """Return η_{i-1} / η_i, (b, t-1, h) in float64."""
        if self.log_normalizer is not None:
            log_eta = self.log_normalizer.double().expand(self.u.shape[:3])
            return (log_eta[:, :-1] - log_eta[:, 1:]).exp()
        eta = self.normalizer()
        return eta[:, :-1] / nonzero(eta[:, 1:])

    def eigenvalues(self, realisation: str | None = None) -> Spectrum:
        """Return the distinct eigenvalues of Λ_1 … Λ_{t-1} in a named realisation.

        Args:
            realisation: "native" (the Λ that the engine applies; attention then has λ = 1) or "normalised" (η inside Λ:
                λ_i = η_{i-1} / η_i, the papers' form of attention). Default: "normalised" where the system is, else
                "native".

        Returns:
            `Spectrum` with values (b, t-1, h); at a document start λ = 0.

        Raises:
            DSFSystemError: unknown realisation, or "normalised" asked of a system without normaliser.

        Source: the Λ_i of Sieber et al. 2024 is "normalised" for attention. That Λ belongs to a realisation is a
        general fact of time-varying systems (see `rescale`).
        """
        realisation = _checked_realisation(realisation or ("normalised" if self.has_normalizer else "native"))
        batch, length, num_heads, _ = self.u.shape
        values = self.effective_transition().eigenvalues(batch, length, num_heads)[:, 1:].to(self.u.device)
        within = (1,) * (values.ndim - 3)
        if realisation == "normalised":
            ratios = self._normalizer_ratios().view(batch, length - 1, num_heads, *within)
            values = torch.where(values == 0, values, values * ratios)
        if self.lengths is not None:
            values = values.masked_fill(self.padded[:, 1:].view(batch, length - 1, 1, *within), math.nan)
        return Spectrum(values, realisation)

    def matrices(self) -> SystemMatrices:
        """Return the dense Λ_i, B_i, C_i, D_i of the equation in float64 (small sizes only: N x N entries a step).

        Gains are multiplied out: s_i stands in B_i, g_i and 1/η_i (from a zero state) in C_i. Φ built from them equals
        `transfer_matrix`.

        Raises:
            DSFSystemError: they would take more than `MOST_MATRIX_BYTES`.
        """
        self._check_matrix_size()
        system = self.to(torch.float64)
        batch, length, num_heads, head_dim = self.u.shape
        n, width = self.state_shape[2], 1 if self.input_map is not None else head_dim
        blocks = (
            system.effective_transition().blocks(batch, length, num_heads, n, width).to(self.u.device).flatten(2, 3)
        )
        real = torch.ones(batch, length, dtype=torch.float64, device=self.u.device)
        real = real if self.lengths is None else real.masked_fill(self.padded, 0.0)
        B, C = (system.input_map, system.output_map) if self.input_map is not None else system._dense_factors()
        feed = torch.zeros(1, dtype=torch.float64, device=self.u.device) if system.D is None else system.D
        feed = _as_channel_gain(feed).expand(num_heads, head_dim).reshape(-1)
        return SystemMatrices(
            Lambda=_block_diagonal(blocks),
            B=real[..., None, None] * B,
            C=real[..., None, None] * C,
            D=torch.diag_embed(real[..., None] * feed),
        )

    def _check_matrix_size(self) -> None:
        batch, length, num_heads, head_dim = self.u.shape
        N, d = math.prod(self.state_shape[1:3]) * (1 if self.input_map is not None else head_dim), num_heads * head_dim
        size = 8 * batch * length * (N + d) ** 2
        if size > MOST_MATRIX_BYTES:
            raise DSFSystemError(
                f"the dense matrices of N = {N} states and d = {d} channels at {batch} x {length} steps take "
                f"{size / 2**30:.0f} GiB: use transfer_matrix(), or fewer steps (narrow) of a smaller layer."
            )

    def _dense_factors(self) -> tuple[Tensor, Tensor]:
        """Return B (b, t, N, d) and C (b, t, d, N) with gains and normaliser multiplied out."""
        gain_in, gain_out = (_expand_gain(x, self.u) for x in (self.input_gain, self.read_gain()))
        if self.normalized:
            gain_out = gain_out / nonzero(self.normalizer()).repeat_interleave(self.head_dim, dim=2)
        B_btdn, C_btdn = self._per_channel(self.B) * gain_in[..., None], self._per_channel(self.C) * gain_out[..., None]
        return _block_diagonal(B_btdn[..., None]), _block_diagonal(C_btdn[..., None, :])

    def _per_channel(self, factor: Tensor) -> Tensor:
        batch, length, num_heads, head_dim = self.u.shape
        return expand_groups(factor, num_heads).expand(batch, length, -1, -1).repeat_interleave(head_dim, dim=2)

    def rescale(self, T: Tensor) -> "DSFSystem":
        """Return the realisation (T_i Λ_i T_{i-1}^{-1}, T_i B_i, C_i T_i^{-1}): other eigenvalues, the same Φ.

        An initial state S becomes `rescale_state(S, T)`.

        Args:
            T: T_{-1}, T_0 … T_{t-1}, one positive scalar per head: (b, t + 1, h).

        Raises:
            DSFSystemError: wrong shape, or an entry that is not positive and finite; or Λ is not a scalar per head.

        Source: gauge freedom of a time-varying realisation (change of basis of the state at every step).
        """
        self._check_gauge(T)
        if not isinstance(self.transition, Identity | ScalarDecay):
            raise DSFSystemError(
                f"rescale by a scalar per head is not written for Λ of structure {self.transition.name!r}."
            )
        log_T = T.double().log()
        log_decay, sign = log_T[:, 1:] - log_T[:, :-1], None
        if isinstance(self.transition, ScalarDecay):
            log_decay = log_decay + self.transition.log_decay.double()
            sign = self.transition.sign
        forward = T[:, 1:, :, None].to(self.u.dtype)
        return replace(
            self,
            transition=ScalarDecay(log_decay, None if sign is None else sign.expand_as(log_decay)),
            B=expand_groups(self.B, self.num_heads) * forward,
            C=expand_groups(self.C, self.num_heads) / forward,
        )

    def _check_gauge(self, T: Tensor) -> None:
        batch, length, num_heads, _ = self.u.shape
        if tuple(T.shape) != (batch, length + 1, num_heads):
            raise DSFSystemError(
                f"T has shape {tuple(T.shape)}; give ({batch}, {length + 1}, {num_heads}): T_{{-1}} … T_{{t-1}} a head."
            )
        rounded = T.to(self.u.dtype)
        if not bool(((rounded > 0) & rounded.isfinite()).all()):
            raise DSFSystemError(
                f"T holds an entry that is not positive and finite in u's {self.u.dtype}: a change of basis must be "
                "invertible."
            )


def rescale_state(state: Tensor, T: Tensor) -> Tensor:
    """Return T_{-1} S: the initial head states (b, h, n, p) of a system rescaled by T (b, t + 1, h)."""
    return T[:, 0, :, None, None].to(state.dtype) * state


def _as_channel_gain(gain: Tensor) -> Tensor:
    """View a gain (…, h) or (…, h, p) so that it multiplies (…, h, p); D and time-varying gains alike."""
    return gain[..., None] if gain.ndim in (1, 3) else gain


def _time_last(gain: Tensor) -> Tensor:
    """Move time last: (b, t, h[, p]) -> (b, h, p or 1, t), ready to scale Φ's rows or columns."""
    return _as_channel_gain(gain).movedim(1, -1)


def _expand_gain(gain: Tensor | None, u: Tensor) -> Tensor:
    full = torch.ones_like(u) if gain is None else _as_channel_gain(gain).expand_as(u)
    return full.flatten(2)


def _block_diagonal(blocks: Tensor) -> Tensor:
    """Lay blocks (…, e, r, s) along a diagonal: (…, e·r, e·s)."""
    eye = torch.eye(blocks.shape[-3], dtype=blocks.dtype, device=blocks.device)
    return torch.einsum("...ers,ef->...erfs", blocks, eye).flatten(-4, -3).flatten(-2)


def apply_transfer_matrix(phi: Tensor, u: Tensor) -> Tensor:
    """Return y = Φ u: y_i = Σ_j Φ_ij u_j.

    Args:
        phi: (b, h, t, t), (b, h, p, t, t) or (b, h, p, p, t, t), as `DSFSystem.transfer_matrix` returns it.
        u: inner inputs, (b, t, h, p).

    Returns:
        (b, t, h, p).
    """
    equation = {4: "bhij,bjhp->bihp", 5: "bhpij,bjhp->bihp", 6: "bhpqij,bjhq->bihp"}[phi.ndim]
    return torch.einsum(equation, phi, u)


def _zero_pads(phi: Tensor, padded: Tensor) -> Tensor:
    """Zero the rows and columns of Φ (…, t, t) where `padded` (…, t) holds."""
    return phi.masked_fill(padded[..., :, None] | padded[..., None, :], 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax attention: a system with an infinite state
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxSystem:
    """Softmax attention as a system: infinitely many states, so Φ and λ in closed form instead of matrices.

        Φ_ij = exp(s_ij) / η_i      η_i = Σ_{l<=i} exp(s_il)      s_ij = scale · q_i^T k_j      λ_i = η_{i-1} / η_i

    `truncated(P)` is the finite `DSFSystem` whose features are the Taylor monomials of exp up to order P.

    Source: Sieber et al. 2024: softmax is separable attention with infinite-dimensional φ = ψ.
    """

    q: Tensor
    """Queries, (b, t, h, m)."""
    k: Tensor
    """Keys, (b, t, g, m); g divides h."""
    u: Tensor
    """Values, (b, t, g, p): the inner input."""
    scale: float
    """Factor of the logits, usually 1/√m."""
    starts: Tensor | None = None
    """(b, t) True where a packed document starts: attention does not look across."""
    lengths: Tensor | None = None
    """(b,) number of real tokens at the front of each row."""
    window: int | None = None
    """Number of positions that a query sees, its own among them; None for all."""

    def __post_init__(self) -> None:
        q, k, u = tuple(self.q.shape), tuple(self.k.shape), tuple(self.u.shape)
        if not len(q) == len(k) == len(u) == 4:
            raise DSFSystemError(f"q {q}, k {k} and u {u} must all be (batch, time, heads, width).")
        if q[:2] != k[:2] or q[3] != k[3]:
            raise DSFSystemError(f"q {q} and k {k} must share batch, time and width.")
        if k[:3] != u[:3] or k[2] == 0 or q[2] % k[2]:
            raise DSFSystemError(
                f"u {u} must share batch, time and heads with k {k}, and the {k[2]} key heads must divide the {q[2]} "
                "query heads."
            )
        if q[1] == 0:
            raise DSFSystemError(f"q {q} has no step: give at least one.")
        require_floats(q=self.q, k=self.k, u=self.u)
        if not self.q.dtype == self.k.dtype == self.u.dtype:
            raise DSFSystemError(f"q is {self.q.dtype}, k {self.k.dtype} and u {self.u.dtype}: cast all to one dtype.")
        if not 0 < self.scale < math.inf:
            raise DSFSystemError(
                f"scale={self.scale} is not positive and finite: give the factor of the logits, usually 1/√m."
            )
        check_window(self.window, "give the number of positions seen, or None for all.")
        _check_layout(self.starts, self.lengths, q[0], q[1])

    def _refuse_window(self, what: str) -> None:
        if self.window is not None:
            raise DSFSystemError(
                f"window={self.window}: attention drops each input after {self.window} steps, which no scalar Λ does: "
                f"there is no {what}; read Φ with transfer_matrix()."
            )

    @property
    def state_size(self) -> float:
        """Infinity: no finite state reproduces softmax for every length."""
        return math.inf

    @property
    def length(self) -> int:
        """Number of steps t."""
        return self.q.shape[1]

    def logits(self) -> Tensor:
        """Return s_ij in float64, -inf where j > i, across documents and outside the window: (b, h, t, t).

        Pads stand behind a row's real tokens, which therefore never look at them.
        """
        k_bthm = expand_groups(self.k, self.q.shape[2]).double()
        logits = torch.einsum("bihm,bjhm->bhij", self.q.double(), k_bthm) * self.scale
        allowed = causal_mask(self.length, self.q.device)[None]
        if self.starts is not None:
            document = self.starts.long().cumsum(1)
            allowed = allowed & (document[:, :, None] == document[:, None, :])
        if self.window is not None:
            allowed = allowed.triu(1 - self.window)
        return logits.masked_fill(~allowed[:, None], -math.inf)

    def transfer_matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return Φ (b, h, t, t), the attention weights, computed in float64 and returned in `dtype`."""
        phi = self.logits().softmax(-1)
        if self.lengths is not None:
            phi = _zero_pads(phi, beyond(self.lengths, self.length)[:, None])
        return phi.to(dtype)

    def eigenvalues(self, realisation: str | None = None) -> Spectrum:
        """Return λ_i = η_{i-1} / η_i = exp(LSE_{i-1} - LSE_i), (b, t-1, h) in float64; λ = 0 at a document start.

        Args:
            realisation: "normalised" (default) or "native", in which λ = 1 (the normaliser stands in C).

        Raises:
            DSFSystemError: unknown realisation, or attention within a window.
        """
        self._refuse_window("eigenvalues of this kind")
        realisation = _checked_realisation(realisation or "normalised")
        lse = self.logits().logsumexp(-1).transpose(1, 2)
        values = (lse[:, :-1] - lse[:, 1:]).exp() if realisation == "normalised" else torch.ones_like(lse[:, 1:])
        if self.starts is not None:
            values = values.masked_fill(self.starts[:, 1:, None], 0.0)
        if self.lengths is not None:
            values = values.masked_fill(beyond(self.lengths, self.length)[:, 1:, None], math.nan)
        return Spectrum(values, realisation)

    def matrices(self) -> SystemMatrices:
        """Raise: the exact system has infinitely many states.

        Raises:
            DSFSystemError: always; the remedy is `truncated(order).matrices()`.
        """
        raise DSFSystemError("softmax attention has an infinite state: use truncated(order).matrices().")

    def truncated(self, order: int) -> DSFSystem:
        """Return the separable system with the Taylor features of exp up to `order`; it converges to softmax.

            φ(q) = [1, x, x⊗x/√2!, …, x^{⊗P}/√P!] with x = √scale · q, so that φ(q)^T ψ(k) = Σ_{p<=P} s^p / p!

        Args:
            order: P >= 0. Odd orders can give negative weights and denominators; even ones are positive.

        Returns:
            `DSFSystem` in float64 with n = Σ_{p<=P} m^p states per channel.

        Raises:
            DSFSystemError: a negative order, or attention within a window.

        Source: the feature map of Sieber et al. 2024 for softmax, cut off at order P.
        """
        if order < 0:
            raise DSFSystemError(f"order={order} is negative: give the Taylor order P >= 0.")
        self._refuse_window("truncation")
        root = math.sqrt(self.scale)
        heads = self.q.shape[2]
        return DSFSystem(
            u=expand_groups(self.u, heads).double(),
            B=taylor_features(expand_groups(self.k, heads).double() * root, order),
            C=taylor_features(self.q.double() * root, order),
            transition=Identity(),
            normalized=True,
            starts=self.starts,
            lengths=self.lengths,
        )


def taylor_features(x: Tensor, order: int) -> Tensor:
    """Return [1, x, x⊗x/√2!, …, x^{⊗P}/√P!] along the last dimension: (…, m) -> (…, Σ_{p<=P} m^p)."""
    power = torch.ones_like(x[..., :1])
    features = [power]
    for degree in range(1, order + 1):
        power = (power[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(degree)
        features.append(power)
    return torch.cat(features, dim=-1)
