"""Looking at models: what they cost, where the eigenvalues of Λ lie, what Φ does, and what if Λ were another."""

from .accounting import Parameters, count_parameters, decoding_flops, prefill_flops, state_bytes, training_flops
from .fields import ConfigField, config_fields
from .inspection import Inspection, LayerInspection, inspect_model
from .interventions import (
    clamp_eigenvalues,
    freeze_eigenvalues,
    interventions,
    map_eigenvalues,
    replace_transition,
    without_normalizer,
)
from .legacy import LegacyHistogram, legacy_eigenvalues, legacy_spectrum
from .memory import EffectiveMemory, RowSums, effective_memory, magnitude, row_sums, token_weights
from .spectrum import (
    BINS,
    FOLLOW_UP_RADII,
    PHASES,
    RADII,
    Bins,
    SpectrumComparison,
    SpectrumHistogram,
    compare_spectra,
    initial_spectrum,
    spectrum,
)
from .state import GainUse, NormalizerUse, StateUse, gain_use, log_normalizer, normalizer_use, state_use
from .table import architecture_rows, markdown_table, text_table

__all__ = [
    "BINS",
    "FOLLOW_UP_RADII",
    "PHASES",
    "RADII",
    "Bins",
    "ConfigField",
    "EffectiveMemory",
    "GainUse",
    "Inspection",
    "LayerInspection",
    "LegacyHistogram",
    "NormalizerUse",
    "Parameters",
    "RowSums",
    "SpectrumComparison",
    "SpectrumHistogram",
    "StateUse",
    "architecture_rows",
    "clamp_eigenvalues",
    "compare_spectra",
    "config_fields",
    "count_parameters",
    "decoding_flops",
    "effective_memory",
    "freeze_eigenvalues",
    "gain_use",
    "initial_spectrum",
    "inspect_model",
    "interventions",
    "legacy_eigenvalues",
    "legacy_spectrum",
    "log_normalizer",
    "magnitude",
    "map_eigenvalues",
    "markdown_table",
    "normalizer_use",
    "prefill_flops",
    "replace_transition",
    "row_sums",
    "spectrum",
    "state_bytes",
    "state_use",
    "text_table",
    "token_weights",
    "training_flops",
    "without_normalizer",
]
