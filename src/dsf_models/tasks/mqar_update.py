"""MQAR with updates: keys are written again with other values, and the last value counts.

    k1 v1 ... kK vK | k2 w1 k5 w2 k2 w3 ... | filler ... k2 filler ... k1 filler ...
    labels:   -100 everywhere               | -100   ... w3 -100   ... v1 -100   ...

A memory that can only add answers an overwritten key with a mixture of its values; one with a gate can forget.

Source: the "forgetting" relative of the MQAR of S. Arora et al., arXiv:2312.04927; the law of the updates is this
project's own.

Letters: b rows, t positions, K pairs, U updates, n = b K scored positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import Int32s
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.queries import PairsTask, index_in, position_baseline
from dsf_models.tasks.sampling import distinct


@dataclass(frozen=True, kw_only=True)
class MQARUpdate(PairsTask):
    """Multi-query associative recall with updates: answer each key with the last value that was written to it.

    The context takes c = 2 (K + U) tokens: every key once, then U updates, each of a key drawn uniformly and
    independently of the others. All K + U values of a row are distinct, so that no stale value is ever right. See
    `PairsTask` for what follows.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "mqar_update"

    num_updates: int = 16
    """U, how many writes follow the first one of every key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.num_updates >= 0, "num_updates", "give 0, which is mqar, or more")
        writes = self.num_pairs + self.num_updates
        least_length = 2 * writes + 2 * self.num_pairs
        self._require(
            least_length <= self.sequence_length,
            "num_updates",
            f"4 * num_pairs + 2 * num_updates = {least_length} tokens exceed sequence_length={self.sequence_length}:"
            f" give fewer pairs or updates, or a sequence_length of at least {least_length + least_length % 2}",
        )
        self._require(
            writes <= self._num_values,
            "num_updates",
            f"vocab_size={self.vocab_size} has only {self._num_values} values for {writes} writes: give fewer updates,"
            f" or a vocab_size of at least {2 * writes}",
        )

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that compares no query with a key, to 6 decimals; at least 1/K.

        It answers with the present value of the pair that is asked most often at the position: see
        `position_baseline`.
        """
        return round(position_baseline(self._num_slots, self.num_pairs, self.power), 6)

    @property
    def never_updating(self) -> float:
        """Expected accuracy of a memory that keeps the first value of every key: (1 - 1/K)^U."""
        return (1 - 1 / self.num_pairs) ** self.num_updates

    def describe(self) -> dict[str, Any]:
        """As for every task, with the share of ambiguous rows and the accuracy of a memory that never updates."""
        return {**super().describe(), "never_updating": self.never_updating}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """Of each query, its distance to the last write of its key, and how often that key was overwritten.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t), each row with its K labels.

        Returns:
            "gap" and "overwrites": (n,), in the row-major order of `labels[labels != -100]`.

        Raises:
            ValueError: rows of other sizes.
        """
        position, pair = self._queries(input_ids, labels)
        updated = index_in(input_ids[:, 2 * self.num_pairs : self._context : 2], self._keys(input_ids))
        last, overwrites = self._last_write(updated), np.zeros_like(pair)
        np.add.at(overwrites, (np.arange(len(pair))[:, None], updated), 1)
        return {
            "gap": (position - 2 * np.take_along_axis(last, pair, axis=1)).ravel(),
            "overwrites": np.take_along_axis(overwrites, pair, axis=1).ravel(),
        }

    def _context_rows(self, rng: RowRandom, keys: Ints) -> tuple[Ints, Ints]:
        updated = rng.integers("updates", self.num_updates, self.num_pairs)
        values = self.vocab_size // 2 + distinct(rng, "values", self._context // 2, self._num_values)
        written = np.hstack([keys, np.take_along_axis(keys, updated, axis=1)])
        context = np.stack([written, values], axis=2).reshape(len(keys), -1)
        return context, np.take_along_axis(values, self._last_write(updated), axis=1)

    def _last_write(self, updated: Ints) -> Ints:
        """The last write 0..K+U-1 of each pair (b, K), given the pair of each update (b, U)."""
        last = np.tile(np.arange(self.num_pairs), (len(updated), 1))
        writes = np.arange(self.num_pairs, self.num_pairs + self.num_updates)
        np.maximum.at(last, (np.arange(len(updated))[:, None], updated), writes)
        return last

    def _keys(self, input_ids: Int32s) -> Int32s:
        return input_ids[:, : 2 * self.num_pairs : 2]

    @property
    def _context(self) -> int:
        return 2 * (self.num_pairs + self.num_updates)
