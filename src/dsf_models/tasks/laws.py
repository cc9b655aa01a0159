"""Exact laws of random choices, from which tasks compute their trivial baselines.

Letters: n items, k draws, z points on a circle of the complex plane.
"""

import math

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


def expected_largest_count(draws: int, bins: int) -> float:
    """Expected number of balls in the fullest bin after throwing `draws` balls into `bins` equally likely bins.

        E = sum over m >= 0 of Prob(max > m),   Prob(max <= m) = [x^draws] p_m(x)^bins / Poisson(draws; draws)

    with p_m the Poisson(draws / bins) generating function cut after x^m.
    """
    rate = draws / bins
    poisson = np.array([math.exp(m * math.log(rate) - rate - math.lgamma(m + 1)) for m in range(draws + 1)])
    total = math.exp(draws * math.log(draws) - draws - math.lgamma(draws + 1))
    expected = 0.0
    for m in range(draws):
        power = _truncated_power(poisson[: m + 1], bins, draws + 1)
        more = 1 - power[draws] / total if len(power) > draws else 1.0
        if more < 1e-12:
            break
        expected += more
    return expected


def _truncated_power(polynomial: Floats, exponent: int, terms: int) -> Floats:
    """The first `terms` coefficients of polynomial^exponent."""
    power = np.ones(1)
    while exponent:
        if exponent & 1:
            power = np.convolve(power, polynomial)[:terms]
        polynomial, exponent = np.convolve(polynomial, polynomial)[:terms], exponent >> 1
    return power
