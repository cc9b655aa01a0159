"""Associative recall: key-value pairs and one query; name the value of the queried key.

    k1 v1 k2 v2 ... kP vP q         (query_first: q k1 v1 k2 v2 ... kP vP)
    labels: -100 everywhere, the value of q at the last position

Source: M. Poli et al., "Hyena hierarchy", arXiv:2302.10866, and D. Y. Fu et al., "Hungry hungry hippos",
arXiv:2212.14052. With query_first a memory of one value is enough, where otherwise all pairs must be held (compare
N. Nishikawa, T. Suzuki, arXiv:2405.19036, on token selection).

Letters: b rows, t positions, P pairs.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import distinct_law, expected_share
from dsf_models.tasks.sampling import distinct


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(SyntheticTask):
    """Associative recall: name the value of one queried key.

    A key has one value in a row, uniform over the values and independent of those of other keys. The query is uniform
    over the keys that the row shows. The only label is at the last position, wherever the query stands.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "associative_recall"

    vocab_size: int = 40
    """V. Keys are 0..V//2-1, values V//2..V-1."""
    sequence_length: int = 33
    """L = 2 P + 1, odd."""
    distinct_keys: bool = True
    """The P keys of a row are distinct; False draws them independently, so that P can exceed the number of keys."""
    query_first: bool = False
    """The query stands before the pairs, not behind them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 4, "vocab_size", "give at least 4: two keys and two values")
        odd = self.sequence_length % 2 == 1 and self.sequence_length >= 5
        self._require(odd, "sequence_length", "give an odd length of at least 5: two pairs or more, and the query")
        self._require(
            not self.distinct_keys or self._num_pairs <= self._num_keys,
            "sequence_length",
            f"it shows {self._num_pairs} distinct keys, but vocab_size={self.vocab_size} has {self._num_keys}:"
            f" give at most {2 * self._num_keys + 1}, a larger vocab_size, or distinct_keys=False",
        )

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among all values, 1 / (V - V//2)."""
        return 1 / self._num_values

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that does not compare the query with the keys, to 6 decimals.

        It names the value that most of the d keys shown have: the mean of E[largest count]/d over the law of d.
        """
        if self.distinct_keys:
            return round(expected_share(self._num_pairs, self._num_values), 6)
        law = distinct_law(self._num_pairs, self._num_keys)
        return round(sum(p * expected_share(d, self._num_values) for d, p in enumerate(law) if p > 1e-12), 6)

    def vocabulary(self) -> dict[str, Any]:
        return {"keys": [0, self._num_keys - 1], "values": [self._num_keys, self.vocab_size - 1]}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The gap of each row: L - 1 minus the position of the queried key in its last (nearest) pair.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            "gap": (b,).
        """
        query = 0 if self.query_first else -1
        keys = input_ids[:, int(self.query_first) : self.sequence_length - int(not self.query_first) : 2]
        back = (keys == input_ids[:, query, None])[:, ::-1].argmax(axis=1)
        return {"gap": 2 * (back + 1) - int(self.query_first)}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        draw = distinct if self.distinct_keys else RowRandom.integers
        keys = draw(rng, "keys", self._num_pairs, self._num_keys)
        value_of = self._num_keys + rng.integers("values", self._num_keys, self._num_values)
        values = np.take_along_axis(value_of, keys, axis=1)
        shown = np.zeros(value_of.shape, bool)
        np.put_along_axis(shown, keys, values=True, axis=1)
        # The queried key is the one shown whose random word is smallest.
        order = np.where(shown, rng.bits("query", self._num_keys) >> 1, np.uint64(2**64 - 1))
        query = order.argmin(axis=1)[:, None]
        pairs = np.stack([keys, values], axis=2).reshape(len(keys), -1)
        input_ids = np.hstack([query, pairs] if self.query_first else [pairs, query])
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, -1:] = np.take_along_axis(value_of, query, axis=1)
        return input_ids, labels

    @property
    def _num_pairs(self) -> int:
        return self.sequence_length // 2

    @property
    def _num_keys(self) -> int:
        return self.vocab_size // 2

    @property
    def _num_values(self) -> int:
        return self.vocab_size - self.vocab_size // 2
