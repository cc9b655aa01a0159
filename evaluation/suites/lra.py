"""Tasks in the manner of the Long Range Arena: ListOps, Pathfinder, texts read by bytes, images read by pixels.

ListOps and Pathfinder are tasks of the zoo, answered at one position of each row. Texts and images are classified by a
model with a head for sequences. Source: Y. Tay et al., arXiv:2011.04006; the texts and the images are others than its
own, so that accuracies on them compare with ours alone.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import UsageError
from dsf_models.tasks.images import CLASSES, VOCAB_SIZE, ImagesError, fashion_mnist, image_folder
from dsf_models.tasks.listops import SMALL
from dsf_models.tasks.text import TextError, byte_tokenizer
from dsf_models.tasks.text.labelled import LENGTH, byte_ids, labelled_documents
from evaluation.config import EvaluationConfig
from evaluation.results import measured
from evaluation.scoring import INTERVAL, accuracy
from evaluation.suites.base import Suite
from evaluation.suites.task import TaskSuite, fraction, load_record, looks_ahead, state_facts

TASKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "listops": ("listops", {}),
    "listops_small": ("listops", SMALL),
    "pathfinder": ("pathfinder", {}),
}
"""Task and sizes of the tasks that are generated; sizes that the command line or a record names go before these."""
LABELLED = ("text", "pixels")
"""What is classified by a model with a head for sequences."""


def long_range_arena(config: EvaluationConfig) -> Suite:
    """The suite of the task that `--lra.data` names, else the checkpoint's task record.

    Raises:
        UsageError: neither names a task of this suite.
    """
    data = config.lra.data or _recorded(config)
    if data == "text":
        return Texts(config)
    return Pixels(config) if data == "pixels" else ArenaTask(config, data)


class ArenaTask(TaskSuite):
    """ListOps or Pathfinder."""

    uses = TaskSuite.uses | {"lra.data"}

    def __init__(self, config: EvaluationConfig, data: str) -> None:
        name, sizes = TASKS[data]
        chosen = {} if config.lra.data is None else sizes
        super().__init__(config, name, chosen)


class Classification(Suite):
    """Sequences with one class each."""

    heads = ("SequenceClassification",)
    interval = INTERVAL

    data: Dataset
    """`input_ids` of each sequence and its class in `labels`."""

    names: tuple[str, ...]
    """Names of the classes, in the order of their numbers in `labels`."""

    least_vocabulary: int
    """Tokens that a model has to know."""

    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Accuracy, beside that of the most frequent class."""
        self.check(model, name)
        labels = np.array(class_indices(model, name, self.names))[self.data["labels"]]
        try:
            right = predicted_classes(model, self.data["input_ids"], self.config.batch_size) == labels
        except ValueError as error:
            raise UsageError(f"--model {name} does not take the sequences of {self.facts['name']}: {error}") from error
        found = accuracy(right, np.arange(len(right)))
        metric: Metric = fraction(
            "accuracy",
            found,
            self.facts["split"],
            chance=1 / len(self.names),
            best_trivial=float(np.bincount(labels).max() / len(labels)),
        )
        first = np.array([self.data[0]["input_ids"]])
        return {"state": self._state(model, first), **measured([metric])}

    def check(self, model: PreTrainedModel, name: str) -> None:
        """Refuse a model with too few classes or tokens."""
        size = model.get_input_embeddings().num_embeddings
        if model.config.num_labels < len(self.names) or size < self.least_vocabulary:
            raise UsageError(
                f"--model {name} has {model.config.num_labels} classes and {size} tokens, but {self.facts['name']} has "
                f"{len(self.names)} and {self.least_vocabulary}: it was not trained on it."
            )

    def _state(self, model: PreTrainedModel, first: np.ndarray) -> dict[str, Any]:
        if looks_ahead(model):
            return {"bytes_per_sequence": None, "after_tokens": first.shape[1]}
        return state_facts(model.base_model, first)


class Pixels(Classification):
    """Fashion-MNIST, each image a row of 1,024 grey levels."""

    uses = frozenset({"lra", "split", "num_examples", "batch_size"})
    names = CLASSES
    least_vocabulary = VOCAB_SIZE

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        folder = Path(config.lra.folder) if config.lra.folder else image_folder()
        try:
            pooling = recorded_size(config, "pixels", "pooling", 1)
            self.data = fashion_mnist(config.split, folder, config.num_examples, pooling=pooling)
        except (ImagesError, ValueError) as error:
            raise UsageError(f"--suite lra on pixels is refused: {error}") from error
        self.facts = _facts("fashion_mnist", config.split, self.data) | {"sizes": {"pooling": pooling}}


class Texts(Classification):
    """Documents with a class each, read byte by byte."""

    uses = frozenset(
        {"lra.data", "split", "num_examples", "batch_size", "text.name", "text.files", "text.column", "text.label"}
    )

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        text = config.text
        if not text.files:
            raise UsageError("--text.files is missing: give CSV files of documents with their classes.")
        try:
            documents = labelled_documents(text.files, config.split, column=text.column, label=text.label)
        except TextError as error:
            raise UsageError(f"--text.files is refused: {error}") from error
        self.least_vocabulary = len(byte_tokenizer())
        self.names = documents.classes
        length = recorded_size(config, "text", "length", LENGTH)
        chosen = slice(None, config.num_examples)
        ids = [byte_ids(document, length) for document in documents.texts[chosen]]
        self.data = Dataset.from_dict({"input_ids": ids, "labels": documents.labels[chosen]})
        sizes = {"length": length, "classes": list(documents.classes)}
        self.facts = _facts(text.name, config.split, self.data) | {"sizes": sizes}


def class_indices(model: PreTrainedModel, name: str, classes: Sequence[str]) -> list[int]:
    """The outputs of a model that stand for these classes: by name, or by number where it has no names for them.

    Raises:
        UsageError: the model has names, and one of the classes is not among them.
    """
    named = {label: index for index, label in model.config.id2label.items()}
    if all(label == f"LABEL_{index}" for label, index in named.items()):
        return list(range(len(classes)))
    if missing := [label for label in classes if label not in named]:
        raise UsageError(f"--model {name} knows the classes {', '.join(named)}, but not {', '.join(missing)}.")
    return [named[label] for label in classes]


@torch.no_grad()
def predicted_classes(model: PreTrainedModel, sequences: list[list[int]], batch_size: int) -> np.ndarray:
    """The class with the highest logit, of each sequence; sequences of one length are read together, without pads.

    Args:
        model: a classifier of sequences.
        sequences: token ids.
        batch_size: sequences per forward pass.

    Returns:
        Integers, one for each sequence.
    """
    found = np.zeros(len(sequences), np.int64)
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(sequences):
        by_length.setdefault(len(ids), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            ids = torch.tensor([sequences[index] for index in batch], device=model.device)
            mask = torch.ones_like(ids)
            found[batch] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.argmax(-1).cpu().numpy()
    return found


def _facts(name: str, split: str, data: Dataset) -> dict[str, Any]:
    digest = sha256()
    for row in data:
        digest.update(np.array([*row["input_ids"], row["labels"]], "<i4").tobytes())
    return {"name": name, "split": split, "seed": None, "num_examples": len(data), "data_hash": digest.hexdigest()}


def recorded_size(config: EvaluationConfig, data: str, name: str, default: int) -> int:
    """A size that the checkpoints were trained with, so that they are asked what they have learned.

    Args:
        config: of the evaluation.
        data: what the records have to be of.
        name: of the size.
        default: where no checkpoint has such a record.

    Raises:
        UsageError: the checkpoints differ in it.
    """
    records = [record for model in config.model if (record := load_record(model)) is not None and record.name == data]
    found = {record.sizes[name] for record in records}
    if len(found) > 1:
        values = " and ".join(map(str, sorted(found)))
        raise UsageError(f"--model: the checkpoints were trained with {name} {values}: evaluate them one by one.")
    return found.pop() if found else default


def _recorded(config: EvaluationConfig) -> str:
    names = {record.name for model in config.model if (record := load_record(model)) is not None}
    if len(names) == 1 and names <= {"listops", "pathfinder", *LABELLED}:
        return names.pop()
    raise UsageError(
        "--lra.data is missing, and the checkpoints name no task of this suite: give listops, listops_small, "
        "pathfinder, text or pixels."
    )
