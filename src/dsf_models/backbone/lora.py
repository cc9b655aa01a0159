"""What adapters of PEFT need to know: which modules to adapt, and how to train Λ beside them."""

from typing import TYPE_CHECKING, Any

from torch import nn

from .compat import LORA_TARGETS

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

__all__ = ["lora_config"]


def lora_config(model: "PreTrainedModel", train_mixers: bool = False, **fields: Any) -> "LoraConfig":
    """Return a LoRA configuration for a model: y = W x + (alpha / r) B A x at every projection.

    Args:
        model: any model of this package.
        train_mixers: train the mixers whole (Λ, convolution and projections) and save them with the adapter, which then
            adapts the channel mixers, or, where there are none, the embedding (PEFT asks for something to adapt). Λ
            consists of vectors, which have no low-rank update.
        fields: further fields of `peft.LoraConfig` (r, lora_alpha, …).

    Returns:
        The configuration, for `peft.get_peft_model` or `model.add_adapter`.

    Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685).
    """
    from peft import LoraConfig

    kind = type(model).__name__.rpartition("For")[2]
    task = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    fields = {"task_type": task.get(kind), "target_modules": LORA_TARGETS} | fields
    if train_mixers:
        # Whole paths: PEFT compares the ends of names, and "channel_mixer" ends in "mixer".
        mixers = [f"layers.{i}.{block.mixer_attribute}" for i, block in enumerate(model.base_model.layers)]
        fields["modules_to_save"] = [*(fields.get("modules_to_save") or ()), *mixers]
        fields["target_modules"] = [
            name
            for name, module in model.base_model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith(tuple(f"{mixer}." for mixer in mixers))
        ] or ["embed_tokens"]
    return LoraConfig(**fields)
