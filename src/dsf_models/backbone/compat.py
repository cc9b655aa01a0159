"""The one place that knows which transformers release is installed (>= 5.23, < 6)."""

import warnings

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["CACHE_NAME", "resolve_cache"]

CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the cache argument and output field: `past_key_values` in 5.23, `cache` from 5.24 on."""


def resolve_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """Merge the two names of the cache argument; models accept both on every release, and warn as transformers does.

    Raises:
        ValueError: both were given.
        TypeError: something other than a `Cache` was given.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache name the same thing: pass only one of them.")
    if past_key_values is not None and CACHE_NAME == "cache" and not torch.compiler.is_compiling():
        warnings.warn(
            "`past_key_values` is deprecated since transformers 5.24. Use `cache` instead.", FutureWarning, stacklevel=3
        )
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, Cache):
        raise TypeError(
            f"{CACHE_NAME} is a {type(given).__name__}: pass a transformers Cache, "
            "e.g. DynamicCache(config=model.config)."
        )
    return given
