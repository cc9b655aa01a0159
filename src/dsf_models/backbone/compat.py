"""What depends on other packages: the release of transformers (>= 5.23, < 6), and PEFT where it is imported."""

import sys
import warnings

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

__all__ = ["CACHE_NAME", "CLASS_NAMES", "LORA_TARGETS", "enable_checkpointing", "register_with_peft", "resolve_cache"]

CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the cache argument and output field: `past_key_values` in 5.23, `cache` from 5.24 on."""

CLASS_NAMES: dict[str, dict[str, str]] = {
    "AutoModel": MODEL_MAPPING_NAMES,
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
"""Names of classes by Auto class and model_type, as transformers keeps them."""

LORA_TARGETS = "all-linear"
"""What LoRA adapts by default: every projection of mixers and channel mixers; PEFT leaves heads out."""


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


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Let a model compute its activations anew in the backward pass; the method's name changed in 5.24."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def register_with_peft(model_type: str) -> None:
    """Tell PEFT, once it is imported, what LoRA adapts in a model of this type where target_modules is left out."""
    constants = sys.modules.get("peft.utils.constants")
    if constants is not None:
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(model_type, LORA_TARGETS)
