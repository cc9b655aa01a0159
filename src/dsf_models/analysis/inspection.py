"""Everything that this package can say of a model at given tokens, in one object: what `dsf-models inspect` shows.

Letters: b batch, t time, h heads.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..backbone import DSFPreTrainedModel, in_evaluation
from ..errors import require
from ..filters import FilterSystem
from ..system import DSFSystem, SoftmaxSystem
from .accounting import state_bytes
from .memory import EffectiveMemory, effective_memory, magnitude
from .spectrum import PHASES, SpectrumComparison, SpectrumHistogram, compare_spectra
from .state import GainUse, NormalizerUse, StateUse, gain_use, normalizer_use, state_use

__all__ = ["Inspection", "LayerInspection", "inspect_model"]

MOST_PHI_BYTES = 2**26
"""What Φ of a layer may take; of a longer sequence the first tokens are looked at. With a Φ for each channel, every
state of a channel costs some passes over so much. Softmax attention and two-sided or windowed filters are looked at
whole: give them fewer tokens where memory is short."""


@dataclass(frozen=True, eq=False)
class LayerInspection:
    """One layer at the given tokens."""

    layer: int
    """Index of the layer."""
    architecture: str
    """Whose mixer it has."""
    structure: str | None
    """Structure of Λ; None where there is no Λ."""
    weights: Tensor | None
    """|Φ_ij| without D, (b, h, t, t), see `magnitude`; of the first tokens where all would be too many. None without a
    system. D passes each token by the state, and would outshine the past."""
    memory: EffectiveMemory | None
    """How far Φ reaches, again without D."""
    normalizer: NormalizerUse | None
    """The normaliser η; None where there is none."""
    gains: dict[str, GainUse]
    """The gains s_i of the inputs and g_i of the outputs, by name; those that are 1 are left out."""
    state: StateUse | str | None
    """How the state is used, or why that means nothing here."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """A model at given tokens."""

    facts: dict[str, Any]
    """Architecture, sizes, parameters and state bytes."""
    spectra: SpectrumComparison
    """Of all layers: as freshly initialised, and as they are."""
    layers: list[LayerInspection]
    """The layers that were asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers but Φ as plain lists, ready for JSON; None stands for what is not defined."""
        layers = [self._layer(one) for one in self.layers]
        names = {"radius_bins": list(self.spectra.now.bins.names), "phase_bins_degrees": list(PHASES.names)}
        return {**self.facts, **names, "layers": layers}

    def _layer(self, one: LayerInspection) -> dict[str, Any]:
        spectra = {"initial": self.spectra.initial, "now": self.spectra.now}
        return {
            "layer": one.layer,
            "architecture": one.architecture,
            "structure": one.structure,
            "spectrum": {name: _of_spectrum(found, one.layer) for name, found in spectra.items()},
            "effective_memory": None if one.memory is None else _of_memory(one.memory),
            "weights_tokens": None if one.weights is None else one.weights.shape[-1],
            "row_sums": None if one.weights is None else _plain(_mean(_of_real_rows(one.weights).movedim(1, -1))),
            "normalizer": None if one.normalizer is None else _of_normalizer(one.normalizer),
            "gains": {name: _of_gain(use) for name, use in one.gains.items()},
            "state": _of_state(one.state) if isinstance(one.state, StateUse) else one.state,
        }


@torch.no_grad()
def inspect_model(
    model: DSFPreTrainedModel,
    input_ids: Tensor,
    *,
    layers: list[int] | None = None,
    seed: int = 0,
    share: float = 0.9,
    **inputs: Any,
) -> Inspection:
    """Return spectra (initial and now), Φ, effective memory, normaliser and use of the state of a model's layers.

    Args:
        model: any model of the zoo.
        input_ids: (b, t >= 2) tokens.
        layers: indices of the layers to look at. Default: all.
        seed: of the fresh initialisation that the spectrum is compared with.
        share: of the weights that the effective memory holds.
        inputs: further arguments of the model's forward, such as attention_mask.

    Raises:
        ValueError: a layer does not exist, or the tokens are shorter than two.
    """
    count = model.config.num_hidden_layers
    chosen = list(range(count)) if layers is None else list(layers)
    for layer in chosen:
        require(0 <= layer < count, "layer", layer, f"the model has {count} layers, counted from 0.")
    spectra = compare_spectra(model, input_ids, seed=seed, **inputs)
    with in_evaluation(model):
        systems = model.dsf_systems(input_ids, **inputs)
    found = [_inspected(model, layer, systems[layer], share) for layer in chosen]
    return Inspection(_facts(model, input_ids), spectra, found)


def _facts(model: DSFPreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
    config, tokens = model.config, input_ids.shape[1]
    return {
        "architecture": config.model_type.removeprefix("dsf_"),
        "layers_of_model": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": model.num_parameters(),
        "rows": input_ids.shape[0],
        "tokens": tokens,
        "state_bytes": None if config.looks_ahead else state_bytes(config, tokens),
    }


def _inspected(
    model: DSFPreTrainedModel, layer: int, system: DSFSystem | SoftmaxSystem | FilterSystem | None, share: float
) -> LayerInspection:
    weights = None if system is None else magnitude(_through_the_state(_beginning(system)).transfer_matrix())
    return LayerInspection(
        layer=layer,
        architecture=model.config.layer_config(layer).model_type.removeprefix("dsf_"),
        structure=_structure(system),
        weights=weights,
        memory=None if weights is None else effective_memory(weights, share),
        normalizer=normalizer_use(system),
        gains=gain_use(system),
        state=state_use(system),
    )


def _structure(system: DSFSystem | SoftmaxSystem | FilterSystem | None) -> str | None:
    if system is None:
        return None
    if isinstance(system, SoftmaxSystem):
        return "scalar, of an infinite state"
    return (system.forward if isinstance(system, FilterSystem) else system).transition.name


def _beginning(system: DSFSystem | SoftmaxSystem | FilterSystem) -> DSFSystem | SoftmaxSystem | FilterSystem:
    """Return the system of as many first tokens as Φ has room for; a filter is left whole."""
    if not isinstance(system, DSFSystem):
        return system
    entries = system.narrow(0, 1).transfer_matrix().numel()
    most = max(2, math.isqrt(MOST_PHI_BYTES // (8 * entries)))
    return system if system.length <= most else system.narrow(0, most)


def _through_the_state(
    system: DSFSystem | SoftmaxSystem | FilterSystem,
) -> DSFSystem | SoftmaxSystem | FilterSystem:
    """Return the system without D."""
    if isinstance(system, FilterSystem):
        return replace(system, forward=replace(system.forward, D=None))
    return replace(system, D=None) if isinstance(system, DSFSystem) else system


# ---- as plain numbers ------------------------------------------------------------------------------------------------


def _of_real_rows(weights: Tensor) -> Tensor:
    """Return the sum of each row of weights (b, h, t, t), NaN where it is empty, as those of pads are: (b, h, t)."""
    sums = weights.sum(-1)
    return sums.masked_fill(sums == 0, math.nan)


def _of_spectrum(histogram: SpectrumHistogram, layer: int) -> dict[str, Any]:
    return {
        "realisation": histogram.realisations[layer],
        "reason": histogram.reasons[layer],
        "mean_magnitude": _plain(_real_heads(histogram.mean_magnitude[layer])),
        "fractions": _plain(_real_heads(histogram.fractions[layer])),
        "deviation": _plain(_real_heads(histogram.deviation[layer])),
        "phase_fractions": _plain(_real_heads(histogram.phase_fractions[layer])),
    }


def _real_heads(values: Tensor) -> Tensor:
    """Drop the heads (first dimension) of other layers, which hold NaN."""
    gone = values.isnan().flatten(1).all(1) if values.ndim > 1 else values.isnan()
    return values[~gone] if not bool(gone.all()) else values[:0]


def _of_memory(memory: EffectiveMemory) -> dict[str, Any]:
    return {
        "share": memory.share,
        "lag": _plain(_mean(memory.lag.movedim(1, -1))),
        "mean_lag": _plain(_mean(memory.mean_lag.movedim(1, -1))),
        "lag_by_position": _plain(memory.lag.nanmean(0)),
    }


def _of_normalizer(use: NormalizerUse) -> dict[str, Any]:
    return {
        "lowest_log_eta": _plain(use.lowest),
        "highest_log_eta": _plain(use.highest),
        "growth": _plain(use.growth),
        "not_positive": use.not_positive,
    }


def _of_gain(use: GainUse) -> dict[str, Any]:
    return {"lowest": _plain(use.lowest), "highest": _plain(use.highest), "growth": _plain(use.growth)}


def _of_state(use: StateUse) -> dict[str, Any]:
    return {
        "states_per_channel": use.per_state.shape[-1],
        "channels_per_head": use.per_channel.shape[-1],
        "norm_of_each_state": _plain(use.per_state.nanmean((0, 1))),
        "rank": _plain(_mean(use.rank)),
        "rank_over_time": _plain(use.rank_over_time),
    }


def _mean(values: Tensor) -> Tensor:
    """Average over rows and positions, NaN aside: (b, t, h) -> (h,)."""
    return values.nanmean((0, 1))


def _plain(values: Tensor) -> Any:
    """Return nested lists of numbers, None in place of NaN and infinities."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(one) for one in value]
        return value if math.isfinite(value) else None

    return clean(values.tolist())
