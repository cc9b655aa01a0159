"""The level that a language model of tokens has to beat: an interpolated, modified Kneser-Ney 3-gram.

For each order n > 1, with h the n - 1 tokens before w and h' the last n - 2 of them,

    p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .) + gamma(h) p_{n-1}(w | h')
    gamma(h)   = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .),        p_0 = 1 / V

and p_n(w | h) = p_{n-1}(w | h') for an h that was never seen. At the highest order of a context c counts occurrences,
at lower ones different tokens in front. D1, D2 and D3 are the discounts of counts 1, 2 and more, estimated for each
order from the number n_r of n-grams with count r: Y = n_1 / (n_1 + 2 n_2), D_r = r - (r + 1) Y n_{r+1} / n_r.

Source: S. Chen, J. Goodman, "An empirical study of smoothing techniques for language modeling", Harvard University,
TR-10-98, 1998.

Letters: b rows, t positions, m n-grams or contexts, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsf_models.tasks.counter_rng import Floats, Ints
from dsf_models.tasks.text.errors import require

ORDER = 3
_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where too few counts are known to estimate them, on tiny texts alone; those of KenLM's fallback."""


@dataclass(frozen=True)
class _Level:
    """The counts of one order; an n-gram is the number whose digits to base V are its tokens."""

    grams: Ints
    """(m,), sorted."""
    discounted: Floats
    """(m,), max(c - D(c), 0) / c(h .)."""
    contexts: Ints
    """(m,), sorted."""
    backoff: Floats
    """(m,), gamma."""


@dataclass(frozen=True)
class KneserNey:
    """A 3-gram model fitted to packed rows; scores what a language model scores, with the context that it sees."""

    vocab_size: int
    """V."""
    chains: tuple[tuple[_Level, ...], ...]
    """For contexts of 1 and of 2 tokens: the levels from order 1 to the highest."""

    @classmethod
    def fit(cls, input_ids: NDArray[np.integer], position_ids: NDArray[np.integer], vocab_size: int) -> "KneserNey":
        """Count the n-grams of rows (b, t); none crosses a document or a row.

        Raises:
            TextError: a vocabulary too large for 64 bits or too small for the ids, or nothing to count.
        """
        require(vocab_size**ORDER < 2**63, f"vocab_size={vocab_size}: a 3-gram has room for {2**21} tokens")
        most = int(input_ids.max(initial=0))
        require(most < vocab_size, f"vocab_size={vocab_size}: the rows hold the id {most}; give len(tokenizer)")
        bigrams = _unique(_grams(input_ids, position_ids, 2, vocab_size))
        trigrams = _unique(_grams(input_ids, position_ids, 3, vocab_size))
        require(len(bigrams[0]) > 0, "The rows hold no document of two tokens or more.")
        unigram = _level(*_different_in_front(bigrams[0], vocab_size), vocab_size)
        middle = _level(*_different_in_front(trigrams[0], vocab_size**2), vocab_size)
        pair = unigram, _level(*bigrams, vocab_size)
        return cls(vocab_size, (pair, (unigram, middle, _level(*trigrams, vocab_size))))

    def nats(self, input_ids: NDArray[np.integer], position_ids: NDArray[np.integer]) -> Floats:
        """-log p of each token given the ones before it in its document and row.

        Args:
            input_ids: (b, t).
            position_ids: (b, t), 0 where a document or a row starts.

        Returns:
            float64 (b, t), 0 at position 0, which is not scored.
        """
        nats = np.zeros(input_ids.shape)
        for context, levels in enumerate(self.chains, 1):
            scored = position_ids >= context if context == ORDER - 1 else position_ids == context
            grams = _grams(input_ids, position_ids, context + 1, self.vocab_size, scored)
            nats[scored] = -np.log(self._probabilities(levels, grams))
        return nats

    def nats_per_token(self, input_ids: NDArray[np.integer], position_ids: NDArray[np.integer]) -> float:
        """The mean over all scored tokens of rows (b, t)."""
        return float(self.nats(input_ids, position_ids).sum() / (position_ids > 0).sum())

    def probabilities(self, context: tuple[int, ...]) -> Floats:
        """p(w | context) of every token w after the 1 or 2 last tokens of a document, float64 (V,)."""
        tokens = np.arange(self.vocab_size)
        digits = sum(token * self.vocab_size ** (len(context) - i) for i, token in enumerate(context))
        return self._probabilities(self.chains[len(context) - 1], digits + tokens)

    def _probabilities(self, levels: tuple[_Level, ...], grams: Ints) -> Floats:
        p = np.full(len(grams), 1 / self.vocab_size)
        for order, level in enumerate(levels, 1):
            tail = grams % self.vocab_size**order
            discounted = _look_up(level.grams, level.discounted, tail, 0.0)
            p = discounted + _look_up(level.contexts, level.backoff, tail // self.vocab_size, 1.0) * p
        return p


def _grams(
    input_ids: NDArray[np.integer],
    position_ids: NDArray[np.integer],
    order: int,
    vocab_size: int,
    scored: NDArray[np.bool_] | None = None,
) -> Ints:
    """The n-grams that end at the scored positions, by default at all that have a context of n - 1 tokens."""
    scored = position_ids >= order - 1 if scored is None else scored
    ends, ids = np.flatnonzero(scored), input_ids.reshape(-1)
    grams = np.zeros(len(ends), np.int64)
    for back in range(order - 1, -1, -1):
        grams = grams * vocab_size + ids[ends - back]
    return grams


def _unique(grams: Ints) -> tuple[Ints, Ints]:
    return np.unique(grams, return_counts=True)


def _different_in_front(grams: Ints, base: int) -> tuple[Ints, Ints]:
    """The n-grams without their first token, and how many different ones stand in front of each."""
    return _unique(grams % base)


def _level(grams: Ints, counts: Ints, vocab_size: int) -> _Level:
    discount = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    contexts, first = np.unique(grams // vocab_size, return_index=True)
    if not len(grams):
        return _Level(grams, np.empty(0), contexts, np.empty(0))
    totals = np.add.reduceat(counts, first)
    taken = np.add.reduceat(discount, first)
    per_gram = np.repeat(totals, np.diff([*first, len(grams)]))
    return _Level(grams, (counts - discount) / per_gram, contexts, taken / totals)


def _discounts(counts: Ints) -> tuple[float, float, float]:
    n = [int((counts == r).sum()) for r in range(5)]
    if not all(n[1:]):
        return _FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    d1, d2, d3 = (r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3))
    return (d1, d2, d3) if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3 else _FALLBACK


def _look_up(keys: Ints, values: Floats, wanted: Ints, default: float) -> Floats:
    if not len(keys):
        return np.full(len(wanted), default)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], default)
