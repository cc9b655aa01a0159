"""The smooth and piecewise smooth targets: basis, norm, separation, determinism, and the sieve that knows them."""

from dataclasses import replace

import numpy as np
import pytest

from dsf_models.tasks import smooth
from dsf_models.tasks.counter_rng import RowRandom

A = np.array([1.0, 2.0, 3.0, 4.0])


def rng(rows, scope="smooth/test", seed=0):
    return RowRandom(seed, scope, np.arange(rows, dtype=np.uint64))


def exponents(frequencies):
    """Return s by its definition, ⌊2^{s-1}⌋ <= |r| < 2^s, one value of s after the other."""
    s = np.zeros_like(frequencies)
    for candidate in range(1, 20):
        s[(2 ** (candidate - 1) <= np.abs(frequencies)) & (np.abs(frequencies) < 2**candidate)] = candidate
    return s


def test_basis_is_complete_and_without_repetition():
    whole = smooth.basis(A, 6)
    radius = 2**6
    assert len(np.unique(whole.frequencies, axis=0)) == len(whole.frequencies)
    np.testing.assert_allclose(whole.levels, exponents(whole.frequencies) @ A)
    # Every frequency with γ <= 6 is there: counted over all of Z² for two variables.
    two = smooth.basis(A[:2], 6)
    r = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2), axis=-1).reshape(-1, 2)
    assert len(two.levels) == int((exponents(r) @ A[:2] <= 6).sum())
    assert (np.diff(whole.levels) >= 0).all()


def test_basis_is_orthonormal():
    """On a grid finer than twice the largest frequency, the mean of a product of two of them is exact."""
    whole = smooth.basis(A[:2], 4)
    axis = np.arange(64) / 64
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    values = smooth.features(grid, whole.frequencies)
    np.testing.assert_allclose(values.T @ values / len(grid), np.eye(len(whole.levels)), atol=1e-12)


@pytest.mark.parametrize(("a", "level"), [((1, 2, 3, 4), 6), ((2, 3, 4, 5), 10), ((0.5, 0.7), 3)])
def test_norm_is_one(a, level):
    """The norm is 1, block by block as declared; Monte Carlo over points sees the same ‖δ_s f‖ <= 2^{-γ(s)}."""
    f = smooth.draw_smooth_function(3, np.array(a), level)
    assert smooth.smoothness_norm(f) == pytest.approx(1.0, abs=1e-12)
    found, gamma, norms = smooth.block_norms(f)
    np.testing.assert_allclose(gamma, found @ a)
    s, points = exponents(f.frequencies), np.random.default_rng(0).random((4000, len(a)))
    sampled = np.empty(len(found))
    for i, block in enumerate(found):
        member = (s == block).all(axis=1)
        part = replace(f, frequencies=f.frequencies[member], coefficients=f.coefficients[member])
        sampled[i] = np.sqrt((part(points) ** 2).mean())
    # Four standard errors of a root mean square over 4000 points of products of up to four sinusoids.
    np.testing.assert_allclose(sampled, norms, rtol=0.15)
    assert (2.0**gamma * norms <= 1).all()
    assert float((2.0**gamma * sampled).sum()) == pytest.approx(1.0, abs=0.02)


def test_unit_variance_is_that_of_samples():
    f = smooth.unit_variance(smooth.draw_smooth_function(0, A, 6))
    assert f(np.random.default_rng(0).random((20_000, 4))).var() == pytest.approx(1.0, abs=0.03)
    with pytest.raises(ValueError, match="constant has none"):
        smooth.unit_variance(smooth.draw_smooth_function(0, A, 0.5))


@pytest.mark.parametrize("tokens", [2, 16, 256])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_importances_are_separated(tokens, power):
    """μ_{π(i)} >= μ_{π(i+1)} + (c/2) i^{-β} in every sequence, within [0, 1]; independent ones fail at once."""
    importance, content = smooth.smooth_tokens(rng(500), tokens, power)
    between = smooth.gaps(tokens, power)
    np.testing.assert_allclose(between, between[0] * np.arange(1, tokens) ** -power)
    assert smooth.is_separated(importance, between / 2).all()
    assert not smooth.is_separated(importance, between).all()
    if tokens > 2:
        assert smooth.is_separated(np.random.default_rng(0).random((500, tokens)), between / 2).mean() < 0.01
    for values in (importance, content):
        assert values.min() > 0
        assert values.max() < 1
    # Every position is equally likely to hold the most important token.
    first = np.bincount(importance.argmax(axis=1), minlength=tokens)
    assert first.max() <= 500 / tokens + 5 * (500 / tokens) ** 0.5


def test_targets_read_what_they_say():
    f = smooth.unit_variance(smooth.draw_smooth_function(0, A, 4))
    fixed, piecewise = (smooth.draw_examples(f, rng(50), 12, kind) for kind in ("fixed", "piecewise"))
    np.testing.assert_array_equal(fixed.content, piecewise.content)
    for i in range(50):
        last = fixed.content[i, [-1, -2, -3, -4]]
        top = piecewise.content[i, sorted(range(12), key=lambda t: -piecewise.importance[i, t])[:4]]
        np.testing.assert_allclose([fixed.target[i], piecewise.target[i]], f(np.stack([last, top])), atol=1e-12)
    # The same noise, and the piecewise target does not mind the order of the tokens.
    np.testing.assert_allclose(fixed.observed - fixed.target, piecewise.observed - piecewise.target, atol=1e-12)
    order = np.random.default_rng(0).permutation(12)
    ranked = smooth.ranked_content(piecewise.importance[:, order], piecewise.content[:, order], 4)
    np.testing.assert_allclose(f(ranked), piecewise.target, atol=1e-12)


def test_noise_is_normal():
    f = smooth.unit_variance(smooth.draw_smooth_function(0, A[:1], 1))
    examples = smooth.draw_examples(f, rng(20_000), 2, "fixed", sigma=0.3)
    z = (examples.observed - examples.target) / 0.3
    assert abs(z.mean()) < 0.03
    assert z.var() == pytest.approx(1, abs=0.04)
    assert (z**4).mean() == pytest.approx(3, abs=0.3)
    assert abs(np.corrcoef(z, examples.target)[0, 1]) < 0.03


def test_rows_are_pure_functions_of_their_address():
    f = smooth.unit_variance(smooth.draw_smooth_function(0, A, 4))
    whole = smooth.draw_examples(f, rng(20), 8, "piecewise")
    part = smooth.draw_examples(f, rng(20).take(np.array([7, 3])), 8, "piecewise")
    for name in whole._fields:
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[[7, 3]], atol=1e-12)
    for other in (rng(20, seed=1), rng(20, scope="smooth/train")):
        assert not np.isclose(smooth.draw_examples(f, other, 8, "piecewise").content, whole.content).any()
    again, another = smooth.draw_smooth_function(0, A, 4), smooth.draw_smooth_function(1, A, 4)
    np.testing.assert_array_equal(again.coefficients, smooth.draw_smooth_function(0, A, 4).coefficients)
    assert 0 < (again.coefficients != another.coefficients).mean() < 1


def test_sieve_is_exact_without_noise_and_agrees_with_lstsq():
    """On what lies in its span least squares errs by rounding only; every fit of the nest is the one made alone."""
    f = smooth.unit_variance(smooth.draw_smooth_function(0, A, 4))
    x = np.random.default_rng(0).random((300, 4))
    y = f(x) + 0.3 * np.random.default_rng(1).standard_normal(300)
    noisy, clean = (smooth.fit_sieves(x, observed, A, 150) for observed in (y, f(x)))
    assert [len(fit.levels) for fit in noisy] == [1, 3, 9, 23, 57, 129]
    assert smooth.squared_distance(clean[4], f) < 1e-24
    for fit in noisy:
        alone = np.linalg.lstsq(smooth.features(x, fit.frequencies), y, rcond=None)[0]
        np.testing.assert_allclose(fit.coefficients, alone, atol=1e-10)
    # Parseval's distance is what points see, in either order.
    points = np.random.default_rng(2).random((20_000, 4))
    for fit in noisy[:4]:
        sampled = ((fit(points) - f(points)) ** 2).mean()
        assert smooth.squared_distance(f, fit) == pytest.approx(sampled, rel=0.05)
        assert smooth.squared_distance(fit, f) == smooth.squared_distance(f, fit)


def test_exponents_and_rates():
    np.testing.assert_allclose(smooth.smoothness_exponents(4, 1.0, 1.0), A)
    np.testing.assert_allclose(smooth.smoothness_exponents(3, 2.0, 0.5), [2, 8**0.5, 12**0.5])
    assert smooth.rate_exponent(A) == pytest.approx(2 / 3)
    assert smooth.rate_exponent(np.array([5, 2, 3])) == pytest.approx(4 / 5)
    assert smooth.log_log_slope(np.array([1, 10, 100]), np.array([5, 0.5, 0.05])) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: smooth.smoothness_exponents(0, 1.0, 1.0), "ranks=0"),
        (lambda: smooth.smoothness_exponents(2, 0.0, 1.0), r"first=0\.0"),
        (lambda: smooth.smoothness_exponents(2, 1.0, -1.0), r"power=-1\.0"),
        (lambda: smooth.blocks(np.array([1.0, 0.0]), 3), "a=.*positive"),
        (lambda: smooth.blocks(A, -1), "level=-1"),
        (lambda: smooth.gaps(1, 1.0), "tokens=1"),
        (lambda: smooth.gaps(3, -0.5), r"power=-0\.5"),
        (lambda: smooth.position_content(np.zeros((1, 3)), 4), "ranks=4.*only 3 tokens"),
        (lambda: smooth.ranked_content(np.zeros((1, 3)), np.zeros((1, 3)), 4), "ranks=4.*only 3 tokens"),
        (lambda: smooth.draw_examples(smooth.basis(A, 1), rng(1), 8, "sorted"), "kind='sorted'"),
        (lambda: smooth.draw_examples(smooth.basis(A, 1), rng(1), 8, "fixed", sigma=-1.0), r"sigma=-1\.0"),
        (lambda: smooth.fit_sieves(np.zeros((3, 4)), np.zeros(3), A, 4), "most=4.*1 to 3"),
        (lambda: smooth.squared_distance(smooth.basis(A, 3), smooth.basis(A[::-1], 3)), "another basis"),
    ],
)
def test_nonsense_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        what()
