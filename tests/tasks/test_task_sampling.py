"""Sampling without replacement against its exact laws, and the laws against enumeration."""

from itertools import permutations, product
from math import perm

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsf_models.tasks.counter_rng import Floats, RowRandom
from dsf_models.tasks.laws import choice_law, expected_largest_count
from dsf_models.tasks.sampling import distinct, skip_excluded, weighted


def generator(rows: int, seed: int = 0) -> RowRandom:
    return RowRandom(seed, "task/train", np.arange(rows, dtype=np.uint64))


def draw_probability(order: tuple[int, ...], weights: Floats) -> float:
    """Probability of drawing exactly these items in this order."""
    probability, left = 1.0, weights.sum()
    for item in order:
        probability, left = probability * weights[item] / left, left - weights[item]
    return probability


def assert_ordered_samples_follow(samples, probability, n: int) -> None:
    """Chi-square test of the frequencies of ordered samples (b, k) of n items."""
    orders = list(permutations(range(n), samples.shape[1]))
    expected = len(samples) * np.array([probability(order) for order in orders])
    cell = {order: index for index, order in enumerate(orders)}
    counts = np.bincount([cell[tuple(row)] for row in samples.tolist()], minlength=len(orders))
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(orders) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("count", "bound"), [(2, 5), (2, 4), (3, 4), (4, 4), (1, 3)])
def test_distinct_orders_are_equally_likely(count, bound):
    samples = distinct(generator(20_000), "a", count, bound)
    assert_ordered_samples_follow(samples, lambda order: 1 / perm(bound, count), bound)


@given(seed=st.integers(0, 2**64 - 1), bound=st.integers(1, 400), data=st.data())
def test_distinct_integers_are_distinct_and_pure(seed, bound, data):
    count = data.draw(st.integers(1, bound))
    rng = generator(30, seed)
    samples = distinct(rng, "a", count, bound)
    assert samples.shape == (30, count)
    assert samples.min() >= 0
    assert samples.max() < bound
    assert (np.diff(np.sort(samples, axis=1), axis=1) > 0).all()
    alone = np.concatenate([distinct(rng.take(np.array([row])), "a", count, bound) for row in range(30)])
    np.testing.assert_array_equal(alone, samples)


def test_distinct_is_the_first_different_values_of_the_stream():
    rng = generator(500)
    stream = rng.integers("a", 400, 12)
    first = [list(dict.fromkeys(row))[:6] for row in stream.tolist()]
    np.testing.assert_array_equal(distinct(rng, "a", 6, 12), first)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_weighted_draws_follow_the_sequential_law(count):
    weights = np.array([1.0, 0.5, 0.2, 0.1])
    samples = weighted(generator(20_000), "a", count, weights)
    assert_ordered_samples_follow(samples, lambda order: draw_probability(order, weights), 4)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("power", [0.01, 1.0, 4.0])
def test_choice_law_is_the_sum_over_all_orders(count, power):
    weights = np.arange(1.0, 6.0) ** (power - 1)
    law = np.zeros((count, 5))
    for order in permutations(range(5), count):
        law[np.arange(count), order] += draw_probability(order, weights)
    np.testing.assert_allclose(choice_law(weights, count), law, atol=1e-6)


@pytest.mark.parametrize(("slots", "count"), [(28, 4), (192, 64), (64, 64), (400, 3)])
def test_choice_law_is_normalised_and_uniform_where_the_weights_are(slots, count):
    law = choice_law(np.arange(1.0, slots + 1) ** -0.99, count)
    np.testing.assert_allclose(law.sum(axis=1), 1, atol=1e-6)
    assert law.min() > -1e-6
    assert law.sum(axis=0).max() < 1 + 1e-6
    np.testing.assert_allclose(choice_law(np.ones(slots), count), 1 / slots, atol=1e-6)


@pytest.mark.parametrize(("draws", "bins"), [(1, 1), (1, 5), (3, 1), (3, 4), (5, 3), (6, 2)])
def test_expected_largest_count_is_the_mean_over_all_throws(draws, bins):
    largest = [max(np.bincount(throw)) for throw in product(range(bins), repeat=draws)]
    assert expected_largest_count(draws, bins) == pytest.approx(np.mean(largest), abs=1e-9)


@given(bound=st.integers(2, 60), data=st.data())
def test_skip_excluded_counts_the_allowed_integers(bound, data):
    excluded = data.draw(st.sets(st.integers(0, bound - 1), max_size=bound - 1))
    allowed = [x for x in range(bound) if x not in excluded]
    rows = np.tile(np.array(sorted(excluded, reverse=True), np.int64), (3, 1))
    ranks = np.tile(np.arange(len(allowed)), (3, 1))
    np.testing.assert_array_equal(skip_excluded(ranks, rows, bound), np.tile(allowed, (3, 1)))
