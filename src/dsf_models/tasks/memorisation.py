"""Memorisation: a fixed map of keys to values that no row shows; after each key, give its value.

    k3 insert k1 insert ...
    -100   v3 -100   v1 ...

Source: M. Poli et al., "Mechanistic design and scaling of hybrid architectures" (MAD), arXiv:2403.17844.

Letters: b rows, t positions, n scored positions.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_largest_count


@dataclass(frozen=True, kw_only=True)
class Memorisation(SyntheticTask):
    """Memorisation: the value of each key under a map that depends on the seed alone, the same in all splits.

    Keys are i.i.d. uniform, and the map draws each value i.i.d. uniformly. The value of the key at position 2 i is the
    label at the `insert` at 2 i + 1. Scores on a split of another seed mean nothing.
    """

    name: ClassVar[str] = "memorisation"

    vocab_size: int = 256
    """V. Token 0 is `insert`, 1..V//2-1 are keys, V//2..V-1 values."""
    sequence_length: int = 32
    """Even: two tokens a key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 4, "vocab_size", "give at least 4: insert, one key, two values")
        self._require(self.sequence_length % 2 == 0, "sequence_length", "keys take two tokens: give an even length")

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the values, 1 / (V - V//2)."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    @property
    def best_trivial(self) -> float:
        """Accuracy of always giving the value of most keys, in the mean over the seeds, to 6 decimals."""
        keys = self.vocab_size // 2 - 1
        return round(expected_largest_count(keys, self.vocab_size - self.vocab_size // 2) / keys, 6)

    def vocabulary(self) -> dict[str, Any]:
        half = self.vocab_size // 2
        return {"insert": 0, "keys": [1, half - 1], "values": [half, self.vocab_size - 1]}

    def values_of_keys(self, seed: int) -> Ints:
        """The map: the value token of key 1, 2, ..., (V//2 - 1,)."""
        return self._map(RowRandom(seed, "", np.zeros(0, np.uint64)))

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """No facets: every key is like every other."""
        return {}

    def _map(self, rng: RowRandom) -> Ints:
        # A scope of its own, so that all splits share the map.
        shared = replace(rng, scope=f"{self.name}/map", rows=np.zeros(1, np.uint64))
        half = self.vocab_size // 2
        return half + shared.integers("values", half - 1, self.vocab_size - half)[0]

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        keys = rng.integers("keys", self.sequence_length // 2, self.vocab_size // 2 - 1)
        input_ids = np.zeros((len(keys), self.sequence_length), np.int64)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        input_ids[:, 0::2], labels[:, 1::2] = 1 + keys, self._map(rng)[keys]
        return input_ids, labels
