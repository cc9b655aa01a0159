"""Looking at models: what they cost, and where the eigenvalues of Λ lie."""

from .accounting import Parameters, count_parameters, decoding_flops, prefill_flops, state_bytes, training_flops
from .spectrum import BINS, SpectrumHistogram, initial_spectrum

__all__ = [
    "BINS",
    "Parameters",
    "SpectrumHistogram",
    "count_parameters",
    "decoding_flops",
    "initial_spectrum",
    "prefill_flops",
    "state_bytes",
    "training_flops",
]
