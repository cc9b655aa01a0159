"""Regression targets of known smoothness, fixed or piecewise, and the estimator that knows their smoothness.

    f = Σ_r c_r ψ_r        ψ_r(x) = Π_j ψ_{r_j}(x_j)        ψ_0 = 1, ψ_{-k} = √2 cos 2πkx, ψ_k = √2 sin 2πkx for k > 0
    δ_s f = Σ_{r in block s} c_r ψ_r                        block s: ⌊2^{s_j - 1}⌋ <= |r_j| < 2^{s_j} for every j
    ‖f‖ = (Σ_s 2^{θγ(s)} ‖δ_s f‖_p^θ)^{1/θ}                 γ(s) = <a, s>, here with p = 2 and θ = 1

Of least squares on the functions with γ <= T, about 2^{T/a†} of them with a† = min_j a_j, the squared error on n
examples is 2^{-2T} + 2^{T/a†} / n up to logarithms: with the best T it falls as n^{-2a†/(2a†+1)}, whatever the number
of variables. Variable j of the function is the content of token -j (fixed smoothness), or of the token of the j-th
largest importance (piecewise smoothness): then which tokens matter is for the input to say.

Source: the classes are those of Takakura & Suzuki 2023 (arXiv 2305.18699) and Nishikawa & Suzuki 2025 (arXiv
2405.19036), as this project understands them; coefficients, token law and sieve are this project's own.

Letters: b examples, t tokens, j variables (ranks), m functions of the basis, s blocks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from dsf_models.errors import require, require_known
from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom

__all__ = [
    "Examples",
    "SmoothFunction",
    "basis",
    "block_frequencies",
    "block_norms",
    "blocks",
    "draw_examples",
    "draw_smooth_function",
    "features",
    "fit_sieves",
    "gaps",
    "is_separated",
    "log_log_slope",
    "position_content",
    "ranked_content",
    "rate_exponent",
    "smooth_tokens",
    "smoothness_exponents",
    "smoothness_norm",
    "squared_distance",
    "tuned_sieve",
    "unit_variance",
]

_FEATURES_AT_ONCE = 2**22  # values of basis functions in one piece, 32 MiB


# ---- the class ------------------------------------------------------------------------------------------------------


def smoothness_exponents(ranks: int, first: float, power: float) -> Floats:
    """Return a_j = a_1 j^α for j = 1..ranks: the later a variable, the smoother the function in it.

    Args:
        ranks: number of variables, at least 1.
        first: a_1 > 0.
        power: α >= 0.

    Returns:
        a (j,).

    Raises:
        ValueError: a value outside its limits.
    """
    require(ranks >= 1, "ranks", ranks, "give at least one variable")
    require(first > 0, "first", first, "give a positive smoothness a_1")
    require(power >= 0, "power", power, "give α >= 0: later variables matter less")
    return first * np.arange(1, ranks + 1, dtype=np.float64) ** power


def rate_exponent(a: Floats) -> float:
    """Return 2a†/(2a†+1) with a† = min_j a_j: the squared error on n examples falls as n to minus this power."""
    return float(2 * np.min(a) / (2 * np.min(a) + 1))


def blocks(a: Floats, level: float) -> Ints:
    """Return all s in N_0^j with <a, s> <= level, by increasing <a, s>.

    Args:
        a: positive (j,).
        level: T >= 0.

    Returns:
        (s, j).

    Raises:
        ValueError: a smoothness that is not positive (there would be infinitely many blocks), or a negative level.
    """
    a = np.asarray(a, np.float64)
    require(bool((a > 0).all()), "a", a, "give positive smoothnesses")
    require(level >= 0, "level", level, "give T >= 0: the constant has γ = 0")
    found = np.zeros((1, 0), np.int64)
    for j in range(len(a)):
        choices = np.arange(int(level / a[j] + 1e-9) + 1)
        found = np.hstack([found.repeat(len(choices), axis=0), np.tile(choices, len(found))[:, None]])
        found = found[_gamma(found, a[: j + 1]) <= level]
    return found[np.argsort(_gamma(found, a), kind="stable")]


def _gamma(s: Ints, a: Floats) -> Floats:
    """Return γ(s) = <a, s> of blocks (s, j), rounded so that equal ones are equal: (s,)."""
    return np.round(s @ a, 9)


def block_frequencies(block: Ints) -> Ints:
    """Return all r of one block s (j,), Π_j 2^{s_j} of them: (m, j)."""
    axes = []
    for s in block:
        size = np.arange(2**s // 2, 2**s)
        axes.append(np.concatenate([-size[::-1], size]) if s else size)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(block))


@dataclass(frozen=True)
class SmoothFunction:
    """f = Σ_r c_r ψ_r: callable, with what its norms need."""

    frequencies: Ints
    """r, (m, j), by increasing γ."""
    levels: Floats
    """γ of the block of each r, (m,)."""
    coefficients: Floats
    """c_r, (m,)."""

    def __call__(self, x: Floats) -> Floats:
        """Evaluate at points of [0, 1]^j: (b, j) -> (b,)."""
        # Term after term: the order of a matrix product's sums, and so its last bits, would depend on the other points.
        return _in_pieces(x, self.frequencies, lambda values: (values * self.coefficients).cumsum(axis=1)[:, -1])


def basis(a: Floats, level: float) -> SmoothFunction:
    """Return all functions with γ <= level, their coefficients 0, by increasing γ."""
    all_blocks = blocks(a, level)
    members = [block_frequencies(block) for block in all_blocks]
    levels = np.repeat(_gamma(all_blocks, a), [len(r) for r in members])
    return SmoothFunction(np.concatenate(members), levels, np.zeros(len(levels)))


def features(x: Floats, frequencies: Ints) -> Floats:
    """Return ψ_r(x) = Π_j ψ_{r_j}(x_j): points (b, j) and frequencies (m, j) -> (b, m)."""
    values = np.ones((len(frequencies), len(x)))  # one contiguous row a function: rows are quicker to gather
    for j in range(frequencies.shape[1]):
        largest = int(np.abs(frequencies[:, j]).max(initial=0))
        angle = 2 * math.pi * np.arange(1, largest + 1)[:, None] * x[:, j]
        cos, sin = math.sqrt(2) * np.cos(angle), math.sqrt(2) * np.sin(angle)
        values *= np.vstack([cos[::-1], np.ones((1, len(x))), sin])[frequencies[:, j] + largest]
    return values.T


def _in_pieces(x: Floats, frequencies: Ints, read: Callable[[Floats], Floats]) -> Floats:
    """Return read(features) for all points, a few of them at a time."""
    rows = max(1, _FEATURES_AT_ONCE // len(frequencies))
    return np.concatenate([read(features(x[i : i + rows], frequencies)) for i in range(0, max(len(x), 1), rows)])


def draw_smooth_function(seed: int, a: Floats, level: float) -> SmoothFunction:
    """Draw a function of norm 1 with signs at random, a pure function of (seed, a, level).

        |c_r| = 2^{-γ(s)} ω_s / √N_s        N_s = Π_j 2^{s_j}        ω_s = (1 + γ(s))^{-1.1} / Σ_{s'} (1 + γ(s'))^{-1.1}

    so that ‖δ_s f‖_2 = 2^{-γ(s)} ω_s, and the norm is Σ_s ω_s = 1: every block takes its share of it.

    Args:
        seed: 0..2^64-1.
        a: positive smoothnesses (j,).
        level: T, the largest γ(s).

    Returns:
        The function.
    """
    f, all_blocks = basis(a, level), blocks(a, level)
    gamma, sizes = _gamma(all_blocks, a), 2 ** all_blocks.sum(axis=1)
    weights = (1 + gamma) ** -1.1
    size = 2.0**-gamma * weights / weights.sum() / np.sqrt(sizes)
    signs = 1 - 2.0 * RowRandom(seed, "smooth/function", np.zeros(1, np.uint64)).integers("signs", len(f.levels), 2)[0]
    return replace(f, coefficients=signs * size.repeat(sizes))


def block_norms(f: SmoothFunction) -> tuple[Ints, Floats, Floats]:
    """Return the blocks s of f (s, j), their γ(s) (s,) and ‖δ_s f‖_2 (s,), the last by Parseval."""
    exponents = np.where(f.frequencies == 0, 0, np.frexp(np.abs(f.frequencies))[1])
    all_blocks, first, member = np.unique(exponents, axis=0, return_index=True, return_inverse=True)
    squares = np.bincount(member.ravel(), weights=f.coefficients**2, minlength=len(all_blocks))
    return all_blocks, f.levels[first], np.sqrt(squares)


def smoothness_norm(f: SmoothFunction) -> float:
    """Return ‖f‖ = Σ_s 2^{γ(s)} ‖δ_s f‖_2, the norm with p = 2 and θ = 1."""
    _, gamma, norms = block_norms(f)
    return float((2.0**gamma * norms).sum())


def unit_variance(f: SmoothFunction) -> SmoothFunction:
    """Return f over its standard deviation at a uniform point; the norm grows by the same factor.

    Raises:
        ValueError: f is constant.
    """
    variance = float((f.coefficients[(f.frequencies != 0).any(axis=1)] ** 2).sum())
    require(variance > 0, "variance", variance, "a constant has none: draw with a level of at least min(a)")
    return replace(f, coefficients=f.coefficients / math.sqrt(variance))


def squared_distance(f: SmoothFunction, g: SmoothFunction) -> float:
    """Return E (f - g)² at a uniform point, exact by Parseval; the basis of one must begin with that of the other."""
    m = min(len(f.levels), len(g.levels))
    require(bool((f.frequencies[:m] == g.frequencies[:m]).all()), "g", "another basis", "give functions of the same a")
    both = ((f.coefficients[:m] - g.coefficients[:m]) ** 2).sum()
    return float(both + (f.coefficients[m:] ** 2).sum() + (g.coefficients[m:] ** 2).sum())


# ---- tokens and targets ---------------------------------------------------------------------------------------------


def gaps(tokens: int, power: float) -> Floats:
    """Return c i^{-β} for i = 1..tokens-1, with the c at which the whole grid, jitter included, just fits in [0, 1].

    Args:
        tokens: at least 2.
        power: β >= 0.
    """
    require(tokens >= 2, "tokens", tokens, "give at least two, or there is nothing to choose")
    require(power >= 0, "power", power, "give β >= 0: gaps shrink with the rank")
    shape = np.arange(1, tokens, dtype=np.float64) ** -power
    return shape / (shape.sum() + (shape[0] + shape[-1]) / 4)


def smooth_tokens(rng: RowRandom, tokens: int, power: float) -> tuple[Floats, Floats]:
    """Draw sequences of tokens (importance, content), each in [0, 1]².

    The importances are a grid with gaps c i^{-β}, moved by less than a quarter of the smaller gap beside and permuted
    at random, so that the i-th largest exceeds the next by more than c i^{-β} / 2 in every sequence. (Independent ones
    come arbitrarily close.) The contents are independent and uniform.

    Args:
        rng: rows (b,).
        tokens: t, at least 2.
        power: β >= 0.

    Returns:
        importance and content, both (b, t).
    """
    between = gaps(tokens, power)
    below = np.append(between, between[-1])
    grid = below[-1] / 4 + np.append(between[::-1].cumsum()[::-1], 0.0)
    ranked = grid + (rng.uniform("jitter", tokens) - 0.5) / 2 * below
    order = rng.bits("order", tokens).argsort(axis=1)
    return np.take_along_axis(ranked, order, axis=1), rng.uniform("content", tokens)


def is_separated(importance: Floats, between: Floats) -> Bools:
    """Return in which sequences the i-th largest importance exceeds the next by at least between[i]: (b, t) -> (b,)."""
    ranked = -np.sort(-importance, axis=1)
    return (ranked[:, :-1] - ranked[:, 1:] >= between).all(axis=1)


def position_content(content: Floats, ranks: int) -> Floats:
    """Return the contents of the positions -1, …, -ranks: the variables of the target of fixed smoothness.

    Args:
        content: (b, t).
        ranks: j <= t.

    Returns:
        (b, j).
    """
    require(ranks <= content.shape[1], "ranks", ranks, f"there are only {content.shape[1]} tokens")
    return content[:, ::-1][:, :ranks]


def ranked_content(importance: Floats, content: Floats, ranks: int) -> Floats:
    """Return the contents of the tokens of rank 1, …, ranks by importance: the variables of the piecewise target.

    Args:
        importance: (b, t), distinct in each sequence.
        content: (b, t).
        ranks: j <= t.

    Returns:
        (b, j).
    """
    require(ranks <= content.shape[1], "ranks", ranks, f"there are only {content.shape[1]} tokens")
    return np.take_along_axis(content, (-importance).argsort(axis=1)[:, :ranks], axis=1)


class Examples(NamedTuple):
    """Sequences and what is to be learned of each."""

    importance: Floats
    """u, (b, t)."""
    content: Floats
    """z, (b, t)."""
    target: Floats
    """F°, free of noise, (b,)."""
    observed: Floats
    """F° + N(0, σ²), (b,)."""


def draw_examples(
    f: SmoothFunction,
    rng: RowRandom,
    tokens: int,
    kind: Literal["fixed", "piecewise"],
    *,
    power: float = 1.0,
    sigma: float = 0.3,
) -> Examples:
    """Draw sequences and their targets; a row is a pure function of (f, rng.seed, rng.scope, row).

        fixed:      F° = f(z_{-1}, …, z_{-j})
        piecewise:  F° = f(z_{π(1)}, …, z_{π(j)})        u_{π(1)} > … > u_{π(t)}

    Args:
        f: a function of j variables.
        rng: rows (b,).
        tokens: t >= j, at least 2.
        kind: "fixed" or "piecewise".
        power: β of the gaps between importances.
        sigma: σ >= 0.

    Raises:
        ValueError: unknown kind, or a size outside its limits.
    """
    require_known("kind", kind, ("fixed", "piecewise"))
    require(sigma >= 0, "sigma", sigma, "give a standard deviation, 0 for no noise")
    importance, content = smooth_tokens(rng, tokens, power)
    ranks = f.frequencies.shape[1]
    fixed = kind == "fixed"
    target = f(position_content(content, ranks) if fixed else ranked_content(importance, content, ranks))
    return Examples(importance, content, target, target + sigma * _normal(rng))


def _normal(rng: RowRandom) -> Floats:
    """Return one N(0, 1) number a row by Box and Muller, √(2E) cos 2πU: (b,)."""
    radius = np.sqrt(2 * rng.exponential("noise radius", 1)[:, 0])
    return radius * np.cos(2 * math.pi * rng.uniform("noise angle", 1)[:, 0])


# ---- the estimator that knows the smoothness ------------------------------------------------------------------------


def fit_sieves(x: Floats, y: Floats, a: Floats, most: int) -> list[SmoothFunction]:
    """Least squares on the functions with γ <= T, for every T that leaves at most `most` of them.

    The bases are nested, and so are the leading blocks of one factorisation Φ = QR: c_T = R_T^{-1} Q_Tᵀ y.

    Args:
        x: variables in [0, 1]^j, (b, j).
        y: observations (b,).
        a: positive smoothnesses (j,).
        most: at most b, at least 1.

    Returns:
        One function per T, by increasing T.

    Raises:
        ValueError: `most` outside its limits.
    """
    require(1 <= most <= len(y), "most", most, f"give 1 to {len(y)}, the number of examples")
    whole = _largest_basis(np.asarray(a, np.float64), most)
    q, r = np.linalg.qr(features(x, whole.frequencies))
    projected, fits = q.T @ y, []
    for size in _ends(whole.levels):
        coefficients = np.linalg.solve(r[:size, :size], projected[:size])
        fits.append(SmoothFunction(whole.frequencies[:size], whole.levels[:size], coefficients))
    return fits


def _largest_basis(a: Floats, most: int) -> SmoothFunction:
    """Return the largest basis {γ <= T} of at most `most` functions."""
    level = a.min() * math.log2(max(most, 1))  # 2^{T/a†} functions of the first variable alone
    whole = basis(a, level)
    size = next(end for end in reversed(_ends(whole.levels)) if end <= most)
    return SmoothFunction(whole.frequencies[:size], whole.levels[:size], whole.coefficients[:size])


def _ends(levels: Floats) -> list[int]:
    """Return how many functions have γ <= T, for every T among the sorted levels."""
    return (np.flatnonzero(np.diff(levels, append=np.inf)) + 1).tolist()


def tuned_sieve(
    train: tuple[Floats, Floats], validation: tuple[Floats, Floats], a: Floats, most: int
) -> SmoothFunction:
    """Return the one of `fit_sieves` with the least squared error on the validation examples.

    Args:
        train: x (b, j) and y (b,) to fit.
        validation: x (b', j) and y (b',) to choose T.
        a: positive smoothnesses (j,).
        most: the largest number of functions.
    """
    x, y = validation
    fits = fit_sieves(*train, a, most)
    values = features(x, fits[-1].frequencies)  # the bases are nested: each fit reads the first columns
    errors = [float(((values[:, : len(fit.levels)] @ fit.coefficients - y) ** 2).mean()) for fit in fits]
    return fits[int(np.argmin(errors))]


def log_log_slope(sizes: Floats, errors: Floats) -> float:
    """Return the least-squares slope of log error on log n."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
