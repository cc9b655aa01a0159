"""How a model is asked and scored: an answer at each token, all answers of a row at its end, or one number a row.

Letters: b rows, t positions, v tokens, n scored positions, k numbers per position.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from dsf_models.backbone.loss import aligned_targets
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX
from training.score import Score

Batch = dict[str, Tensor]
"""Arguments of the model by name: its inputs, labels and, where there are pads or documents, what tells of them."""


class Readout(ABC):
    """What stands between a batch and a loss or a score."""

    @property
    @abstractmethod
    def decided(self) -> dict[str, Any]:
        """The fields of a model's configuration that the data decide."""

    @property
    @abstractmethod
    def convention(self) -> str:
        """What goes into a model of these data, and how its outputs are to be read, in a sentence or two."""

    @abstractmethod
    def head(self, config: PreTrainedConfig) -> str:
        """What stands on the backbone: a key of `dsf_models.hub.card.HEADS`."""

    @abstractmethod
    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model with freshly drawn weights; `config` has the fields of `decided`.

        Raises:
            UsageError: a model that cannot answer this way.
        """

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """What the outputs of a batch are scored against, (b, …)."""

    @abstractmethod
    def count(self, targets: Tensor) -> int:
        """Number of answers that are asked for."""

    @abstractmethod
    def loss(
        self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, targets: Tensor, answers: Tensor
    ) -> Tensor:
        """The sum over the answers of a batch of their losses, over the number of answers of all batches of the step.

        Args:
            model: made by `build`, and perhaps wrapped.
            config: its configuration.
            inputs: the batch without its labels.
            targets: as `targets` gives them.
            answers: ().
        """

    @abstractmethod
    def sums(self, model: nn.Module, inputs: Batch, targets: Tensor, counted: int) -> np.ndarray:
        """What `score` needs of a batch, as numbers that add up over batches.

        Args:
            model: made by `build`, not wrapped.
            inputs: the batch without its labels.
            targets: as `targets` gives them.
            counted: rows that are examples; the ones behind them fill up the batch.
        """

    @abstractmethod
    def score(self, sums: np.ndarray) -> Score:
        """The score of a split from the sums over all its batches."""


@dataclass(frozen=True, kw_only=True)
class _TokenAnswers(Readout):
    """Answers are tokens: cross-entropy per answer."""

    vocab_size: int
    """Number of token ids, v."""

    pad_token_id: int | None = None
    """Token that fills up shorter rows."""

    eos_token_id: int | None = None
    """Token that ends a document."""

    @property
    def convention(self) -> str:
        """Token ids in."""
        return "Inputs are token ids as described in `task.json`; there is no tokenizer."

    def count(self, targets: Tensor) -> int:
        """Number of positions that are scored."""
        return int((targets != IGNORE_INDEX).sum())

    @abstractmethod
    def logits(self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, scored: Tensor) -> Tensor:
        """The logits (n, v) of the n scored positions (b, t) of a batch."""

    def sums(self, model: nn.Module, inputs: Batch, targets: Tensor, counted: int) -> np.ndarray:
        """Loss, right answers, answers, examples with all answers right, examples."""
        scored = targets != IGNORE_INDEX
        logits = self.logits(model, model.config, inputs, scored)
        loss = cross_entropy(logits.float(), targets[scored], reduction="sum")
        wrong = torch.zeros_like(scored)
        wrong[scored] = logits.argmax(-1) != targets[scored]
        answers = scored.sum().item()
        right_rows = (~wrong[:counted].any(dim=-1)).sum().item()
        return np.array([loss.item(), answers - wrong.sum().item(), answers, right_rows, counted])

    def score(self, sums: np.ndarray) -> Score:
        """Loss and accuracy per answer, and accuracy of whole rows."""
        loss, right, answers, right_rows, rows = sums.tolist()
        return Score(loss=loss / answers, accuracy=right / answers, row_accuracy=right_rows / rows)


@dataclass(frozen=True, kw_only=True)
class EachReadout(_TokenAnswers):
    """The output at each position answers there: a language model, or a classifier of tokens where it looks ahead."""

    label_alignment: Literal["next", "same"]
    """Whether the output at t is scored against labels[t + 1] or labels[t]."""

    @property
    def decided(self) -> dict[str, Any]:
        """Vocabulary, special tokens, and how labels are aligned."""
        return {
            "vocab_size": self.vocab_size,
            "label_alignment": self.label_alignment,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": self.eos_token_id,
        }

    def head(self, config: PreTrainedConfig) -> str:
        """A language model's, unless outputs depend on later tokens too (bidirectional=True)."""
        return "token_classification" if config.looks_ahead else "causal_lm"

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A causal language model, or a classifier of tokens."""
        if not config.looks_ahead:
            return AutoModelForCausalLM.from_config(config)
        if self.label_alignment == "next":
            raise UsageError(
                "model.bidirectional is true: a model that sees the next token cannot learn to predict it."
            )
        config.num_labels = self.vocab_size
        return AutoModelForTokenClassification.from_config(config)

    def targets(self, batch: Batch) -> Tensor:
        """(b, t); -100 where nothing is scored."""
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        return aligned_targets(batch["labels"], self.label_alignment, mask)

    def loss(
        self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, targets: Tensor, answers: Tensor
    ) -> Tensor:
        """-log p(answer), by the model's own loss."""
        given = {**inputs, "num_items_in_batch": answers, "use_cache": False}
        if config.looks_ahead:
            return model(**given, labels=targets).loss
        # Where few positions are scored, the logits of the others are not computed.
        kept = targets != IGNORE_INDEX if self.label_alignment == "same" else 0
        return model(**given, shift_labels=targets, logits_to_keep=kept).loss

    def logits(self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, scored: Tensor) -> Tensor:
        """The logits at the scored positions, and where possible no others."""
        if config.looks_ahead:
            return model(**inputs, use_cache=False).logits[scored]
        return model(**inputs, use_cache=False, logits_to_keep=scored).logits


@dataclass(frozen=True, kw_only=True)
class _FromTheLast(_TokenAnswers):
    """All answers of a row are in its last output, that of a classifier of sequences."""

    def head(self, config: PreTrainedConfig) -> str:
        """A classifier of sequences."""
        return "sequence_classification"

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A classifier of sequences with as many outputs as the answers of a row need."""
        return AutoModelForSequenceClassification.from_config(config)

    def loss(
        self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, targets: Tensor, answers: Tensor
    ) -> Tensor:
        """-log p(answer)."""
        scored = targets != IGNORE_INDEX
        logits = _at_least_float32(self.logits(model, config, inputs, scored))
        return cross_entropy(logits, targets[scored], reduction="sum") / answers


@dataclass(frozen=True, kw_only=True)
class LastReadout(_FromTheLast):
    """The last output answers for every position of its row.

        logits[i] = W_i h_{t-1}        i = 0..t-1, W_i (v, d)

    The channel mixer of the last block and W are the decoder: an MLP of the last mixer's output with one layer of
    outputs for each position, in place of MAD's single one, which is told the position.
    """

    sequence_length: int
    """Answers that one output holds, t."""

    @property
    def decided(self) -> dict[str, Any]:
        """Vocabulary, pad, and number of outputs, t v."""
        return {
            "vocab_size": self.vocab_size,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": self.eos_token_id,
            "num_labels": self.sequence_length * self.vocab_size,
        }

    @property
    def convention(self) -> str:
        """Token ids in, the answers of all positions out."""
        shape = f"logits.view(-1, {self.sequence_length}, {self.vocab_size})"
        return f"{super().convention} `{shape}[:, i]` is the answer for position i."

    def targets(self, batch: Batch) -> Tensor:
        """(b, t); -100 where nothing is scored."""
        return batch["labels"]

    def logits(self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, scored: Tensor) -> Tensor:
        """The logits of the scored positions, all from the last output."""
        return model(**inputs, use_cache=False).logits.unflatten(1, (self.sequence_length, self.vocab_size))[scored]


@dataclass(frozen=True, kw_only=True)
class ClassReadout(_FromTheLast):
    """The last output says the class of its row."""

    classes: tuple[str, ...]
    """Their names."""

    @property
    def decided(self) -> dict[str, Any]:
        """Vocabulary, pad, and names of the classes."""
        names = dict(enumerate(self.classes))
        return {
            "vocab_size": self.vocab_size,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": self.eos_token_id,
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
        }

    @property
    def convention(self) -> str:
        """Tokens as the task says, a class out."""
        return "`logits` (b, k) are those of the classes in `config.id2label`; `task.json` says what the tokens are."

    def targets(self, batch: Batch) -> Tensor:
        """(b, 1); -100 where nothing is scored."""
        return batch["labels"][:, None]

    def logits(self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, scored: Tensor) -> Tensor:
        """The logits of the classes, (n, k)."""
        return model(**inputs, use_cache=False).logits[:, None][scored]


@dataclass(frozen=True, kw_only=True)
class ValueReadout(Readout):
    """The last output answers with a real number, from real numbers: squared error."""

    num_inputs: int
    """Numbers per position, k."""

    @property
    def decided(self) -> dict[str, Any]:
        """Numbers in, one number out, and no vocabulary."""
        return {
            "vocab_size": 1,
            "pad_token_id": None,
            "eos_token_id": None,
            "input_size": self.num_inputs,
            "num_labels": 1,
            "problem_type": "regression",
        }

    @property
    def convention(self) -> str:
        """Real numbers in, one out."""
        return (
            f"Inputs are real numbers, `inputs_values` (b, t, {self.num_inputs}) as described in `task.json`; "
            "`logits` (b, 1) is the answer."
        )

    def head(self, config: PreTrainedConfig) -> str:
        """A classifier of sequences with one output."""
        return "sequence_classification"

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A regressor; the embedding of tokens, which nothing reads, is not trained."""
        model = AutoModelForSequenceClassification.from_config(config)
        # Distributed training waits for the gradient of every parameter that is trained.
        model.get_input_embeddings().requires_grad_(False)
        return model

    def targets(self, batch: Batch) -> Tensor:
        """(b,)."""
        return batch["labels"]

    def count(self, targets: Tensor) -> int:
        """Number of rows."""
        return len(targets)

    def loss(
        self, model: nn.Module, config: PreTrainedConfig, inputs: Batch, targets: Tensor, answers: Tensor
    ) -> Tensor:
        """(answer - target)²."""
        found = _at_least_float32(model(**inputs, use_cache=False).logits[:, 0])
        return (found - targets).square().sum() / answers

    def sums(self, model: nn.Module, inputs: Batch, targets: Tensor, counted: int) -> np.ndarray:
        """Squared errors, and rows."""
        found = model(**inputs, use_cache=False).logits[:counted, 0].cpu().double()
        return np.array([(found - targets[:counted].cpu()).square().sum().item(), counted])

    def score(self, sums: np.ndarray) -> Score:
        """Mean squared error."""
        squares, rows = sums.tolist()
        return Score(loss=squares / rows)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
