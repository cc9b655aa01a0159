"""Looking at models: what they cost, and where the eigenvalues of Λ lie."""

from .accounting import Parameters, count_parameters, decoding_flops, prefill_flops, state_bytes, training_flops
from .fields import ConfigField, config_fields
from .spectrum import BINS, SpectrumHistogram, initial_spectrum
from .table import architecture_rows, markdown_table, text_table

__all__ = [
    "BINS",
    "ConfigField",
    "Parameters",
    "SpectrumHistogram",
    "architecture_rows",
    "config_fields",
    "count_parameters",
    "decoding_flops",
    "initial_spectrum",
    "markdown_table",
    "prefill_flops",
    "state_bytes",
    "text_table",
    "training_flops",
]
