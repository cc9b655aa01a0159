"""What every synthetic task shares: sizes that are checked, rows that are pure functions of their address, a hash.

A task is a frozen dataclass of sizes. Adding one = one file with a subclass of `SyntheticTask` and its line in
`registry.TASKS`.

Letters: b rows, t positions, n scored positions of all rows together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dsf_models.errors import require, require_known
from dsf_models.tasks.counter_rng import Ints, RowRandom, UInts

Int32s = NDArray[np.int32]

IGNORE_INDEX = -100
SPLITS = ("train", "validation", "test")
_TOKENS_PER_BLOCK = 2**15  # the temporaries of one block of rows then stay in the processor's cache


def require_integer(field: str, value: object, least: int) -> None:
    """Raise ValueError "field=value: remedy" unless the value is an integer from `least` to 2^64-1."""
    valid = isinstance(value, Integral) and not isinstance(value, bool) and least <= value < 2**64
    require(valid, field, value, f"give an integer from {least} to 2**64 - 1")


@dataclass(frozen=True, kw_only=True)
class SyntheticTask(ABC):
    """A task whose example i is a pure function of its sizes and of (seed, split, i).

    Columns: `input_ids` and `labels`, int32 of one fixed length; where examples differ in length, pads fill them up and
    `attention_mask` says where none stands. labels[t] is the target of the output at position t (no shift); -100 is
    not scored. The splits are disjoint streams of random numbers, and so are the tasks. Sizes do not enter the random
    key: two sizes of one task share draws, which pairs comparisons between them.

    Every field of a subclass has a default, whose type is the type of the field.
    """

    name: ClassVar[str]
    """Name in the registry."""
    default_examples: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"train": 100_000, "validation": 3_000, "test": 3_000}
    )
    """Number of examples of each split where the caller names none."""

    vocab_size: int
    """Number of token ids, 0..vocab_size-1."""
    sequence_length: int
    """Tokens in each example."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            allowed = (int, float) if kind is float else (kind,)
            self._require(type(value) in allowed, field.name, f"give {kind.__name__}, not {type(value).__name__}")
        for name in ("vocab_size", "sequence_length"):
            self._require(1 <= getattr(self, name) < 2**31, name, "give 1 to 2**31 - 1")

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

    def generate(self, split: str, seed: int, start: int, stop: int) -> dict[str, Int32s]:
        """Examples start..stop-1 of a split.

        Args:
            split: "train", "validation" or "test".
            seed: 0..2^64-1.
            start: first example, at least 0.
            stop: one past the last example, at most 2^64-1.

        Returns:
            input_ids, labels and, where there is a `pad_token_id`, attention_mask, int32 (stop - start, t).

        Raises:
            ValueError: unknown split, or a seed or range outside its limits.
        """
        require_integer("start", start, 0)
        require_integer("stop", stop, start)
        return self.examples(split, seed, np.arange(start, stop, dtype=np.uint64))

    def examples(self, split: str, seed: int, indices: UInts) -> dict[str, Int32s]:
        """The examples of these indices (b,), in this order; otherwise as `generate`."""
        require_known("split", split, SPLITS)
        require_integer("seed", seed, 0)
        columns = {name: np.empty((len(indices), self.sequence_length), np.int32) for name in ("input_ids", "labels")}
        for block in _blocks(0, len(indices), self.sequence_length):
            rows = slice(block.start, block.stop)
            rng = RowRandom(int(seed), f"{self.name}/{split}", np.asarray(indices[rows], np.uint64))
            columns["input_ids"][rows], columns["labels"][rows] = self._rows(rng)
        if self.pad_token_id is not None:
            columns["attention_mask"] = (columns["input_ids"] != self.pad_token_id).astype(np.int32)
        return columns

    def data_hash(self, split: str, seed: int, num_examples: int) -> str:
        """SHA-256 of the first `num_examples` examples, each its input_ids, then its labels, as little-endian int32."""
        require_integer("num_examples", num_examples, 1)
        digest = sha256()
        for block in _blocks(0, num_examples, self.sequence_length):
            columns = self.generate(split, seed, block.start, block.stop)
            digest.update(np.hstack([columns["input_ids"], columns["labels"]]).astype("<i4").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Name, sizes, vocabulary, baselines and label convention, JSON-serialisable, for cards and results files."""
        return {
            "name": self.name,
            "sizes": asdict(self),
            "vocabulary": self.vocabulary(),
            "chance": self.chance,
            "best_trivial": self.best_trivial,
            "labels": f"labels[t] is the target of the output at position t (no shift); {IGNORE_INDEX} is not scored",
        }

    def _require(self, condition: bool, field: str, remedy: str) -> None:
        """Raise ValueError naming the field, its value and the remedy unless the condition holds."""
        require(condition, f"{self.name}.{field}", getattr(self, field), remedy)


def _blocks(start: int, stop: int, sequence_length: int) -> Iterator[range]:
    """Cut start..stop-1 into ranges of about _TOKENS_PER_BLOCK tokens."""
    rows = max(1, _TOKENS_PER_BLOCK // sequence_length)
    return (range(first, min(first + rows, stop)) for first in range(start, stop, rows))
