"""Where the eigenvalues of Λ lie: a histogram of |λ| over layers and heads, at step 0 or of a trained model."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbone import DSFConfig, DSFPreTrainedModel, get_architecture
from ..system import DSFSystem, DSFSystemError, SoftmaxSystem, Spectrum

__all__ = ["BINS", "SpectrumHistogram", "initial_spectrum"]

BINS = ("[0, 0.1)", "[0.1, 0.5)", "[0.5, 0.9)", "[0.9, 1)", "1", "(1, 10)", "[10, 100)", "[100, ∞)")
"""Intervals of |λ|. Each value lies in one of them; exactly 1 has its own, since such a state forgets nothing."""

_EDGES = (0.1, 0.5, 0.9, 1.0, math.nextafter(1.0, 2.0), 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class SpectrumHistogram:
    """Fractions of |λ_1| … |λ_{t-1}| in each of `BINS`."""

    fractions: Tensor
    """(layers, heads, bins) in float64; a layer's heads beyond its own, and a layer without eigenvalues, hold NaN."""
    realisations: list[str | None]
    """Realisation that the eigenvalues of each layer belong to; None where a layer has none."""
    reasons: list[str | None]
    """Why a layer has no eigenvalues to show; None where it has."""

    @property
    def mean(self) -> Tensor:
        """(bins,) averaged over all heads of all layers."""
        return self.fractions.flatten(0, 1).nanmean(0)


@torch.no_grad()
def initial_spectrum(
    config_or_model: DSFConfig | DSFPreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    batch: int = 2,
    length: int | None = None,
    seed: int = 0,
) -> SpectrumHistogram:
    """Return where |λ| lies, for a freshly initialised model or for the model given, at its mixers' true inputs.

    λ is that of `DSFSystem.eigenvalues()`, in float64: for attention η_{i-1} / η_i, else that of the Λ which the engine
    applies. A time-invariant layer has the same λ at every position.

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
    if input_ids is not None:
        length = input_ids.shape[1]
    elif length is None:
        length = min(64, config.max_position_embeddings or 64)
    if length < 2:
        raise ValueError(f"length={length}: λ_1 is the first eigenvalue that acts; give at least 2 tokens a row.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config_or_model
        if model is config:
            model = get_architecture(config.model_type.removeprefix("dsf_")).model_class(copy.deepcopy(config))
        if input_ids is None:
            input_ids = torch.randint(config.vocab_size, (batch, length)).to(model.device)
    training = model.training
    try:
        systems = model.eval().dsf_systems(input_ids)
    finally:
        model.train(training)
    return _histogram(systems)


def _histogram(systems: list[DSFSystem | SoftmaxSystem | None]) -> SpectrumHistogram:
    found = [_spectrum(system) for system in systems]
    spectra = [spectrum if isinstance(spectrum, Spectrum) else None for spectrum in found]
    heads = max((spectrum.values.shape[2] for spectrum in spectra if spectrum is not None), default=1)
    fractions = torch.full((len(spectra), heads, len(BINS)), math.nan, dtype=torch.float64)
    for layer, spectrum in enumerate(spectra):
        if spectrum is not None:
            for head, values in enumerate(spectrum.values.abs().unbind(2)):
                fractions[layer, head] = _fractions(values)
    realisations = [None if spectrum is None else spectrum.realisation for spectrum in spectra]
    return SpectrumHistogram(fractions, realisations, [None if isinstance(s, Spectrum) else s for s in found])


def _spectrum(system: DSFSystem | SoftmaxSystem | None) -> Spectrum | str:
    """Return a layer's eigenvalues, or why there are none."""
    if system is None:
        return "its state is no linear function of the past state"
    try:
        return system.eigenvalues()
    except DSFSystemError as error:
        return str(error)


def _fractions(magnitudes: Tensor) -> Tensor:
    """Return the fraction of magnitudes (…) in each bin, (bins,); NaN, which marks pads, is left out."""
    values = magnitudes.double().flatten()
    values = values[~values.isnan()].cpu()
    bins = torch.bucketize(values, torch.tensor(_EDGES, dtype=torch.float64), right=True)
    return torch.bincount(bins, minlength=len(BINS)).double() / max(len(values), 1)
