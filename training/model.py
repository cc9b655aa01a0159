"""The model of a run, from the `model` section of its configuration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dsf_models
from dsf_models.hub.usage import UsageError, closest
from training.data import RunData, to_device

_SET_BY_DATA = ("vocab_size", "label_alignment", "pad_token_id", "eos_token_id")


def build_model(section: Mapping[str, Any], data: RunData) -> PreTrainedModel:
    """A causal language model with freshly drawn weights, in float32.

    Args:
        section: `architecture` and fields of its configuration class.
        data: decide the vocabulary, and how labels are aligned.

    Raises:
        UsageError: for an unknown architecture, for a field that the data decide, and for fields that the
            configuration class refuses.
    """
    fields = dict(section)
    architecture = fields.pop("architecture")
    known = dsf_models.list_architectures()
    if architecture not in known:
        raise UsageError(f"model.architecture is {architecture!r}, which is none. {closest(architecture, known)}")
    for name in _SET_BY_DATA:
        if name in fields:
            raise UsageError(f"model.{name} is {fields[name]!r}, but the data decide it: remove model.{name}.")
    try:
        decided = {name: getattr(data, name) for name in _SET_BY_DATA}
        config = AutoConfig.for_model(f"dsf_{architecture}", **fields, **decided)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(f"The section `model` is not a configuration of {architecture!r}: {error}") from error
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def check_model_runs(model: PreTrainedModel, data: RunData) -> None:
    """Run one forward pass, so that a model that cannot take the examples fails before anything is written.

    Raises:
        UsageError: with the model's own complaint.
    """
    model.eval()
    batch = to_device(data.validation.rows(np.zeros(1, int)), model.device)
    # On the meta device there are shapes alone: which positions are pads or labelled is not to be known.
    inputs = {"input_ids": batch["input_ids"]} if model.device.type == "meta" else batch
    try:
        model(**inputs, use_cache=False)
    except ValueError as error:
        raise UsageError(f"The section `model` does not fit {data.name}: {error}") from error
    model.train()


def count_parameters(model: PreTrainedModel) -> int:
    """Number of trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
