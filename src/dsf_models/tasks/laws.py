"""Exact laws of random choices, from which tasks compute their trivial baselines.

Letters: n items, k draws, z points on a circle of the complex plane.
"""

import math
from functools import cache

import numpy as np

from dsf_models.tasks.counter_rng import Floats


def choice_law(weights: Floats, count: int) -> Floats:
    """Probability that item g is the i-th of `count` items drawn without replacement, proportionally to the weights.

        P[i, g] = integral over t > 0 of w_g exp(-w_g t) Prob(exactly i of the other items have arrived by t)

    with independent exponential arrivals of rates w (the order of arrival is the order of drawing). The number of
    arrivals has the generating function prod_h (q_h + (1 - q_h) z), q_h = exp(-w_h t); its coefficients come from
    values on a circle, the integral from the trapezoidal rule in log t. Rows sum to 1 within 1e-6.

    Args:
        weights: positive (n,).
        count: k, at most n.

    Returns:
        (k, n).
    """
    weights = weights / weights.sum()
    # An odd number of points keeps every factor away from 0; a radius below 1 damps what aliases when they are few.
    points, radius = min(len(weights) | 1, 2 * count + 1), 1e-8 ** (1 / count)
    z = radius * np.exp(2j * np.pi * np.arange(points) / points)
    step = 1 / (1 + math.sqrt(count))
    values = np.zeros((len(weights), points), complex)
    for t in np.exp(np.arange(math.log(1e-8), math.log(40 / weights.min()), step)):
        q = np.exp(-weights * t)
        arrived = (1 - q).sum()
        if arrived - count > 8 * math.sqrt(arrived):  # fewer than `count` arrivals: probability below exp(-32)
            break
        factors = q[:, None] + (1 - q)[:, None] * z
        values += (step * t * weights * q)[:, None] * (factors.prod(axis=0) / factors)
    coefficients = np.fft.fft(values, axis=1).real[:, :count] / points
    return (coefficients / radius ** np.arange(count)).T


@cache
def expected_largest_count(draws: int, bins: int) -> float:
    """Expected number of balls in the fullest bin after throwing `draws` balls into `bins` equally likely bins.

        E = sum over m >= 0 of Prob(max > m),   Prob(max <= m) = [x^draws] p_m(x)^bins / Poisson(draws; draws)

    with p_m the Poisson(draws / bins) generating function cut after x^m. The coefficient comes from values on the unit
    circle: sixteen standard deviations of the sum around it are enough of them.
    """
    rate, points = draws / bins, 64 + 16 * math.isqrt(draws)
    least = math.ceil(rate)  # the fullest bin holds at least the mean
    masses = np.array([_poisson(m, rate) for m in range(least)])
    half = np.arange(points // 2 + 1)  # the other half of the circle is the conjugate
    turn = np.exp(-2j * np.pi / points * half)
    weights = np.where((half == 0) | (2 * half == points), 1, 2) * np.exp(2j * np.pi / points * (half * draws % points))
    weights /= points * _poisson(draws, draws)
    values = np.fft.rfft(np.bincount(np.arange(least) % points, masses, points))
    phase, expected = np.exp(-2j * np.pi / points * (half * least % points)), float(least)
    for m in range(least, min(draws, least + 40 + 12 * math.isqrt(least))):  # no bin holds more than that
        values += _poisson(m, rate) * phase
        phase *= turn
        counted = np.abs(values) > 1e-24 ** (1 / bins)
        more = 1 - float((weights[counted] * values[counted] ** bins).real.sum())
        if more < 1e-12:
            break
        expected += more
    return expected


def _poisson(m: int, rate: float) -> float:
    """Probability of m under the Poisson law of this mean."""
    return math.exp(m * math.log(rate) - rate - math.lgamma(m + 1))


def expected_share(draws: int, bins: int) -> float:
    """Accuracy of guessing one of `draws` balls, drawn at random, by the fullest of the bins: E[largest]/draws."""
    return expected_largest_count(draws, bins) / draws


def distinct_law(draws: int, bins: int) -> Floats:
    """Probability that `draws` balls thrown into `bins` equally likely bins hit exactly d = 0..bins of them, (bins+1,).

    P_{i+1}[d] = P_i[d] d / bins + P_i[d - 1] (bins - d + 1) / bins
    """
    hit = np.arange(bins + 1) / bins
    law = np.zeros(bins + 1)
    law[0] = 1
    for _ in range(draws):
        law[1:] = law[1:] * hit[1:] + law[:-1] * (1 - hit[:-1])
        law[0] = 0
    return law


def binomial_law(draws: int, probability: float) -> Floats:
    """Probability of c = 0..draws successes in independent draws of this probability, (draws + 1,)."""
    law = np.ones(1)
    for _ in range(draws):
        law = np.convolve(law, [1 - probability, probability])
    return law
