"""What a layer does with its normaliser and its state: the range and trend of η, the size and rank of h.

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import engine
from ..filters import FilterSystem
from ..system import DSFSystem, SoftmaxSystem

__all__ = ["GainUse", "NormalizerUse", "StateUse", "gain_use", "log_normalizer", "normalizer_use", "state_use"]


@dataclass(frozen=True, eq=False)
class NormalizerUse:
    """The normaliser η_i that outputs are divided by, over time; in logarithms, since e^{e^x} is among them."""

    log_eta: Tensor
    """(b, t, h) in float64: log η_i; NaN at pads and where η_i is not positive."""
    growth: Tensor
    """(h,): slope of log η_i over log(i + 1), over all rows: 1 for a sum of equal weights, 0 for a constant."""
    not_positive: int
    """How many η_i are zero or negative."""

    @property
    def lowest(self) -> Tensor:
        """(h,): the least log η."""
        return self.log_eta.nan_to_num(math.inf).amin((0, 1))

    @property
    def highest(self) -> Tensor:
        """(h,): the largest log η."""
        return self.log_eta.nan_to_num(-math.inf, posinf=math.inf).amax((0, 1))


@dataclass(frozen=True, eq=False)
class GainUse:
    """A gain of the inputs or the outputs over rows, positions and channels; pads aside."""

    lowest: Tensor
    """(h,): the least gain."""
    highest: Tensor
    """(h,): the largest gain."""
    growth: Tensor
    """(h,): slope of its logarithm, averaged over channels, over log(i + 1); NaN where a gain is not positive."""


@dataclass(frozen=True, eq=False)
class StateUse:
    """How much of its state a layer uses; NaN at pads."""

    per_state: Tensor
    """(b, t, h, n): ‖h_i‖ of each of the n states, over the channels of the head."""
    per_channel: Tensor
    """(b, t, h, p): ‖h_i‖ of each channel, over its states."""
    rank: Tensor
    """(b, t, h): effective rank of the head's state S_i (n, p), (Σ σ²)² / Σ σ⁴ of its singular values σ."""
    rank_over_time: Tensor
    """(h,): the same of all states S_0 … S_{t-1} of all rows, each a row of one matrix (b t, n p): the number of
    directions of the whole state that the sequence visits."""


def log_normalizer(system: DSFSystem | SoftmaxSystem) -> Tensor | None:
    """Return log η_i, (b, t, h) in float64, or None where outputs are not divided by a normaliser.

    NaN stands where η_i is not positive, as may be for odd orders of Taylor attention.
    """
    if isinstance(system, SoftmaxSystem):
        return system.logits().logsumexp(-1).transpose(1, 2)
    if not isinstance(system, DSFSystem) or not system.has_normalizer:
        return None
    if system.log_normalizer is not None:
        return system.log_normalizer.double().expand(system.u.shape[:3])
    eta = system.normalizer()
    return torch.where(eta > 0, eta, math.nan).log()


def normalizer_use(system: DSFSystem | SoftmaxSystem | FilterSystem | None) -> NormalizerUse | None:
    """Return the range and trend of a layer's normaliser, or None where it has none."""
    log_eta = None if system is None else log_normalizer(system)
    if log_eta is None:
        return None
    pads = _pads(system, log_eta.shape[:2])
    not_positive = int((log_eta.isnan() & ~pads[..., None]).sum())
    log_eta = log_eta.masked_fill(pads[..., None], math.nan)
    return NormalizerUse(log_eta, _slope(log_eta, system.starts), not_positive)


def gain_use(system: DSFSystem | SoftmaxSystem | FilterSystem | None) -> dict[str, GainUse]:
    """Return the range and trend of a layer's gains, by "input_gain" and "output_gain"; a gain of 1 is left out.

    The input gain is Δ_i of S6 and SSD and the input gate of the gated networks: part of B, beside η the other factor
    by which a token weighs more or less.
    """
    if not isinstance(system, DSFSystem):
        return {}
    found = {}
    for name in ("input_gain", "output_gain"):
        gain = getattr(system, name)
        if gain is None:
            continue
        gain = gain.double() if gain.ndim == 4 else gain.double()[..., None]
        gain = gain.expand(*system.u.shape[:2], -1, -1)
        real = gain[~_pads(system, gain.shape[:2])]
        log = torch.where(gain > 0, gain, math.nan).log().mean(-1)
        slope = _slope(log.masked_fill(_pads(system, gain.shape[:2])[..., None], math.nan), system.starts)
        slope = torch.where((real > 0).all(2).all(0), slope, math.nan)
        found[name] = GainUse(real.amin((0, 2)), real.amax((0, 2)), slope)
    return found


def state_use(system: DSFSystem | SoftmaxSystem | FilterSystem | None) -> StateUse | str:
    """Return how much of its state a layer uses, from the float64 reference; or why that means nothing for it.

    The state is that of the native realisation, whose basis is a choice: norms compare states of one layer, and the
    ranks do not change with a rotation of the basis. Of a two-sided filter it is the state of the pass from the start.
    """
    if system is None:
        return "it has no system"
    if isinstance(system, SoftmaxSystem):
        return "its state is infinite"
    if isinstance(system, FilterSystem):
        if system.window is not None:
            return "it looks through a window: what it carries are its last inputs"
        system = system.forward
    states = engine.sequential_states(system)
    states = states[..., : system.head_dim] if system.normalized else states
    pads = _pads(system, states.shape[:2])
    per_state, per_channel = (states.norm(dim=dim).masked_fill(pads[..., None, None], math.nan) for dim in (-1, -2))
    rank = _participation(states).masked_fill(pads[..., None], math.nan)
    visited = states[~pads].flatten(2).transpose(0, 1)
    return StateUse(per_state, per_channel, rank, _participation(visited))


def _participation(x: Tensor) -> Tensor:
    """Return (Σ σ²)² / Σ σ⁴ of the singular values of x (…, r, s), which lies between 1 and the rank; NaN for x = 0."""
    gram = x @ x.mT if x.shape[-2] < x.shape[-1] else x.mT @ x
    squares = gram.diagonal(dim1=-2, dim2=-1).sum(-1).square()
    return squares / gram.square().sum((-2, -1))


def _pads(system: DSFSystem | SoftmaxSystem, shape: torch.Size) -> Tensor:
    device = system.u.device
    if system.lengths is None:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    return torch.arange(shape[1], device=device) >= system.lengths[:, None]


def _slope(values: Tensor, starts: Tensor | None) -> Tensor:
    """Return the least-squares slope of values (b, t, h) over log(i + 1), NaN aside: (h,).

    Position i counts from 0 in each document, whose first token `starts` (b, t) marks.
    """
    time = torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])
    if starts is not None:
        time = time - torch.where(starts, time, 0).cummax(1).values
    real = values.isfinite()
    x = torch.where(real, (time + 1).double().log()[..., None], 0.0)
    y = values.masked_fill(~real, 0.0)
    number = real.sum((0, 1)).clamp(min=1)
    x_mean, y_mean = x.sum((0, 1)) / number, y.sum((0, 1)) / number
    x, y = (x - x_mean).masked_fill(~real, 0.0), (y - y_mean).masked_fill(~real, 0.0)
    return (x * y).sum((0, 1)) / x.square().sum((0, 1))
