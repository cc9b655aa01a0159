"""A needle in a haystack: values hidden among noise behind a marker and a key; at the end, the key asks for its value.

    noise ... # k v1 v2 v3 noise ... # k v1 v2
    labels:           -100 ...         v1 v2 v3

Source: C.-P. Hsieh et al., "RULER: what's the real context size of your long-context language models?",
arXiv:2404.06654; here in tokens, so that nothing depends on a tokenizer or on text.

Letters: b rows, t positions, N needles, q needles that are asked for, m tokens of a value, F tokens of noise,
n = b q m scored positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_share
from dsf_models.tasks.sampling import distinct

VARIANTS = ("single", "multikey", "multivalue", "multiquery")
_ANY_DEPTH = -1


@dataclass(frozen=True, kw_only=True)
class Needle(SyntheticTask):
    """Needle in a haystack: repeat the value that followed the marker and the key.

    A needle is the marker, a key and m tokens of value, each uniform and independent. Each needle has a uniform number
    0..F of tokens of noise before it, independent of the others. Queries stand at the end: marker and key, then the
    answer, but for the very last token; the labels are at the key and at the tokens of the answer that have a next one.

    * "single": one needle.
    * "multikey": N needles with N keys; one of them is asked for.
    * "multivalue": N needles with one key; the answer is all values, in the order of the needles.
    * "multiquery": N needles with N keys; all are asked for, in a random order, each query with its answer behind it.

    Marker, keys, values and noise share no tokens, and keys of a row are distinct, so that no answer is ambiguous.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "needle"

    vocab_size: int = 256
    """V. Token 0 is the marker, 1..V//4-1 are keys, V//4..V//2-1 values, V//2..V-1 noise."""
    sequence_length: int = 1024
    """L, queries and answers included."""
    variant: str = "single"
    """What is hidden and what is asked; see above."""
    num_needles: int = 1
    """N; 1 for "single", at least 2 for the others."""
    value_tokens: int = 4
    """m."""
    depth: int = _ANY_DEPTH
    """Share of the noise that stands before the needle that is asked for, in tenths, 0..10; -1 is uniform. Only where
    one needle is asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 12, "vocab_size", "give at least 12: two keys and three values")
        require_known(f"{self.name}.variant", self.variant, VARIANTS)
        self._require(self.value_tokens >= 1, "value_tokens", "give at least 1")
        most = 1 if self.variant == "single" else self._num_keys if self._keyed else self.sequence_length
        least = 1 if self.variant == "single" else 2
        self._require(
            least <= self.num_needles <= most, "num_needles", f'give {least} to {most} for variant="{self.variant}"'
        )
        self._require(-1 <= self.depth <= 10, "depth", "give tenths, 0 to 10, or -1 for uniform")
        self._require(
            self.depth == _ANY_DEPTH or self._asked == 1,
            "depth",
            f'variant="{self.variant}" asks for all of its needles: give -1',
        )
        needed = self.sequence_length - self._noise_tokens + 20
        self._require(
            self._noise_tokens >= 20,
            "sequence_length",
            f"give at least {needed}, for needles, queries and 20 tokens of noise",
        )

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the tokens of values."""
        return 1 / self._num_values

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that compares no needle with the queries and answers, to 6 decimals.

        With several keys: the token that most needles have at this place of their value, E[largest of N counts] / N.
        With one key, of the rules that ignore the order: the most frequent of the row's N m tokens of values.
        """
        shown = self.num_needles if self._keyed else self.num_needles * self.value_tokens
        return round(expected_share(shown, self._num_values), 6)

    def vocabulary(self) -> dict[str, Any]:
        quarter, half = self.vocab_size // 4, self.vocab_size // 2
        noise = [half, self.vocab_size - 1]
        return {"marker": 0, "keys": [1, quarter - 1], "values": [quarter, half - 1], "noise": noise}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The depth of the needle of each answer, in tenths of the noise, rounded: 0..10.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t), each row with its q m labels.

        Returns:
            "depth": (n,), in the row-major order of `labels[labels != -100]`.
        """
        place = np.nonzero(input_ids[:, : self._body] == 0)[1].reshape(-1, self.num_needles)
        if self._keyed:
            keys = np.take_along_axis(input_ids, place + 1, axis=1)
            asked = input_ids[:, self._body + 1 :: self._width]
            order = (asked[:, :, None] == keys[:, None, :]).argmax(axis=2)
        else:
            order = np.broadcast_to(np.arange(self.num_needles), place.shape)
        before = place - self._width * np.arange(self.num_needles)
        tenths = (20 * np.take_along_axis(before, order, axis=1) + self._noise_tokens) // (2 * self._noise_tokens)
        return {"depth": np.repeat(tenths, self.value_tokens, axis=1).ravel()}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        needles, before = self._needles(rng), self._noise_before(rng)
        # The needles are drawn alike: the first ones drawn are a random choice of those from left to right.
        order = before.argsort(axis=1, kind="stable").argsort(axis=1)[:, : self._asked]
        if not self._keyed:
            order.sort(axis=1)
        asked = np.take_along_axis(needles, order[:, :, None], axis=1)
        if self.variant == "multivalue":  # one query for all
            asked = np.concatenate([asked[:, 0, :2], asked[:, :, 2:].reshape(len(asked), -1)], axis=1)
        tail = asked.reshape(len(asked), -1)
        input_ids = np.hstack([self._haystack(rng, needles, np.sort(before, axis=1)), tail[:, :-1]])
        labels = np.full_like(input_ids, IGNORE_INDEX)
        quarter, half = self.vocab_size // 4, self.vocab_size // 2
        answers = (tail[:, 1:] >= quarter) & (tail[:, 1:] < half)
        labels[:, self._body :][answers] = tail[:, 1:][answers]
        return input_ids, labels

    def _needles(self, rng: RowRandom) -> Ints:
        """The tokens of the needles, from left to right (b, N, width)."""
        count, m = self.num_needles, self.value_tokens
        keys = distinct(rng, "keys", count if self._keyed else 1, self._num_keys)
        values = rng.integers("values", count * m, self._num_values).reshape(-1, count, m)
        needles = np.zeros((len(keys), count, self._width), np.int64)
        needles[:, :, 1], needles[:, :, 2:] = 1 + keys, self.vocab_size // 4 + values
        return needles

    def _noise_before(self, rng: RowRandom) -> Ints:
        """How many tokens of noise stand before each needle, in no order (b, N); with a depth, the first has it."""
        before = rng.integers("places", self.num_needles, self._noise_tokens + 1)
        if self.depth != _ANY_DEPTH:
            before[:, 0] = (2 * self.depth * self._noise_tokens + 10) // 20
        return before

    def _haystack(self, rng: RowRandom, needles: Ints, before: Ints) -> Ints:
        """The needles, from left to right, each behind so many tokens of noise: (b, N width + F)."""
        place = before + self._width * np.arange(self.num_needles)
        half = self.vocab_size // 2
        haystack = half + rng.integers("noise", self._body, self.vocab_size - half)
        position = (place[:, :, None] + np.arange(self._width)).reshape(len(place), -1)
        np.put_along_axis(haystack, position, needles.reshape(len(place), -1), axis=1)
        return haystack

    @property
    def _keyed(self) -> bool:
        """Whether needles have different keys."""
        return self.variant in ("multikey", "multiquery")

    @property
    def _asked(self) -> int:
        """Q."""
        return 1 if self.variant == "multikey" else self.num_needles

    @property
    def _width(self) -> int:
        """Tokens of a needle, 2 + m."""
        return 2 + self.value_tokens

    @property
    def _body(self) -> int:
        """Tokens before the first query."""
        queries = 1 if self.variant == "multivalue" else self._asked
        return self.sequence_length + 1 - 2 * queries - self.value_tokens * self._asked

    @property
    def _noise_tokens(self) -> int:
        """F."""
        return self._body - self._width * self.num_needles

    @property
    def _num_keys(self) -> int:
        return self.vocab_size // 4 - 1

    @property
    def _num_values(self) -> int:
        return self.vocab_size // 2 - self.vocab_size // 4
