"""Labelled sequences as the data of a run: documents read byte by byte, or images read pixel by pixel."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from dsf_models.hub.usage import UsageError
from dsf_models.tasks.images import CLASSES, SIDE, VOCAB_SIZE, ImagesError, fashion_mnist, image_folder
from dsf_models.tasks.text import TextError, byte_tokenizer, end_of_text_id, pad_id
from dsf_models.tasks.text.labelled import LENGTH, byte_ids, labelled_documents
from training.config import LabelledConfig
from training.data import Examples, RunData
from training.readout import ClassReadout
from training.score import Score

_SOME_CLASSES = ("0", "1")
"""Classes of documents that are not looked at."""


class LabelledExamples(Examples):
    """Sequences of one split, with pads behind the shorter ones."""

    def __init__(self, sequences: Sequence[Sequence[int]], labels: Sequence[int], length: int, pad: int | None) -> None:
        """Hold all of them.

        Args:
            sequences: token ids.
            labels: the class of each.
            length: tokens of a row.
            pad: token that fills up; None where all sequences have this length.
        """
        self._columns: dict[str, np.ndarray] = {"labels": np.asarray(labels, np.int64)}
        if pad is None:
            self._columns["input_ids"] = np.asarray(sequences, np.int32)
        else:
            lengths = np.array([len(sequence) for sequence in sequences])
            real = np.arange(length) < lengths[:, None]
            self._columns["input_ids"] = np.full((len(sequences), length), pad, np.int32)
            self._columns["input_ids"][real] = np.concatenate([np.asarray(ids, np.int32) for ids in sequences])
            self._columns["attention_mask"] = real.astype(np.int8)
        super().__init__(len(labels), length)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices (b,): `input_ids` (b, t), `labels` (b,), `attention_mask` where there are pads."""
        return {name: column[indices] for name, column in self._columns.items()}

    @property
    def labels(self) -> list[int]:
        """The class of every row."""
        return self._columns["labels"].tolist()


@dataclass(frozen=True, kw_only=True)
class LabelledData(RunData):
    """Labelled sequences in three splits that share none."""

    kind: str
    """"text" or "pixels"."""

    classes: tuple[str, ...]
    """Names of the classes."""

    sizes: dict[str, int]
    """How the sequences were made, as the record of a checkpoint says it."""

    tokenizer: PreTrainedTokenizerBase | None
    """Between text and token ids; None for pixels."""

    def report(self, score: Score) -> dict[str, float]:
        """Loss and accuracy."""
        return {"loss": score.loss, "accuracy": score.accuracy}

    def summary(self, score: Score, split: str) -> str:
        """The accuracy beside that of the most frequent class."""
        return (
            f"loss {score.loss:.4f}  accuracy {100 * score.accuracy:6.2f} %  (chance {100 / len(self.classes):.2f} %, "
            f"most frequent class {100 * self.best_trivial(split):.2f} %)"
        )

    def best_trivial(self, split: str) -> float:
        """The share of the most frequent class of a split."""
        labels = getattr(self, split).labels
        return max(Counter(labels).values()) / len(labels)


def load_labelled_data(config: LabelledConfig) -> LabelledData:
    """Read the three splits.

    Raises:
        UsageError: naming what cannot be read, and how to put it right.
    """
    try:
        return _texts(config) if config.data == "text" else _pixels(config)
    except (TextError, ImagesError, ValueError) as error:
        raise UsageError(f"The section `labelled` is refused: {error}") from error


def shape_of(config: LabelledConfig) -> tuple[ClassReadout, int]:
    """What a model needs to know of these data before they are read: a readout for some classes, tokens of a row."""
    if config.data == "text":
        return _text_readout(_SOME_CLASSES), config.length or LENGTH
    return _pixel_readout(), (SIDE // (config.pooling or 1)) ** 2


def _texts(config: LabelledConfig) -> LabelledData:
    length, counts = config.length or LENGTH, _counts(config)
    columns = {"column": config.column or "text", "label": config.label or "label"}
    documents = {split: labelled_documents(config.files, split, **columns) for split in counts}
    tokenizer, classes = byte_tokenizer(), documents["train"].classes
    rows = {
        split: LabelledExamples(
            [byte_ids(text, length) for text in documents[split].texts[:count]],
            documents[split].labels[:count],
            length,
            pad_id(tokenizer),
        )
        for split, count in counts.items()
    }
    return LabelledData(
        name=config.name or "text",
        kind=config.data,
        sequence_length=length,
        readout=_text_readout(classes),
        **rows,
        selected_by="accuracy",
        classes=classes,
        sizes={"length": length},
        tokenizer=tokenizer,
    )


def _pixels(config: LabelledConfig) -> LabelledData:
    folder = Path(config.folder) if config.folder else image_folder()
    pooling = config.pooling or 1
    rows = {}
    for split, count in _counts(config).items():
        images = fashion_mnist(split, folder, count, pooling=pooling).with_format("numpy")
        rows[split] = LabelledExamples(images["input_ids"][:], images["labels"][:], (SIDE // pooling) ** 2, None)
    return LabelledData(
        name="fashion_mnist",
        kind=config.data,
        sequence_length=(SIDE // pooling) ** 2,
        readout=_pixel_readout(),
        **rows,
        selected_by="accuracy",
        classes=CLASSES,
        sizes={"pooling": pooling},
        tokenizer=None,
    )


def _text_readout(classes: tuple[str, ...]) -> ClassReadout:
    tokenizer = byte_tokenizer()
    return ClassReadout(
        vocab_size=len(tokenizer),
        pad_token_id=pad_id(tokenizer),
        eos_token_id=end_of_text_id(tokenizer),
        classes=classes,
    )


def _pixel_readout() -> ClassReadout:
    return ClassReadout(vocab_size=VOCAB_SIZE, classes=CLASSES)


def _counts(config: LabelledConfig) -> dict[str, int | None]:
    return {split: getattr(config, f"{split}_examples") for split in ("train", "validation", "test")}
