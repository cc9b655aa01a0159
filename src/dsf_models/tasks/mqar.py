"""Multi-query associative recall (MQAR): key-value pairs, then the keys again at random places; answer with the values.

    k1 v1 k2 v2 ... kK vK (num_passes times) | filler ... k3 filler ... k1 filler ...
    labels:   -100 everywhere                | -100   ... v3 -100   ... v1 -100   ...

Source: S. Arora et al., "Zoology: measuring and improving recall in efficient language models", arXiv:2312.04927. Here
the fillers come from the task's own seed, and random fillers can be kept off the keys.

Letters: b rows, t positions, K pairs, P passes, S slots, n = b K scored positions.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dsf_models.tasks.base import Int32s
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_largest_count
from dsf_models.tasks.queries import PairsTask, position_baseline
from dsf_models.tasks.sampling import distinct


@dataclass(frozen=True, kw_only=True)
class MQAR(PairsTask):
    """Multi-query associative recall: after a list of key-value pairs, answer each key with its value.

    The context takes c = 2 K P tokens, so that 2 K (P + 1) <= sequence_length. See `PairsTask` for what follows it.

    Zoology also asks for vocab_size > sequence_length; nothing here needs it.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "mqar"

    num_passes: int = 1
    """P, how often the list of pairs is shown."""
    unique_values: bool = True
    """Values of a row are distinct; False draws them independently, so that none can be found by elimination."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.num_passes >= 1, "num_passes", "give at least 1")
        most_pairs = self.sequence_length // (2 * (self.num_passes + 1))
        least_length = 2 * self.num_pairs * (self.num_passes + 1)
        self._require(
            least_length <= self.sequence_length,
            "num_pairs",
            f"2 * num_pairs * (num_passes + 1) = {least_length} tokens exceed sequence_length={self.sequence_length}:"
            f" give at most {most_pairs} pairs, or a sequence_length of at least {least_length}",
        )

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that compares no query with a key, to 6 decimals; at least 1/K.

        Guessing any one of the K values shown gives 1/K. Elimination adds nothing: the answers are never shown, and
        giving each value once has the same expectation. The position does add: see `position_baseline`.
        With unique_values=False a wrong pair holds the right value with probability `chance`, and the rule competes
        with answering the value that the row shows most often, E[largest count]/K; the better of the two is given.
        """
        by_position = position_baseline(self._num_slots, self.num_pairs, self.power)
        if self.unique_values:
            return round(by_position, 6)
        most_frequent = expected_largest_count(self.num_pairs, self._num_values) / self.num_pairs
        return round(max(by_position + (1 - by_position) * self.chance, most_frequent), 6)

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The gap of each query: its position minus the position of its key in the last (nearest) pass of the context.

        Gaps are even: 2 for the last pair asked in the first slot, up to L - 2 K (P - 1) - 2.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t), each row with its K labels.

        Returns:
            "gap": (n,), in the row-major order of `labels[labels != -100]`.

        Raises:
            ValueError: rows of other sizes.
        """
        position, pair = self._queries(input_ids, labels)
        return {"gap": (position - self._last_pass - 2 * pair).ravel()}

    def _context_rows(self, rng: RowRandom, keys: Ints) -> tuple[Ints, Ints]:
        values = self.vocab_size // 2 + self._values(rng)
        pairs = np.stack([keys, values], axis=2).reshape(len(keys), -1)
        return np.tile(pairs, self.num_passes), values

    def _values(self, rng: RowRandom) -> Ints:
        """Values counted from the first one (b, K)."""
        if self.unique_values:
            return distinct(rng, "values", self.num_pairs, self._num_values)
        return rng.integers("values", self.num_pairs, self._num_values)

    def _keys(self, input_ids: Int32s) -> Int32s:
        return input_ids[:, self._last_pass : self._context : 2]

    @property
    def _context(self) -> int:
        return 2 * self.num_pairs * self.num_passes

    @property
    def _last_pass(self) -> int:
        """Position of the first key of the last pass, 2 K (P - 1)."""
        return self._context - 2 * self.num_pairs
