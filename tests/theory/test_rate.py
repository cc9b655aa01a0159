"""Least squares that knows the smoothness reaches the rate, and on the piecewise target only if it sorts the tokens.

Numeric test 5 of the theory of dynamic token selection; source: Takakura & Suzuki 2023 (arXiv 2305.18699), Nishikawa &
Suzuki 2025 (arXiv 2405.19036) for the classes and the rate, generator and sieve this project's own.
"""

import numpy as np
import pytest

from dsf_models.tasks import smooth
from dsf_models.tasks.counter_rng import RowRandom

SPLITS = ("train", "validation", "test")


def draw(f, seed, split, count, tokens, kind):
    rng = RowRandom(seed, f"smooth/{split}", np.arange(count, dtype=np.uint64))
    return smooth.draw_examples(f, rng, tokens, kind)


def read(examples, ranks, kind):
    if kind == "fixed":
        return smooth.position_content(examples.content, ranks)
    return smooth.ranked_content(examples.importance, examples.content, ranks)


def sieve(f, a, seed, count, tokens, target, reads):
    """Return the tuned sieve of `count` examples (and as many for validation) whose variables `reads` names."""
    sets = [draw(f, seed, split, count, tokens, target) for split in SPLITS[:2]]
    pairs = [(read(examples, len(a), reads), examples.observed) for examples in sets]
    return smooth.tuned_sieve(*pairs, a, count // 4)


def slope(a, level, target, tokens, sizes, seeds):
    """Return the slope of the log of the mean exact risk on log n."""
    risks = np.empty((seeds, len(sizes)))
    for seed in range(seeds):
        f = smooth.unit_variance(smooth.draw_smooth_function(seed, a, level))
        for i, count in enumerate(sizes):
            risks[seed, i] = smooth.squared_distance(f, sieve(f, a, seed, count, tokens, target, target))
    return smooth.log_log_slope(sizes, risks.mean(axis=0))


def position_error(f, a, tokens, count):
    """Return the error of the sieve that reads positions, on the piecewise target, over the target's variance."""
    fit = sieve(f, a, 0, count, tokens, "piecewise", "fixed")
    test = draw(f, 0, "test", 4000, tokens, "piecewise")
    return float(((fit(read(test, len(a), "fixed")) - test.target) ** 2).mean() / test.target.var())


@pytest.mark.parametrize(("target", "tokens"), [("fixed", 4), ("piecewise", 16)])
def test_the_sieve_has_the_rate_in_small(target, tokens):
    """Numeric test 5 in small: the error falls at about n^{-2/3} for a = (1, 2, 3, 4)."""
    a = smooth.smoothness_exponents(4, 1.0, 1.0)
    measured = slope(a, 7.0, target, tokens, 2 ** np.arange(7, 11), seeds=6)
    assert measured == pytest.approx(-smooth.rate_exponent(a), abs=0.2)


@pytest.mark.parametrize("tokens", [16, 64])
def test_reading_positions_learns_nothing_of_the_piecewise_target(tokens):
    """Numeric test 5: where importance decides, a sieve on positions stays near the variance; one on ranks does not."""
    a = smooth.smoothness_exponents(4, 1.0, 1.0)
    f = smooth.unit_variance(smooth.draw_smooth_function(0, a, 7.0))
    assert position_error(f, a, tokens, 1024) > 0.95
    assert smooth.squared_distance(f, sieve(f, a, 0, 1024, tokens, "piecewise", "piecewise")) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "level", "target", "tokens"),
    [
        (1, 9.0, "fixed", 4),
        (1, 9.0, "piecewise", 16),
        (1, 9.0, "piecewise", 256),
        (2, 14.0, "fixed", 4),
        (2, 14.0, "piecewise", 64),
    ],
)
def test_the_sieve_has_the_rate(first, level, target, tokens):
    """Numeric test 5: slope within 0.1 of -2a†/(2a†+1) over n = 128 … 4096, for a = (1, 2, 3, 4) and (2, 3, 4, 5).

    For the fixed target, and for the piecewise one with any number of tokens, once they are sorted.
    """
    a = np.arange(first, first + 4, dtype=np.float64)
    measured = slope(a, level, target, tokens, 2 ** np.arange(7, 13), seeds=16)
    assert measured == pytest.approx(-smooth.rate_exponent(a), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_more_examples_do_not_help_who_reads_positions(tokens):
    """Numeric test 5: the error of the sieve on positions stays near the variance up to n = 4096."""
    a = smooth.smoothness_exponents(4, 1.0, 1.0)
    f = smooth.unit_variance(smooth.draw_smooth_function(1, a, 9.0))
    assert min(position_error(f, a, tokens, count) for count in (256, 1024, 4096)) > 0.95
