"""Multi-query associative recall (MQAR): key-value pairs, then the keys again at random places; answer with the values.

    k1 v1 k2 v2 ... kK vK (num_passes times) | filler ... k3 filler ... k1 filler ...
    labels:   -100 everywhere                | -100   ... v3 -100   ... v1 -100   ...

Source: S. Arora et al., "Zoology: measuring and improving recall in efficient language models", arXiv:2312.04927. Here
the fillers come from the task's own seed, and random fillers can be kept off the keys.

Letters: b rows, t positions, K pairs, P passes, S slots, n = b K scored positions.
"""

from dataclasses import dataclass
from decimal import Context
from functools import cache
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require, require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom
from dsf_models.tasks.laws import choice_law, expected_largest_count
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


@dataclass(frozen=True, kw_only=True)
class MQAR(SyntheticTask):
    """Multi-query associative recall: after a list of key-value pairs, answer each key with its value.

    The context takes 2 K P tokens. The rest has S = (sequence_length - 2 K P) / 2 slots; pair i = 0..K-1 draws slot g_i
    without replacement with weights (g + 1)^(power - 1), in the order of the pairs. Its key stands at position
    2 K P + 2 g_i, and its value is the label there. The value itself is never shown again.

    Zoology also asks for vocab_size > sequence_length; nothing here needs it.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "mqar"

    vocab_size: int = 8192
    """V. Keys are 1..V//2-1, values V//2..V-1; token 0 is neither."""
    sequence_length: int = 256
    """L, even."""
    num_pairs: int = 16
    """K, the number of key-value pairs and of queries. 2 K (P + 1) <= L."""
    power: float = 0.01
    """Exponent a of the power law of the slots, in (0, 10]: small asks early, 1 is uniform. Where 2 K (P + 1) = L every
    slot is used, and it decides only which pair is asked in which."""
    num_passes: int = 1
    """P, how often the list of pairs is shown."""
    fillers: str = "zero"
    """Tokens at the positions that hold neither pair nor query: "zero"; "random", i.i.d. uniform over the vocabulary,
    keys of the row included (see `ambiguous_rows`); "random_excluding_keys", i.i.d. uniform over the other tokens."""
    unique_values: bool = True
    """Values of a row are distinct; False draws them independently, so that none can be found by elimination."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most_pairs = self.sequence_length // (2 * (max(self.num_passes, 1) + 1))
        least_length = 2 * self.num_pairs * (self.num_passes + 1)
        self._require(self.vocab_size >= 4, "vocab_size", "give at least 4: the token 0, one key, two values")
        self._require(self.num_passes >= 1, "num_passes", "give at least 1")
        self._require(self.num_pairs >= 1, "num_pairs", "give at least 1")
        self._require(self.sequence_length % 2 == 0, "sequence_length", "slots take two tokens: give an even length")
        self._require(
            least_length <= self.sequence_length,
            "num_pairs",
            f"2 * num_pairs * (num_passes + 1) = {least_length} tokens exceed sequence_length={self.sequence_length}:"
            f" give at most {most_pairs} pairs, or a sequence_length of at least {least_length}",
        )
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

    @property
    def expected_ambiguous(self) -> float:
        """Expected share of `ambiguous_rows`: 1 - (1 - K/V)^(L - 2 K P - K) for random fillers, else 0."""
        fillers = 2 * self._num_slots - self.num_pairs
        return 1 - (1 - self.num_pairs / self.vocab_size) ** fillers if self.fillers == "random" else 0.0

    def vocabulary(self) -> dict[str, Any]:
        first_value, last = self.vocab_size // 2, self.vocab_size - 1
        filler = {"zero": 0, "random": [0, last], "random_excluding_keys": "any token that is not a key of the row"}
        return {"filler": filler[self.fillers], "keys": [1, first_value - 1], "values": [first_value, last]}

    def describe(self) -> dict[str, Any]:
        """As for every task, with the expected share of ambiguous rows."""
        return {**super().describe(), "expected_ambiguous": self.expected_ambiguous}

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
        scored = labels != IGNORE_INDEX
        whole = scored.shape[1] == self.sequence_length and (scored.sum(axis=1) == self.num_pairs).all()
        require(whole, "labels.shape", labels.shape, f"give whole rows of {self}")
        position = np.nonzero(scored)[1].reshape(-1, self.num_pairs)
        queries = np.take_along_axis(input_ids, position, axis=1)
        keys = self._keys(input_ids)
        # Each key is asked exactly once: the sorted queries of a row are its sorted keys.
        pair = np.empty_like(position)
        np.put_along_axis(pair, queries.argsort(axis=1), keys.argsort(axis=1), axis=1)
        return {"gap": (position - self._last_pass - 2 * pair).ravel()}

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

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        keys = 1 + distinct(rng, "keys", self.num_pairs, self._num_keys)
        values = self.vocab_size // 2 + self._values(rng)
        weights = slot_weights(self._num_slots, self.power)
        position = self._context + 2 * weighted(rng, "slots", self.num_pairs, weights)
        pairs = np.stack([keys, values], axis=2).reshape(len(keys), -1)
        input_ids = np.hstack([np.tile(pairs, self.num_passes), self._fillers(rng, keys)])
        labels = np.full_like(input_ids, IGNORE_INDEX)
        np.put_along_axis(input_ids, position, keys, axis=1)
        np.put_along_axis(labels, position, values, axis=1)
        return input_ids, labels

    def _values(self, rng: RowRandom) -> Ints:
        """Values counted from the first one (b, K)."""
        if self.unique_values:
            return distinct(rng, "values", self.num_pairs, self._num_values)
        return rng.integers("values", self.num_pairs, self._num_values)

    def _fillers(self, rng: RowRandom, keys: Ints) -> Ints:
        """Fillers for every position after the context (b, 2 S)."""
        if self.fillers == "zero":
            return np.zeros((len(keys), 2 * self._num_slots), np.int64)
        if self.fillers == "random":
            return rng.integers("fillers", 2 * self._num_slots, self.vocab_size)
        ranks = rng.integers("fillers", 2 * self._num_slots, self.vocab_size - self.num_pairs)
        return skip_excluded(ranks, keys, self.vocab_size)

    def _keys(self, input_ids: Int32s) -> Int32s:
        """The keys of the context, in the order of the pairs (b, K)."""
        return input_ids[:, self._last_pass : self._context : 2]

    @property
    def _num_keys(self) -> int:
        return self.vocab_size // 2 - 1

    @property
    def _num_values(self) -> int:
        return self.vocab_size - self.vocab_size // 2

    @property
    def _context(self) -> int:
        """Tokens of the context, 2 K P."""
        return 2 * self.num_pairs * self.num_passes

    @property
    def _last_pass(self) -> int:
        """Position of the first key of the last pass, 2 K (P - 1)."""
        return self._context - 2 * self.num_pairs

    @property
    def _num_slots(self) -> int:
        return (self.sequence_length - self._context) // 2
