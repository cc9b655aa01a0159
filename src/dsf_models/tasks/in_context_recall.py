"""In-context recall, plain, noisy and fuzzy: a stream of key-value pairs; give the value of each key seen before.

    k3 v7 k1 v2 k3 v7 ...  k1   v2
    labels:     -100  v7   ...  v2  -100    (training on every token: each label is the next token)

Source: M. Poli et al., "Mechanistic design and scaling of hybrid architectures" (MAD), arXiv:2403.17844. Here rows hold
whole pairs, so that the last position has no target, and every split draws from one law but for what is said below.

Letters: b rows, t positions, p pairs, m tokens of the longest key, n scored positions.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom
from dsf_models.tasks.laws import binomial_law, expected_share

TRAIN_TARGETS = ("answers", "all")


def occurrences(ids: Ints) -> tuple[Ints, Ints]:
    """Where each entry of a row stands for the first time, and where it stood last before (-1: nowhere).

    Args:
        ids: (b, p).

    Returns:
        Two arrays of indices, int64 (b, p).
    """
    order = ids.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    head = np.maximum.accumulate(np.where(begins, np.arange(ids.shape[1]), 0), axis=1)
    first, previous = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(first, order, np.take_along_axis(order, head, axis=1), axis=1)
    np.put_along_axis(previous, order, np.where(begins, -1, np.roll(order, 1, axis=1)), axis=1)
    return first, previous


def distinct_tuples(rng: RowRandom, stream: str, count: int, size: int, bound: int) -> Ints:
    """Draw `count` independent ordered samples without replacement of `size` of 0..bound-1: int64 (b, count, size)."""
    digits = [rng.integers(f"{stream}/{digit}", count, bound - digit) for digit in range(size)]
    sample = np.stack(digits, axis=2)
    # A Lehmer code: digit i counts the values that its predecessors leave.
    for digit in reversed(range(size - 1)):
        sample[:, :, digit + 1 :] += sample[:, :, digit + 1 :] >= sample[:, :, digit, None]
    return sample


def answers_by_keys_shown(keys: int, reached: Floats, rate: float = 1.0) -> Floats:
    """Expected answers of a row, by the number d of different keys shown before.

    The law of d follows the pairs one by one: each shows a key with probability `rate`, and that is one of the d known
    ones, an answer, with probability d / keys. The last pair is always an answer.

    Args:
        keys: how many there are, equally likely.
        reached: probability that a row has more than i pairs before the last one, i = 0, 1, ...; the first is 1.
        rate: probability that a pair is not replaced by noise; the first never is.

    Returns:
        (min(keys, pairs) + 1,).
    """
    known = np.arange(min(keys, len(reached)) + 1) / keys
    law, answers = np.zeros_like(known), np.zeros_like(known)
    law[1] = 1
    for now, later in zip(reached, np.append(reached[1:], 0.0), strict=True):
        answers += law * (later * rate * known + now - later)
        grown = law * known
        grown[1:] += law[:-1] * (1 - known[:-1])
        law = (1 - rate) * law + rate * grown
    return answers


@dataclass(frozen=True, kw_only=True)
class RecallTask(SyntheticTask):
    """A stream of pairs of a key and the value that it has in the whole row.

    Tokens 0..K-1 make keys, the next ones values. The last pair repeats a key drawn uniformly from those shown. Scored
    are the outputs from which a value follows whose key has been shown before: labels[t] is then the token at t + 1.
    Keys and values share no tokens, and a key has one value in a row, so that no answer is ambiguous.
    """

    vocab_size: int = 16
    """V."""
    sequence_length: int = 128
    """L."""
    train_targets: str = "answers"
    """What is scored in the train split: "answers", as in the other splits, or "all", every next token, as in MAD."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(f"{self.name}.train_targets", self.train_targets, TRAIN_TARGETS)

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the tokens of values."""
        return 1 / self._num_values

    def vocabulary(self) -> dict[str, Any]:
        keys, values = self._num_keys, self._num_values
        return {"keys": [0, keys - 1], "values": [keys, keys + values - 1]}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The gap of each answer: how many tokens ago its key was shown last; 0 at targets that are no answers.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            "gap": (n,), in the row-major order of `labels[labels != -100]`.
        """
        gap = np.zeros(labels.shape, np.int64)
        gap[:, :-1] = self._gaps(input_ids)
        return {"gap": gap[labels != IGNORE_INDEX]}

    @property
    @abstractmethod
    def _num_keys(self) -> int:
        """Tokens of keys."""

    @property
    @abstractmethod
    def _num_values(self) -> int:
        """Tokens of values."""

    @property
    def _longest_key(self) -> int:
        """M."""
        return 1

    @abstractmethod
    def _stream(self, rng: RowRandom) -> Ints:
        """The tokens (b, t)."""

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        input_ids = self._stream(rng)
        if self.train_targets == "all" and self._training(rng):
            pad = self.pad_token_id
            scored = np.ones_like(input_ids[:, 1:], bool) if pad is None else input_ids[:, 1:] != pad
        else:
            scored = self._gaps(input_ids) > 0
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, :-1][scored] = input_ids[:, 1:][scored]
        return input_ids, labels

    def _training(self, rng: RowRandom) -> bool:
        return rng.scope == f"{self.name}/train"

    def _gaps(self, input_ids: Ints | Int32s) -> Ints:
        """For each output but the last (b, t-1): where an answer follows, the age of its key in tokens; else 0."""
        key = input_ids < self._num_keys
        ends = key.copy()
        ends[:, :-1] &= ~key[:, 1:]
        previous = occurrences(np.where(ends, self._key_numbers(input_ids, key), -1))[1]
        position = np.arange(input_ids.shape[1])
        age = np.where(ends & (previous >= 0), position - previous, 0)
        last_key = np.maximum.accumulate(np.where(ends, position, 0), axis=1)[:, :-1]
        following = input_ids[:, 1:]
        answers = ~key[:, 1:] & (following < self._num_keys + self._num_values)
        return np.where(answers, np.take_along_axis(age, last_key, axis=1), 0)

    def _key_numbers(self, input_ids: Ints | Int32s, key: Bools) -> Ints:
        """A number for each key, at its last token: its tokens as digits, the last one lowest (b, t)."""
        numbers, run, length = np.zeros(input_ids.shape, np.int64), key, input_ids.shape[1]
        for digit in range(self._longest_key):
            place = (self._num_keys + 1) ** digit
            numbers[:, digit:] += np.where(run, (1 + input_ids[:, : length - digit].astype(np.int64)) * place, 0)
            run = run[:, 1:] & key[:, : length - digit - 1]
        return numbers


@dataclass(frozen=True, kw_only=True)
class InContextRecall(RecallTask):
    """In-context recall: give the value of each key that the row has shown before.

    Keys are independent and uniform, but for that of the last pair (see `RecallTask`); the values of the keys are
    independent and uniform for each row.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "in_context_recall"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self._num_noise + 4
        self._require(self.vocab_size >= least, "vocab_size", f"give at least {least}: two keys and two values")
        even = self.sequence_length % 2 == 0 and self.sequence_length >= 4
        self._require(even, "sequence_length", "pairs take two tokens: give an even length of at least 4")

    @property
    def best_trivial(self) -> float:
        """Accuracy of naming the value that most of the keys shown so far have, to 6 decimals.

            sum_d a_d E[count of the most frequent of d values] / d / sum_d a_d

        with a_d of `answers_by_keys_shown`. It is the best rule that does not look at the key it is asked for.
        """
        answers = answers_by_keys_shown(self._num_keys, np.ones(self.sequence_length // 2 - 1), 1 - self._noise_rate)
        shares = [0.0, *(expected_share(d, self._num_values) for d in range(1, len(answers)))]
        return round(float(answers @ shares / answers.sum()), 6)

    @property
    def _num_noise(self) -> int:
        """Tokens of noise."""
        return 0

    @property
    def _noise_rate(self) -> float:
        return 0.0

    @property
    def _num_keys(self) -> int:
        return (self.vocab_size - self._num_noise) // 2

    @property
    def _num_values(self) -> int:
        return self.vocab_size - self._num_noise - self._num_keys

    def _stream(self, rng: RowRandom) -> Ints:
        pairs, num_keys = self.sequence_length // 2, self._num_keys
        keys = rng.integers("keys", pairs, num_keys)
        noise = self._noise(rng)
        shown = np.zeros((len(keys), num_keys), bool)
        np.put_along_axis(shown, np.where(noise, keys[:, :1], keys)[:, :-1], True, axis=1)
        keys[:, -1] = np.where(shown, rng.bits("probe", num_keys) | 1, 0).argmax(axis=1)
        values = np.take_along_axis(rng.integers("values", num_keys, self._num_values), keys, axis=1)
        tokens = np.stack([keys, num_keys + values], axis=2)
        if self._num_noise:
            drawn = rng.integers("noise_tokens", 2 * pairs, self._num_noise).reshape(tokens.shape)
            tokens = np.where(noise[:, :, None], self.vocab_size - self._num_noise + drawn, tokens)
        return tokens.reshape(len(keys), -1)

    def _noise(self, rng: RowRandom) -> Bools:
        """Which pairs are replaced by noise (b, p)."""
        pairs = self.sequence_length // 2
        if not self._num_noise:
            return np.zeros((len(rng.rows), pairs), bool)
        noise = rng.uniform("noise", pairs) < self._noise_rate
        noise[:, [0, -1]] = False
        return noise


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(InContextRecall):
    """Noisy in-context recall: some pairs are replaced by two tokens of noise.

    Each pair but the first and the last is replaced independently. The tokens of noise are independent and uniform over
    an alphabet of their own, the last num_noise tokens. Otherwise as `InContextRecall`.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "noisy_recall"

    vocab_size: int = 32
    """V, tokens of noise included."""
    num_noise: int = 16
    """Tokens of noise."""
    noise_rate: float = 0.2
    """Probability that a pair is replaced, in (0, 1)."""

    def __post_init__(self) -> None:
        self._require(self.num_noise >= 1, "num_noise", "give at least 1; in_context_recall has no noise")
        super().__post_init__()
        self._require(0 < self.noise_rate < 1, "noise_rate", "give a number in (0, 1); in_context_recall has no noise")

    def vocabulary(self) -> dict[str, Any]:
        return {**super().vocabulary(), "noise": [self.vocab_size - self.num_noise, self.vocab_size - 1]}

    @property
    def _num_noise(self) -> int:
        return self.num_noise

    @property
    def _noise_rate(self) -> float:
        return self.noise_rate


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(RecallTask):
    """Fuzzy in-context recall: keys and values are of several tokens.

    A value has 1..max_tokens different tokens, and so has a key in the train split; in the other splits every key has
    max_tokens. Lengths are uniform, and so are the tokens given the length. Rows hold as many pairs as surely fit, the
    last pair included, and pads stand at the right, where a causal model never reads them; MAD's stand at the left.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "fuzzy_recall"

    max_tokens: int = 3
    """m, tokens of the longest key and of the longest value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 5, "vocab_size", "give at least 5: two for keys, two for values and the pad")
        most = self._num_keys
        fits = 1 <= self.max_tokens <= most and (most + 1) ** self.max_tokens < 2**63
        self._require(
            fits, "max_tokens", f"give 1 to {most}, the tokens of keys, and at most 63 / log2(tokens of keys + 1)"
        )
        least = 4 * self.max_tokens
        self._require(self.sequence_length >= least, "sequence_length", f"give at least {least}: two pairs")

    @property
    def pad_token_id(self) -> int:
        """The last token."""
        return self.vocab_size - 1

    @property
    def best_trivial(self) -> float:
        """Accuracy of the most frequent continuation, among the values shown, of what the answer has had so far.

        It is the best rule that looks at no key, in the validation and test splits, to 6 decimals. After d keys, the
        first j tokens of an answer leave 1 + Binomial(d - 1, q_j) values that begin so and go on, each with one of
        v - j tokens; q_j = (1 - j/m) (v - j)! / v! for v tokens of values. Left out is that a row's end cuts off long
        values a little oftener.
        """
        answers = answers_by_keys_shown(math.perm(self._num_keys, self.max_tokens), self._pairs_reached())
        asked = 1 - np.arange(self.max_tokens) / self.max_tokens
        right = np.array([self._continued(d) for d in range(1, len(answers))])
        return round(float(answers[1:] @ right @ asked / (answers[1:].sum() * asked.sum())), 6)

    def _continued(self, shown: int) -> list[float]:
        """Accuracy of the rule of `best_trivial` at token j = 0..m-1 of an answer, after `shown` keys."""
        accuracy = []
        for j in range(self.max_tokens):
            alike = (1 - j / self.max_tokens) / math.perm(self._num_values, j)
            law = binomial_law(shown - 1, alike)
            shares = [expected_share(1 + c, self._num_values - j) if p > 1e-9 else 0.0 for c, p in enumerate(law)]
            accuracy.append(float(law @ shares))
        return accuracy

    def _pairs_reached(self) -> Floats:
        """Probability that a row of a split other than train has room for i + 1 pairs before the last, i = 0, 1, ..."""
        m, room = self.max_tokens, self.sequence_length - 2 * self.max_tokens
        step = np.r_[np.zeros(m + 1), np.full(m, 1 / m)]
        law, reached = np.ones(1), []
        for _ in range(room // (m + 1)):
            law = np.convolve(law, step)[: room + 1]
            reached.append(law.sum())
        return np.array(reached)

    def vocabulary(self) -> dict[str, Any]:
        return {**super().vocabulary(), "pad": self.pad_token_id}

    @property
    def _num_keys(self) -> int:
        return (self.vocab_size - 1) // 2

    @property
    def _num_values(self) -> int:
        return self.vocab_size - 1 - self._num_keys

    @property
    def _longest_key(self) -> int:
        return self.max_tokens

    def _stream(self, rng: RowRandom) -> Ints:
        room = self.sequence_length - 2 * self.max_tokens
        shortest = 1 if self._training(rng) else self.max_tokens
        slots = room // (shortest + 1)
        keys = self._words(rng, "keys", slots, shortest, self._num_keys)
        first = occurrences(((keys + 1) * (self._num_keys + 1) ** np.arange(self.max_tokens)).sum(axis=2))[0]
        values = self._words(rng, "values", slots, 1, self._num_values)
        values = np.where(values >= 0, self._num_keys + values, -1)
        pairs = np.concatenate([keys, np.take_along_axis(values, first[:, :, None], axis=1)], axis=2)
        fits = (pairs >= 0).sum(axis=2).cumsum(axis=1) <= room
        fresh = fits & (first == np.arange(slots))
        probe = np.where(fresh, rng.bits("probe", slots) | 1, 0).argmax(axis=1)
        last = pairs[np.arange(len(pairs)), probe][:, None]
        return self._padded(np.concatenate([np.where(fits[:, :, None], pairs, -1), last], axis=1))

    def _words(self, rng: RowRandom, stream: str, count: int, shortest: int, bound: int) -> Ints:
        """Words of different tokens, filled up with -1: (b, count, m)."""
        tokens = distinct_tuples(rng, stream, count, self.max_tokens, bound)
        lengths = shortest + rng.integers(f"{stream}/lengths", count, self.max_tokens - shortest + 1)
        return np.where(np.arange(self.max_tokens) < lengths[:, :, None], tokens, -1)

    def _padded(self, pairs: Ints) -> Ints:
        """The tokens that are not -1, in their order at the left of each row, and pads behind them (b, t)."""
        tokens = pairs.reshape(len(pairs), -1)
        shown = tokens >= 0
        input_ids = np.full((len(pairs), self.sequence_length), self.pad_token_id, np.int64)
        input_ids[np.nonzero(shown)[0], shown.cumsum(axis=1)[shown] - 1] = tokens[shown]
        return input_ids
