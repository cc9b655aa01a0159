"""Looking at models: what they cost, and the spectra that they start from."""

from .accounting import Parameters, count_parameters, decoding_flops, prefill_flops, state_bytes, training_flops

__all__ = ["Parameters", "count_parameters", "decoding_flops", "prefill_flops", "state_bytes", "training_flops"]
