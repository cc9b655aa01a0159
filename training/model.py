"""The model of a run, from the `model` section of its configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dsf_models
from dsf_models.hub.usage import UsageError, closest

_SET_BY_TASK = ("vocab_size", "label_alignment")


def build_model(section: Mapping[str, Any], vocab_size: int) -> PreTrainedModel:
    """A model with freshly drawn weights, in float32.

    Args:
        section: `architecture` and fields of its configuration class.
        vocab_size: number of token ids of the task.

    Returns:
        A causal language model whose labels[:, t] is the target of the output at position t.

    Raises:
        UsageError: for an unknown architecture, for a field that the task decides, and for fields that the
            configuration class refuses.
    """
    fields = dict(section)
    architecture = fields.pop("architecture")
    known = dsf_models.list_architectures()
    if architecture not in known:
        raise UsageError(f"model.architecture is {architecture!r}, which is none. {closest(architecture, known)}")
    for name in _SET_BY_TASK:
        if name in fields:
            raise UsageError(f"model.{name} is {fields[name]!r}, but the task decides it: remove model.{name}.")
    try:
        config = AutoConfig.for_model(f"dsf_{architecture}", **fields, vocab_size=vocab_size, label_alignment="same")
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(f"The section `model` is not a configuration of {architecture!r}: {error}") from error
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def check_model_runs(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Run one forward pass, so that a model that cannot take the task's examples fails before anything is written.

    Args:
        model: the model.
        input_ids: one example of the task, of shape (1, length).

    Raises:
        UsageError: with the model's own complaint.
    """
    model.eval()
    try:
        model(input_ids=input_ids, use_cache=False)
    except ValueError as error:
        raise UsageError(f"The section `model` does not fit the section `task`: {error}") from error
    model.train()


def count_parameters(model: PreTrainedModel) -> int:
    """Number of trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
