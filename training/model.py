"""The model of a run, from the `model` section of its configuration."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

import dsf_models
from dsf_models.hub.usage import UsageError, closest
from dsf_models.tasks import IGNORE_INDEX
from training.data import Batch, to_device


class DecidedByData(Protocol):
    """What the data decide of a model; `RunData` has it."""

    vocab_size: int
    label_alignment: str
    pad_token_id: int | None
    eos_token_id: int | None


_SET_BY_DATA = ("vocab_size", "label_alignment", "pad_token_id", "eos_token_id")


def build_model(section: Mapping[str, Any], data: DecidedByData) -> PreTrainedModel:
    """A model with freshly drawn weights, in float32, which answers at every position.

    It is a causal language model, or a classifier of tokens where the outputs depend on later tokens too
    (bidirectional=True).

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
        if config.looks_ahead:
            config.num_labels = config.vocab_size
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(f"The section `model` is not a configuration of {architecture!r}: {error}") from error
    if not config.looks_ahead:
        return AutoModelForCausalLM.from_config(config)
    if data.label_alignment == "next":
        raise UsageError("model.bidirectional is true: a model that sees the next token cannot learn to predict it.")
    return AutoModelForTokenClassification.from_config(config)


def answers_loss(model: nn.Module, config: PreTrainedConfig, inputs: Batch, targets: Tensor, answers: Tensor) -> Tensor:
    """The sum over the answers of a batch of -log p(answer), over the number of answers of all batches of the step.

    Args:
        model: made by `build_model`, and perhaps wrapped.
        config: its configuration.
        inputs: the batch without its labels.
        targets: (b, t), of the output at each position; -100 where there is none.
        answers: ().
    """
    if config.looks_ahead:
        return model(**inputs, labels=targets, num_items_in_batch=answers, use_cache=False).loss
    # Where few positions are scored, the logits of the others are not computed.
    kept = targets != IGNORE_INDEX if config.label_alignment == "same" else 0
    return model(**inputs, shift_labels=targets, logits_to_keep=kept, num_items_in_batch=answers, use_cache=False).loss


def answers_logits(model: nn.Module, config: PreTrainedConfig, inputs: Batch, scored: Tensor) -> Tensor:
    """The logits (n, v) at the n scored positions (b, t) of a batch."""
    if config.looks_ahead:
        return model(**inputs, use_cache=False).logits[scored]
    return model(**inputs, use_cache=False, logits_to_keep=scored).logits


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
    batch = to_device(batch, model.device)
    # Without data it is not to be known which positions are pads or labelled.
    inputs = {"input_ids": batch["input_ids"]} if model.device.type == "meta" else batch
    try:
        model(**inputs, use_cache=False)
    except ValueError as error:
        raise UsageError(f"The section `model` does not fit {name}: {error}") from error
    model.train()


def count_parameters(model: PreTrainedModel) -> int:
    """Number of trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
