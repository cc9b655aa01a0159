"""What tasks share that show key-value pairs, and then ask for the keys at random places.

    context | filler ... k3 filler ... k1 filler ...
    labels: | -100   ... v3 -100   ... v1 -100   ...

Letters: b rows, t positions, K pairs, S slots, c tokens of the context, f tokens, n = b K answers.
"""

from abc import abstractmethod
from dataclasses import dataclass
from decimal import Context
from functools import cache
from typing import Any

import numpy as np

from dsf_models.errors import require, require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom
from dsf_models.tasks.laws import choice_law
from dsf_models.tasks.sampling import distinct, skip_excluded, weighted

FILLERS = ("zero", "random", "random_excluding_keys")


@cache
def slot_weights(slots: int, power: float) -> Floats:
    """The power law (g + 1)^(power - 1) of the slots g = 0..slots-1, float64 (slots,)."""
    # Decimal powers are the same on every platform; those of the C library are not.
    context = Context(prec=25)
    exponent = context.create_decimal_from_float(power - 1)
    weights = np.array([float(context.power(g, exponent)) for g in range(1, slots + 1)])
    weights.flags.writeable = False
    return weights


@cache
def position_baseline(slots: int, pairs: int, power: float) -> float:
    """Accuracy of answering each query with the value of the pair that is asked most often at that position.

        (1/K) sum_g max_i Prob(pair i is asked in slot g)

    Slots are drawn in the order of the pairs, so early pairs tend to be asked early: this exceeds 1/K unless power = 1.
    Of all rules that ignore the identity of the keys it is nearly the best: knowing every slot in use as well lifts it
    from 0.2882 to 0.2901 at (L, K) = (64, 4), and not at all where every slot is used.
    """
    return float(choice_law(slot_weights(slots, power), pairs).max(axis=0).sum() / pairs)


def index_in(tokens: Ints, keys: Ints) -> Ints:
    """Where each token stands among the keys of its row.

    Args:
        tokens: (b, f), each one of the keys of its row.
        keys: (b, K), distinct in each row, not negative.

    Returns:
        int64 (b, f), in 0..K-1.
    """
    rows = len(keys)
    order = keys.argsort(axis=1)
    # A row's offset sets its tokens apart from those of other rows, so that one search serves all.
    offset = (1 + int(keys.max(initial=0))) * np.arange(rows)[:, None]
    ranks = np.searchsorted((np.take_along_axis(keys, order, axis=1) + offset).ravel(), tokens + offset)
    return order.ravel()[ranks]


@dataclass(frozen=True, kw_only=True)
class PairsTask(SyntheticTask):
    """Key-value pairs, and after them every key once, to be answered with its value.

    After the context come S = (sequence_length - c) / 2 slots of two tokens; pair i = 0..K-1 draws slot g_i without
    replacement with weights (g + 1)^(power - 1), in the order of the pairs. Its key stands at position c + 2 g_i, and
    its value is the label there. The answer itself is not shown again.
    """

    vocab_size: int = 8192
    """V. Keys are 1..V//2-1, values V//2..V-1; token 0 is neither."""
    sequence_length: int = 256
    """L, even."""
    num_pairs: int = 16
    """K, the number of keys and of queries."""
    power: float = 0.01
    """Exponent a of the power law of the slots, in (0, 10]: small asks early, 1 is uniform. Where every slot is used,
    it decides only which pair is asked in which."""
    fillers: str = "zero"
    """Tokens after the context that are no queries: "zero"; "random", i.i.d. uniform over the vocabulary, keys of the
    row included (see `ambiguous_rows`); "random_excluding_keys", i.i.d. uniform over the other tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 4, "vocab_size", "give at least 4: the token 0, one key, two values")
        self._require(self.num_pairs >= 1, "num_pairs", "give at least 1")
        self._require(self.sequence_length % 2 == 0, "sequence_length", "slots take two tokens: give an even length")
        self._require(
            self.num_pairs <= self._num_keys,
            "num_pairs",
            f"vocab_size={self.vocab_size} has only {self._num_keys} keys: give fewer pairs,"
            f" or a vocab_size of at least {2 * self.num_pairs + 2}",
        )
        self._require(0 < self.power <= 10, "power", "give a number in (0, 10]; Zoology uses 0.01, and 1 is uniform")
        require_known(f"{self.name}.fillers", self.fillers, FILLERS)

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among all values, 1 / (V - V//2)."""
        return 1 / self._num_values

    @property
    def expected_ambiguous(self) -> float:
        """Expected share of `ambiguous_rows`: 1 - (1 - K/V)^(L - c - K) for random fillers, else 0."""
        fillers = 2 * self._num_slots - self.num_pairs
        return 1 - (1 - self.num_pairs / self.vocab_size) ** fillers if self.fillers == "random" else 0.0

    def vocabulary(self) -> dict[str, Any]:
        first_value, last = self.vocab_size // 2, self.vocab_size - 1
        filler = {"zero": 0, "random": [0, last], "random_excluding_keys": "any token that is not a key of the row"}
        return {"filler": filler[self.fillers], "keys": [1, first_value - 1], "values": [first_value, last]}

    def describe(self) -> dict[str, Any]:
        """As for every task, with the expected share of ambiguous rows."""
        return {**super().describe(), "expected_ambiguous": self.expected_ambiguous}

    def ambiguous_rows(self, input_ids: Int32s, labels: Int32s) -> Bools:
        """Which rows hold a filler equal to one of their keys, a query without a label; none unless fillers="random".

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            bool (b,); its sum is the number of ambiguous rows.
        """
        tail = slice(self._context, None)
        row = self.vocab_size * np.arange(len(input_ids))[:, None]
        repeated = np.isin(input_ids[:, tail] + row, self._keys(input_ids) + row)
        return (repeated & (labels[:, tail] == IGNORE_INDEX)).any(axis=1)

    @abstractmethod
    def _context_rows(self, rng: RowRandom, keys: Ints) -> tuple[Ints, Ints]:
        """The tokens of the context (b, c), and the answer to each of the keys (b, K)."""

    @abstractmethod
    def _keys(self, input_ids: Int32s) -> Int32s:
        """The keys of the context, in the order of the pairs (b, K)."""

    @property
    @abstractmethod
    def _context(self) -> int:
        """c, the tokens of the context."""

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        keys = 1 + distinct(rng, "keys", self.num_pairs, self._num_keys)
        context, answers = self._context_rows(rng, keys)
        weights = slot_weights(self._num_slots, self.power)
        position = self._context + 2 * weighted(rng, "slots", self.num_pairs, weights)
        input_ids = np.hstack([context, self._fillers(rng, keys)])
        labels = np.full_like(input_ids, IGNORE_INDEX)
        np.put_along_axis(input_ids, position, keys, axis=1)
        np.put_along_axis(labels, position, answers, axis=1)
        return input_ids, labels

    def _fillers(self, rng: RowRandom, keys: Ints) -> Ints:
        """Fillers for every position after the context (b, 2 S)."""
        if self.fillers == "zero":
            return np.zeros((len(keys), 2 * self._num_slots), np.int64)
        if self.fillers == "random":
            return rng.integers("fillers", 2 * self._num_slots, self.vocab_size)
        ranks = rng.integers("fillers", 2 * self._num_slots, self.vocab_size - self.num_pairs)
        return skip_excluded(ranks, keys, self.vocab_size)

    def _queries(self, input_ids: Int32s, labels: Int32s) -> tuple[Ints, Ints]:
        """The positions of the queries and the pairs that they ask for, both (b, K), from left to right.

        Raises:
            ValueError: rows of other sizes.
        """
        scored = labels != IGNORE_INDEX
        whole = scored.shape[1] == self.sequence_length and (scored.sum(axis=1) == self.num_pairs).all()
        require(whole, "labels.shape", labels.shape, f"give whole rows of {self}")
        position = np.nonzero(scored)[1].reshape(-1, self.num_pairs)
        return position, index_in(np.take_along_axis(input_ids, position, axis=1), self._keys(input_ids))

    @property
    def _num_keys(self) -> int:
        return self.vocab_size // 2 - 1

    @property
    def _num_values(self) -> int:
        return self.vocab_size - self.vocab_size // 2

    @property
    def _num_slots(self) -> int:
        return (self.sequence_length - self._context) // 2
