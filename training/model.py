"""The model of a run, from the `model` section of its configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel

import dsf_models
from dsf_models.hub.usage import UsageError, closest
from training.data import to_device
from training.readout import Batch, Readout

_INPUTS = ("input_ids", "inputs_values")


def build_model(section: Mapping[str, Any], readout: Readout) -> PreTrainedModel:
    """A model with freshly drawn weights, in float32, which answers as its data ask.

    Args:
        section: `architecture` and fields of its configuration class.
        readout: decides the head, the vocabulary and what else the data decide.

    Raises:
        UsageError: for an unknown architecture, for a field that the data decide, for fields that the configuration
            class refuses, and for a model that cannot answer so.
    """
    fields = dict(section)
    architecture = fields.pop("architecture")
    known = dsf_models.list_architectures()
    if architecture not in known:
        raise UsageError(f"model.architecture is {architecture!r}, which is none. {closest(architecture, known)}")
    for name in readout.decided:
        if name in fields:
            raise UsageError(f"model.{name} is {fields[name]!r}, but the data decide it: remove model.{name}.")
    try:
        config = AutoConfig.for_model(f"dsf_{architecture}", **fields, **readout.decided)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(f"The section `model` is not a configuration of {architecture!r}: {error}") from error
    return readout.build(config)


@torch.no_grad()
def check_model_runs(model: PreTrainedModel, batch: Batch, name: str) -> None:
    """Run one forward pass, so that a model that cannot take the examples fails before anything is written.

    Args:
        model: on the meta device for shapes alone.
        batch: some examples.
        name: what they are called.

    Raises:
        UsageError: with the model's own complaint.
    """
    model.eval()
    # Without data it is not to be known which positions are pads.
    names = _INPUTS if model.device.type == "meta" else batch.keys() - {"labels"}
    inputs = to_device({name: batch[name] for name in batch if name in names}, model.device)
    try:
        model(**inputs, use_cache=False)
    except ValueError as error:
        raise UsageError(f"The section `model` does not fit {name}: {error}") from error
    model.train()


def count_parameters(model: PreTrainedModel) -> int:
    """Number of trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
