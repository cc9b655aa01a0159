"""Counter-based random numbers: known answers, purity, and statistical sanity at fixed seeds."""

from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest

from dsf_models.tasks.counter_rng import Ints, RowRandom, negative_log, threefry2x64

ONES = 2**64 - 1
# (counter, key, output), Random123's known-answer tests of threefry2x64 with 20 rounds.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
    ((ONES, ONES), (ONES, ONES), (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344),
        (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
    ),
]

# Rows 0 and 1, stream "keys" of scope "task/train", seed 0.
GOLDEN_WORDS = [
    [0x41A1342842D879F4, 0x30EFA5D63422713D],
    [0x99408E1ACBE4A752, 0xEAAB1719BAE83616],
]
GOLDEN_EXPONENTIALS = [
    "0x1.5c74440a09122p+0",
    "0x1.a797e6cdf6baap+0",
    "0x1.06b416ce5f544p-1",
    "0x1.645ea600ae020p-4",
]


def generator(seed: int = 0, scope: str = "task/train", rows: int = 4096) -> RowRandom:
    return RowRandom(seed, scope, np.arange(rows, dtype=np.uint64))


def chi_square_z(counts: Ints) -> float:
    """How many standard deviations the chi-square statistic of equally likely cells lies above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_threefry_known_answers(counter, key, answer):
    words = threefry2x64(key, tuple(np.array([word], np.uint64) for word in counter))
    assert tuple(int(word[0]) for word in words) == answer


def test_words_are_laid_out_as_documented():
    rng = RowRandom(7, "task/train", np.array([3, 2**64 - 1], np.uint64))
    key = 7, int.from_bytes(sha256(b"task/train/keys").digest()[:8], "little")
    for row, number in enumerate((3, 2**64 - 1)):
        for j in range(5):
            block = threefry2x64(key, (np.array([number], np.uint64), np.array([j // 2], np.uint64)))
            assert rng.bits("keys", 5)[row, j] == block[j % 2][0]


def test_draws_depend_on_neither_their_number_nor_their_company():
    rng = generator()
    few, many = rng.bits("a", 7), rng.bits("a", 30)
    np.testing.assert_array_equal(few, many[:, :7])
    some = np.array([5, 1, 4000])
    np.testing.assert_array_equal(rng.take(some).bits("a", 7), few[some])


def test_uniform_moments_and_cells():
    u = generator().uniform("a", 64)
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 1 / 2) < 5 / np.sqrt(12 * u.size)
    assert abs((u**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / u.size)
    assert abs(chi_square_z(np.bincount((u * 1000).astype(int).ravel(), minlength=1000))) < 5
    assert abs(generator().exponential("a", 64).mean() - 1) < 5 / np.sqrt(u.size)


def test_each_bit_is_fair():
    bits = generator().bits("a", 16)
    share = np.array([(bits >> k & 1).mean() for k in range(64)])
    assert np.abs(share - 1 / 2).max() < 5 / np.sqrt(4 * bits.size)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 4095, 8192])
def test_integers_are_uniform(bound):
    draws = generator().integers("a", 64, bound)
    counts = np.bincount(draws.ravel(), minlength=bound)
    assert counts.size == bound
    assert bound == 1 or abs(chi_square_z(counts)) < 5


@pytest.mark.parametrize("bound", [1, 3, 4095, 2**32 - 1, 2**32])
def test_integers_are_the_high_part_of_the_product(bound):
    rng = generator(rows=50)
    words, integers = rng.bits("a", 3), rng.integers("a", 3, bound)
    exact = [[int(word) * bound >> 64 for word in row] for row in words]
    np.testing.assert_array_equal(integers, exact)


def test_addresses_are_independent():
    """Neighbouring seeds, scopes, streams, rows and draws: no correlation, no common word, half of the bits differ."""
    rows = 8192
    words = {
        "base": generator(rows=rows).bits("a", 8),
        "seed": generator(seed=1, rows=rows).bits("a", 8),
        "high bit of the seed": generator(seed=2**63, rows=rows).bits("a", 8),
        "split": generator(scope="task/test", rows=rows).bits("a", 8),
        "stream": generator(rows=rows).bits("b", 8),
    }
    words["row"] = np.roll(words["base"], 1, axis=0)
    words["draw"] = np.roll(words["base"], 1, axis=1)
    size = words["base"].size
    for (name_x, x), (name_y, y) in combinations(words.items(), 2):
        differing = np.bitwise_count(x ^ y).mean()
        correlation = np.corrcoef(x.ravel().astype(float), y.ravel().astype(float))[0, 1]
        assert abs(differing - 32) < 5 * 4 / np.sqrt(size), (name_x, name_y)
        assert abs(correlation) < 5 / np.sqrt(size), (name_x, name_y)
    unshifted = [words[name] for name in words if name not in ("row", "draw")]
    assert np.unique(unshifted).size == len(unshifted) * size


def test_pairs_of_draws_fill_the_square():
    u = (generator().uniform("a", 64) * 16).astype(int)
    for first, second in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):
        assert abs(chi_square_z(np.bincount((16 * first + second).ravel(), minlength=256))) < 5


def test_negative_log_is_a_logarithm():
    u = np.concatenate([(np.arange(100_000) + 0.5) / 100_000, 2.0 ** -np.arange(1, 54), 1 - 2.0 ** -np.arange(2, 54)])
    np.testing.assert_allclose(negative_log(u), -np.log(u), rtol=1e-11)


def test_golden_words():
    """The numbers themselves are part of the interface: published data hashes depend on them."""
    words = RowRandom(0, "task/train", np.array([0, 1], np.uint64))
    assert words.bits("keys", 2).tolist() == GOLDEN_WORDS
    assert [x.hex() for x in words.exponential("keys", 2).ravel()] == GOLDEN_EXPONENTIALS
