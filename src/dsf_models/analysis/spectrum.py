"""Where the eigenvalues of Λ lie: histograms of |λ| and of its phase by layer, head and row, fresh or trained.

Letters: b batch, t time, h heads.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbone import DSFConfig, DSFPreTrainedModel, get_architecture, in_evaluation
from ..errors import require
from ..filters import FilterSystem
from ..system import DSFSystem, DSFSystemError, SoftmaxSystem, Spectrum

__all__ = [
    "BINS",
    "FOLLOW_UP_RADII",
    "PHASES",
    "RADII",
    "Bins",
    "SpectrumComparison",
    "SpectrumHistogram",
    "acting_eigenvalues",
    "compare_spectra",
    "initial_spectrum",
    "random_tokens",
    "spectrum",
]

System = DSFSystem | SoftmaxSystem | FilterSystem


@dataclass(frozen=True)
class Bins:
    """Half-open intervals [lower, upper) side by side, so that every number from 0 on lies in exactly one."""

    names: tuple[str, ...]
    """What each interval is called."""
    edges: tuple[float, ...]
    """Where one interval ends and the next begins; the first begins at 0, the last has no end."""

    def count(self, values: Tensor) -> Tensor:
        """Return how many of the values (…) lie in each interval, (bins,) in float64; NaN, that of pads, in none."""
        values = values.double().flatten()
        values = values[~values.isnan()].cpu()
        found = torch.bucketize(values, torch.tensor(self.edges, dtype=torch.float64), right=True)
        return torch.bincount(found, minlength=len(self.names)).double()


BINS = ("[0, 0.1)", "[0.1, 0.5)", "[0.5, 0.9)", "[0.9, 1)", "1", "(1, 10)", "[10, 100)", "[100, ∞)")
"""Intervals of |λ|. Each value lies in one of them; exactly 1 has its own, since such a state forgets nothing."""
RADII = Bins(BINS, (0.1, 0.5, 0.9, 1.0, math.nextafter(1.0, 2.0), 10.0, 100.0))
"""The intervals of `BINS`."""
FOLLOW_UP_RADII = Bins((*BINS[:4], "[1, 10)", *BINS[6:]), (0.1, 0.5, 0.9, 1.0, 10.0, 100.0))
"""The follow-up's intervals, half open: exactly 1 is in [1, 10).

Source: Rickenbach et al. 2025 (arXiv 2510.09379), whose code closes its intervals at both ends.
"""
PHASES = Bins(("[0, 1)", "[1, 10)", "[10, 45)", "[45, 90)", "[90, 180]"), (1.0, 10.0, 45.0, 90.0))
"""Intervals of |arg λ| in degrees. A pair of conjugates counts twice; a negative λ is at 180, λ = 0 at 0."""


@dataclass(frozen=True, eq=False)
class SpectrumHistogram:
    """Fractions of |λ_1| … |λ_{t-1}| and of their phases in intervals, by layer, head and row.

    A layer's heads beyond its own, a layer without eigenvalues, and a row without any hold NaN.
    """

    counts: Tensor
    """(layers, heads, b, bins) in float64: how many |λ| lie in each interval."""
    phase_counts: Tensor
    """(layers, heads, b, phase bins) in float64: how many |arg λ| do."""
    magnitudes: Tensor
    """(layers, heads, b) in float64: mean |λ|."""
    realisations: list[str | None]
    """Realisation that the eigenvalues of each layer belong to; None where a layer has none."""
    reasons: list[str | None]
    """Why a layer has no eigenvalues to show; None where it has."""
    bins: Bins = RADII
    """The intervals of |λ|."""

    @property
    def fractions(self) -> Tensor:
        """(layers, heads, bins) of all rows together."""
        return _shares(_sum_of_rows(self.counts))

    @property
    def by_row(self) -> Tensor:
        """(layers, heads, b, bins)."""
        return _shares(self.counts)

    @property
    def deviation(self) -> Tensor:
        """(layers, heads, bins): standard deviation of the fraction over rows, NaN for fewer than two."""
        return _deviation(self.by_row)

    @property
    def phase_fractions(self) -> Tensor:
        """(layers, heads, phase bins) of all rows together."""
        return _shares(_sum_of_rows(self.phase_counts))

    @property
    def phase_deviation(self) -> Tensor:
        """(layers, heads, phase bins): standard deviation of the fraction over rows, NaN for fewer than two."""
        return _deviation(_shares(self.phase_counts))

    @property
    def mean(self) -> Tensor:
        """(bins,) averaged over all heads of all layers."""
        return self.fractions.flatten(0, 1).nanmean(0)

    @property
    def mean_magnitude(self) -> Tensor:
        """(layers, heads): mean |λ|, each row with the number of its eigenvalues as its weight."""
        weights = self.counts.sum(-1)
        return (self.magnitudes * weights).nansum(-1) / _sum_of_rows(self.counts).sum(-1)


@dataclass(frozen=True, eq=False)
class SpectrumComparison:
    """The spectra of a model as it was initialised and as it is, at the same tokens."""

    initial: SpectrumHistogram
    """Of the same configuration, freshly initialised."""
    now: SpectrumHistogram
    """Of the model given."""

    @property
    def change(self) -> Tensor:
        """(layers, heads, bins): by how much each fraction grew."""
        return self.now.fractions - self.initial.fractions


# ---- the three questions ---------------------------------------------------------------------------------------------


@torch.no_grad()
def spectrum(
    model: DSFPreTrainedModel, input_ids: Tensor | None = None, *, bins: Bins = RADII, **inputs: Any
) -> SpectrumHistogram:
    """Return where |λ| and arg λ lie, at the mixers' true inputs, dropout off.

    λ is that of `DSFSystem.eigenvalues()`, in float64: for attention η_{i-1} / η_i, else that of the Λ which the engine
    applies. λ_0 (of each packed document) multiplies a zero state and is left out, and so are pads. A time-invariant
    layer has the same λ at every position.

    Args:
        model: any model of the zoo.
        input_ids: (b, t) tokens; or give another input of the model.
        bins: intervals of |λ|.
        inputs: further arguments of the model's forward, such as attention_mask; no cache.
    """
    return _histogram(_systems(model, input_ids, inputs), bins)


def initial_spectrum(
    config_or_model: DSFConfig | DSFPreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    batch: int = 2,
    length: int | None = None,
    seed: int = 0,
) -> SpectrumHistogram:
    """Return the `spectrum` of a freshly initialised model, or of the model given, at random tokens by default.

    Args:
        config_or_model: a configuration, of which a model is initialised from `seed`; or a model.
        input_ids: (b, t) tokens. Default: random ones.
        batch: rows of the random tokens.
        length: their length, at least 2. Default: 64, or config.max_position_embeddings where that is less.
        seed: of the initialisation and the random tokens. The global random state is left as it was.

    Raises:
        ValueError: the tokens are shorter than two.
    """
    config = config_or_model if isinstance(config_or_model, DSFConfig) else config_or_model.config
    if input_ids is None:
        input_ids = random_tokens(config, batch, length, seed)
    model = _initialised(config, seed) if config_or_model is config else config_or_model
    return spectrum(model, input_ids.to(model.device))


def compare_spectra(
    model: DSFPreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    seed: int = 0,
    bins: Bins = RADII,
    **inputs: Any,
) -> SpectrumComparison:
    """Return the `spectrum` of a model beside that of its configuration freshly initialised, at the same tokens.

    Args:
        model: any model of the zoo, usually trained.
        input_ids: (b, t) tokens; or give another input of the model.
        seed: of the initialisation. The global random state is left as it was.
        bins: intervals of |λ|.
        inputs: further arguments of the model's forward, such as attention_mask; no cache.
    """
    fresh = _initialised(model.config, seed).to(model.device)
    initial, now = (spectrum(one, input_ids, bins=bins, **inputs) for one in (fresh, model))
    return SpectrumComparison(initial, now)


def random_tokens(config: DSFConfig, batch: int = 2, length: int | None = None, seed: int = 0) -> Tensor:
    """Return (batch, length) token ids drawn uniformly from the vocabulary; the global random state is left as it was.

    Args:
        config: of the model that will read them.
        batch: number of rows.
        length: at least 2. Default: 64, or config.max_position_embeddings where that is less.
        seed: of the draw.

    Raises:
        ValueError: the length is below 2, or the model reads real numbers.
    """
    remedy = "its inputs are real numbers, not tokens; give inputs_values to spectrum or compare_spectra."
    require(config.input_size is None, "input_size", config.input_size, remedy)
    if length is None:
        length = min(64, config.max_position_embeddings or 64)
    generator = torch.Generator().manual_seed(seed)
    require_two_tokens(length)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def require_two_tokens(length: int) -> None:
    require(length >= 2, "length", length, "λ_1 is the first eigenvalue that acts; give at least 2 tokens a row.")


def _initialised(config: DSFConfig, seed: int) -> DSFPreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_architecture(config.model_type.removeprefix("dsf_")).model_class(copy.deepcopy(config))


def _systems(model: DSFPreTrainedModel, input_ids: Tensor | None, inputs: dict[str, Any]) -> list[System | None]:
    with in_evaluation(model):
        systems = model.dsf_systems(input_ids, **inputs)
    for system in systems:
        if system is not None:
            require_two_tokens(system.length)
    return systems


# ---- counting --------------------------------------------------------------------------------------------------------


def acting_eigenvalues(system: System | None) -> Spectrum | str:
    """Return the eigenvalues that act on a state, or why a layer has none.

    They are those of `eigenvalues()`, with NaN also at the first token of each packed document: what stands there, 0,
    is the layout's and no choice of the model.
    """
    if system is None:
        return "its state is no linear function of the past state"
    try:
        found = system.eigenvalues()
    except DSFSystemError as error:
        return str(error)
    if system.starts is None:
        return found
    starts = system.starts[:, 1:]
    masked = found.values.masked_fill(starts.view(*starts.shape, *(1,) * (found.values.ndim - 2)), math.nan)
    return Spectrum(masked, found.realisation)


@dataclass(frozen=True)
class _LayerCounts:
    """What is kept of one layer's eigenvalues, which may take more memory than all its weights."""

    counts: Tensor
    """(h, b, bins)"""
    phase_counts: Tensor
    """(h, b, phase bins)"""
    magnitudes: Tensor
    """(h, b)"""
    realisation: str


def _histogram(systems: list[System | None], bins: Bins) -> SpectrumHistogram:
    found = [_counted(system, bins) for system in systems]
    known = [one for one in found if isinstance(one, _LayerCounts)]
    heads = max((one.counts.shape[0] for one in known), default=1)
    batch = max((one.counts.shape[1] for one in known), default=1)

    def gathered(name: str, *widths: int) -> Tensor:
        whole = torch.full((len(found), heads, batch, *widths), math.nan, dtype=torch.float64)
        for layer, one in enumerate(found):
            if isinstance(one, _LayerCounts):
                part = getattr(one, name)
                whole[layer, : part.shape[0], : part.shape[1]] = part
        return whole

    return SpectrumHistogram(
        counts=gathered("counts", len(bins.names)),
        phase_counts=gathered("phase_counts", len(PHASES.names)),
        magnitudes=gathered("magnitudes"),
        realisations=[one.realisation if isinstance(one, _LayerCounts) else None for one in found],
        reasons=[None if isinstance(one, _LayerCounts) else one for one in found],
        bins=bins,
    )


def _counted(system: System | None, bins: Bins) -> _LayerCounts | str:
    """Return the counts of a layer, or why it has no eigenvalues."""
    found = acting_eigenvalues(system)
    if isinstance(found, str):
        return found
    rows = [[(row.abs(), _phases(row)) for row in of_head] for of_head in found.values.unbind(2)]
    return _LayerCounts(
        counts=torch.stack([torch.stack([bins.count(sizes) for sizes, _ in head]) for head in rows]),
        phase_counts=torch.stack([torch.stack([PHASES.count(phases) for _, phases in head]) for head in rows]),
        magnitudes=torch.stack([torch.stack([sizes.nanmean().cpu() for sizes, _ in head]) for head in rows]),
        realisation=found.realisation,
    )


def _phases(values: Tensor) -> Tensor:
    """Return |arg λ| in degrees, from 0 to 180; NaN stays NaN."""
    degrees = values.angle().abs().rad2deg().masked_fill(values == 0, 0.0)
    return degrees.masked_fill(values.abs().isnan(), math.nan)


def _sum_of_rows(counts: Tensor) -> Tensor:
    """Return the counts of all rows together; where a layer or head has none, NaN stays."""
    return torch.where(counts.isnan().all(2), math.nan, counts.nansum(2))


def _shares(counts: Tensor) -> Tensor:
    total = counts.sum(-1, keepdim=True)
    return counts / torch.where(total == 0, math.nan, total)


def _deviation(shares: Tensor) -> Tensor:
    """Return the standard deviation over rows (layers, heads, b, bins) -> (layers, heads, bins), rows of NaN aside."""
    real = ~shares.isnan()
    number = real.sum(2)
    squares = (shares - shares.nanmean(2, keepdim=True)).masked_fill(~real, 0.0).square().sum(2)
    return torch.where(number > 1, squares / (number - 1).clamp(min=1), math.nan).sqrt()
