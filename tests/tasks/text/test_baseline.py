"""The Kneser-Ney baseline is that of its definition, written a second time with dictionaries; units of losses."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks.text import KneserNey, TextError, byte_tokenizer, code_length, encode, pack, train_tokenizer
from dsf_models.tasks.text.packing import columns
from tests.consumers.tokenizers_of_text import english_text

VOCAB = 5


def rows_of(ids, starts) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and position_ids (b, t)."""
    found = columns(np.asarray(ids, np.int32), np.asarray(starts, bool))
    return found["input_ids"], found["position_ids"]


@st.composite
def packed(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    return rows_of(rng.integers(0, VOCAB, shape) // draw(st.integers(1, 3)), rng.random(shape) < 0.2)


class Naive:
    """Interpolated modified Kneser-Ney of one highest order, as Chen and Goodman write it."""

    def __init__(self, ids: np.ndarray, positions: np.ndarray, order: int) -> None:
        def occurrences(n: int) -> Counter:
            slots = [(row, slot) for row, slot in np.ndindex(ids.shape) if positions[row, slot] >= n - 1]
            return Counter(tuple(ids[row, slot - n + 1 : slot + 1].tolist()) for row, slot in slots)

        self.counts = {order: occurrences(order)}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in occurrences(n + 1))
        self.discounts = {n: self.estimate(counts.values()) for n, counts in self.counts.items()}

    @staticmethod
    def estimate(counts) -> list[float]:
        n = Counter(counts)
        if not all(n[r] for r in (1, 2, 3, 4)):
            return [0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return found if all(0 < d <= r for d, r in zip(found, (1, 2, 3), strict=True)) else [0.5, 1.0, 1.5]

    def p(self, context: tuple[int, ...], token: int) -> float:
        counts, d = self.counts[len(context) + 1], self.discounts[len(context) + 1]
        lower = self.p(context[1:], token) if context else 1 / VOCAB
        seen = [counts[(*context, w)] for w in range(VOCAB) if counts[(*context, w)]]
        if not seen:
            return lower
        count = counts[(*context, token)]
        gamma = sum(d[min(c, 3) - 1] for c in seen)
        discounted = count - d[min(count, 3) - 1] if count else 0.0
        return (discounted + gamma * lower) / sum(seen)


@settings(max_examples=40)
@given(packed(), packed())
def test_the_definition(train, test):
    """Every score is that of dictionaries, on text seen and unseen, with the context that the row shows."""
    if not (train[1] > 0).any():
        with pytest.raises(TextError, match="no document of two tokens"):
            KneserNey.fit(*train, VOCAB)
        return
    assert_definition(train, test)


def assert_definition(train, test) -> dict[int, "Naive"]:
    """Compare every score of both; the dictionaries are returned."""
    model, naive = KneserNey.fit(*train, VOCAB), {order: Naive(*train, order) for order in (2, 3)}
    for ids, positions in (train, test):
        nats = model.nats(ids, positions)
        for row, slot in np.ndindex(ids.shape):
            context = min(positions[row, slot], 2)
            seen = tuple(ids[row, slot - context : slot].tolist())
            expected = -math.log(naive[context + 1].p(seen, ids[row, slot])) if context else 0.0
            assert nats[row, slot] == pytest.approx(expected, abs=1e-12)
    assert model.nats_per_token(*train) == pytest.approx(model.nats(*train).sum() / (train[1] > 0).sum())
    return naive


def test_discounts_that_are_estimated():
    """Enough text that n-grams have all the counts which the discounts of both orders are estimated from."""
    rng = np.random.default_rng(1)
    tokens = np.minimum(rng.geometric(0.4, (8, 16)) - 1, VOCAB - 1)
    naive = assert_definition(rows_of(tokens, rng.random((8, 16)) < 0.1), rows_of(tokens[:, ::-1], tokens == 4))
    assert naive[3].discounts[3] != [0.5, 1.0, 1.5]


@settings(max_examples=20)
@given(packed())
def test_probabilities_sum_to_one(train):
    if (train[1] > 0).any():
        model = KneserNey.fit(*train, VOCAB)
        for context in (*product(range(VOCAB)), *product(range(VOCAB), repeat=2)):
            p = model.probabilities(context)
            assert p.sum() == pytest.approx(1, abs=1e-12)
            assert p.min() > 0


def test_each_order_helps_on_text():
    texts = english_text().split("\n\n")
    tokenizer = train_tokenizer(texts, 600)
    rows = {
        part: pack(Dataset.from_dict({"text": some}), tokenizer, 64).rows.with_format("numpy")[:]
        for part, some in (("train", texts[::2] + texts[1::4]), ("test", texts[3::4]))
    }
    model = KneserNey.fit(rows["train"]["input_ids"], rows["train"]["position_ids"], len(tokenizer))
    test = rows["test"]["input_ids"], rows["test"]["position_ids"]
    whole = model.nats_per_token(*test)
    bigrams = KneserNey(model.vocab_size, (model.chains[0], model.chains[1][:2])).nats_per_token(*test)
    unigrams = KneserNey(model.vocab_size, (model.chains[0][:1], model.chains[1][:1])).nats_per_token(*test)
    assert whole < bigrams < unigrams < math.log(len(tokenizer))


def test_vocabularies_that_do_not_fit():
    with pytest.raises(TextError, match="vocab_size=3000000"):
        KneserNey.fit(*rows_of([[1, 2]], [[1, 0]]), 3_000_000)
    with pytest.raises(TextError, match=r"the rows hold the id 2; give len\(tokenizer\)"):
        KneserNey.fit(*rows_of([[1, 2]], [[1, 0]]), 2)


# ---- units ----------------------------------------------------------------------------------------------------------


def test_code_length_of_a_uniform_model_over_bytes():
    """All tokens but the first cost log V each: with that first one, log2 V bits a byte and one more for each end."""
    tokenizer, texts = byte_tokenizer(), ["Füchse und Bären", "one"]
    scored = sum(len(ids) - 1 for ids in encode(tokenizer, texts))
    found = code_length(scored * math.log(258), texts, 258)
    assert (found.num_bytes, found.num_words) == (18 + 3, 3 + 1)
    assert found.bits_per_byte == pytest.approx(math.log2(258) * (21 + 2) / 21)
    assert found.bits_per_word == pytest.approx(found.bits_per_byte * 21 / 4)
    with pytest.raises(TextError, match="no text"):
        code_length(1.0, [" "], 258)
