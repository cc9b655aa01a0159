"""What every synthetic task shares: sizes that are checked, rows that are pure functions of their address, a hash.

A task is a frozen dataclass of sizes. Adding one = one file with a subclass of `SyntheticTask` (tokens) or of
`RegressionTask` (real numbers in, one out), and its line in `registry.TASKS`.

Letters: b rows, t positions, n scored positions of all rows together, k numbers per position.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dsf_models.errors import require, require_known
from dsf_models.tasks.counter_rng import Floats, Ints, RowRandom, UInts

Int32s = NDArray[np.int32]
Columns = dict[str, NDArray[Any]]
Layout = dict[str, tuple[type, tuple[int, ...]]]

IGNORE_INDEX = -100
SPLITS = ("train", "validation", "test")
_ANSWERED_BY = {"each": "the output at position t (no shift)", "last": "the last output, for every t"}
_TOKENS_PER_BLOCK = 2**15  # the temporaries of one block of rows then stay in the processor's cache


def require_integer(field: str, value: object, least: int) -> None:
    """Raise ValueError "field=value: remedy" unless the value is an integer from `least` to 2^64-1."""
    valid = isinstance(value, Integral) and not isinstance(value, bool) and least <= value < 2**64
    require(valid, field, value, f"give an integer from {least} to 2**64 - 1")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task whose example i is a pure function of its sizes and of (seed, split, i).

    The splits are disjoint streams of random numbers, and so are the tasks. Sizes do not enter the random key: two
    sizes of one task share draws, which pairs comparisons between them.

    Every field of a subclass has a default, whose type is the type of the field.
    """

    name: ClassVar[str]
    """Name in the registry."""
    default_examples: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"train": 100_000, "validation": 3_000, "test": 3_000}
    )
    """Number of examples of each split where the caller names none."""

    sequence_length: int
    """Positions in each example."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            allowed = (int, float) if kind is float else (kind,)
            self._require(type(value) in allowed, field.name, f"give {kind.__name__}, not {type(value).__name__}")
        self._require(1 <= self.sequence_length < 2**31, "sequence_length", "give 1 to 2**31 - 1")

    @property
    @abstractmethod
    def _layout(self) -> Layout:
        """Columns drawn for each example, in the order of `_rows`: name -> (type, shape of one example)."""

    @abstractmethod
    def _rows(self, rng: RowRandom) -> tuple[NDArray[Any], ...]:
        """The columns of the layout, each (b, *shape), for the rows of the generator."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What `describe` says besides name and sizes: baselines and the meaning of the columns."""

    @property
    def _rows_per_block(self) -> int:
        """Rows drawn at once; no choice changes a row."""
        return max(1, _TOKENS_PER_BLOCK // self.sequence_length)

    def generate(self, split: str, seed: int, start: int, stop: int) -> Columns:
        """Examples start..stop-1 of a split.

        Args:
            split: "train", "validation" or "test".
            seed: 0..2^64-1.
            start: first example, at least 0.
            stop: one past the last example, at most 2^64-1.

        Returns:
            The columns of the task's kind, each with stop - start rows.

        Raises:
            ValueError: unknown split, or a seed or range outside its limits.
        """
        require_integer("start", start, 0)
        require_integer("stop", stop, start)
        return self.examples(split, seed, np.arange(start, stop, dtype=np.uint64))

    def examples(self, split: str, seed: int, indices: UInts) -> Columns:
        """The examples of these indices (b,), in this order; otherwise as `generate`."""
        require_known("split", split, SPLITS)
        require_integer("seed", seed, 0)
        columns = {name: np.empty((len(indices), *shape), kind) for name, (kind, shape) in self._layout.items()}
        for block in _blocks(len(indices), self._rows_per_block):
            rows = slice(block.start, block.stop)
            rng = RowRandom(int(seed), f"{self.name}/{split}", np.asarray(indices[rows], np.uint64))
            for column, drawn in zip(columns.values(), self._rows(rng), strict=True):
                column[rows] = drawn
        return columns

    def blocks(self, split: str, seed: int, start: int, stop: int) -> Iterator[Columns]:
        """The examples of `generate`, a few at a time."""
        for block in _blocks(stop - start, self._rows_per_block):
            yield self.generate(split, seed, start + block.start, start + block.stop)

    def data_hash(self, split: str, seed: int, num_examples: int) -> str:
        """SHA-256 of the first `num_examples` examples, each its drawn columns (inputs, then labels), little-endian."""
        require_integer("num_examples", num_examples, 1)
        digest = sha256()
        for columns in self.blocks(split, seed, 0, num_examples):
            rows = [_bytes_of_rows(columns[name]) for name in self._layout]
            digest.update(np.hstack(rows).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Name, sizes, baselines and meaning of the columns, JSON-serialisable, for cards and results files."""
        return {"name": self.name, "sizes": asdict(self), **self._facts()}

    def _require(self, condition: bool, field: str, remedy: str) -> None:
        """Raise ValueError naming the field, its value and the remedy unless the condition holds."""
        require(condition, f"{self.name}.{field}", getattr(self, field), remedy)


@dataclass(frozen=True, kw_only=True)
class SyntheticTask(Task):
    """A task whose inputs and answers are tokens.

    Columns: `input_ids` and `labels`, int32 of one fixed length; where examples differ in length, pads fill them up and
    `attention_mask` says where none stands. labels[t] is the target of the output at position t (no shift), unless
    `readout` says otherwise; -100 is not scored.
    """

    readout: ClassVar[Literal["each", "last"]] = "each"
    """Which output answers: "each", labels[t] is the target of the output at t; "last", of the last output, which has
    to hold the answers of all t."""

    vocab_size: int
    """Number of token ids, 0..vocab_size-1."""
    sequence_length: int
    """Tokens in each example."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1 <= self.vocab_size < 2**31, "vocab_size", "give 1 to 2**31 - 1")

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up shorter examples and stands for nothing else, or None where all have one length."""
        return None

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of a uniform guess among the possible answers."""

    @property
    @abstractmethod
    def best_trivial(self) -> float:
        """Accuracy of the best rule that needs no selection; a model below it has learned nothing of the task."""

    @abstractmethod
    def vocabulary(self) -> dict[str, Any]:
        """The layout of the vocabulary: role -> token id, or [first, last] of an inclusive range; JSON-serialisable."""

    @abstractmethod
    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """Facet values by which accuracy is reported.

        Args:
            input_ids: (b, t).
            labels: (b, t).

        Returns:
            facet -> integers (n,), in the row-major order of `labels[labels != -100]`.
        """

    @abstractmethod
    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        """The input_ids and labels (b, t) of the rows of the generator."""

    def examples(self, split: str, seed: int, indices: UInts) -> Columns:
        """The examples of these indices (b,), in this order: input_ids, labels and, with a pad, attention_mask."""
        columns = super().examples(split, seed, indices)
        if self.pad_token_id is not None:
            columns["attention_mask"] = (columns["input_ids"] != self.pad_token_id).astype(np.int32)
        return columns

    @property
    def _layout(self) -> Layout:
        return dict.fromkeys(("input_ids", "labels"), (np.int32, (self.sequence_length,)))

    def _facts(self) -> dict[str, Any]:
        return {
            "vocabulary": self.vocabulary(),
            "chance": self.chance,
            "best_trivial": self.best_trivial,
            "labels": f"labels[t] is the target of {_ANSWERED_BY[self.readout]}; {IGNORE_INDEX} is not scored",
        }


@dataclass(frozen=True, kw_only=True)
class RegressionTask(Task):
    """A task whose inputs are real numbers and whose answer is one real number per example.

    Columns: `inputs_values`, float32 (t, k) per example, and `labels`, one float32: what a sequence-classification head
    with num_labels=1 on a model with input_size=k takes.
    """

    num_inputs: ClassVar[int]
    """k, numbers per position."""

    @abstractmethod
    def without_noise(self) -> "RegressionTask":
        """The task with the same inputs and, as labels, the function that is to be learned, free of noise."""

    @property
    @abstractmethod
    def constant_mse(self) -> float:
        """Squared error of the best constant, the variance of the labels; a model above it has learned nothing."""

    @property
    @abstractmethod
    def oracle_mse(self) -> float:
        """Squared error of who knows the law of the labels given the inputs; no model does better."""

    @abstractmethod
    def _rows(self, rng: RowRandom) -> tuple[Floats, Floats]:
        """The inputs_values (b, t, k) and labels (b,) of the rows of the generator."""

    @property
    def _layout(self) -> Layout:
        return {"inputs_values": (np.float32, (self.sequence_length, self.num_inputs)), "labels": (np.float32, ())}

    def _facts(self) -> dict[str, Any]:
        return {
            "constant_mse": self.constant_mse,
            "oracle_mse": self.oracle_mse,
            "labels": "one number per example, the target of the output that has read all of it",
        }


def _blocks(num_rows: int, rows_per_block: int) -> Iterator[range]:
    """Cut 0..num_rows-1 into ranges of at most `rows_per_block`."""
    return (range(first, min(first + rows_per_block, num_rows)) for first in range(0, num_rows, rows_per_block))


def _bytes_of_rows(column: NDArray[Any]) -> NDArray[np.uint8]:
    """The little-endian bytes of each row: (b, ...) -> (b, bytes)."""
    little = np.ascontiguousarray(column, column.dtype.newbyteorder("<"))
    return little.reshape(len(column), -1).view(np.uint8)
