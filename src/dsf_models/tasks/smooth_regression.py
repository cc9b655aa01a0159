"""Regression of a smooth function of a few tokens, which the input itself may choose.

    (importance, content) of each token -> f(contents of the chosen tokens) + noise

Source: the classes are those of Takakura & Suzuki 2023 (arXiv:2305.18699) and Nishikawa & Suzuki 2025
(arXiv:2405.19036), as this project understands them; functions, token law and oracle are in `smooth`.

Letters: b rows, t tokens, j variables.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import RegressionTask
from dsf_models.tasks.counter_rng import Floats, RowRandom
from dsf_models.tasks.smooth import (
    SmoothFunction,
    draw_examples,
    draw_smooth_function,
    smoothness_exponents,
    unit_variance,
)

KINDS = ("fixed", "piecewise")
_MOST_TERMS = 2**16


@dataclass(frozen=True, kw_only=True)
class SmoothRegression(RegressionTask):
    """Smooth regression: read a smooth function of the contents of a few tokens, chosen by place or by importance.

        fixed:      y = f(z_{-1}, ..., z_{-j}) + noise             the last j tokens
        piecewise:  y = f(z_{p(1)}, ..., z_{p(j)}) + noise         the j most important ones, u_{p(1)} > u_{p(2)} > ...

    inputs_values[i] = (u_i, z_i), both in [0, 1]; importances keep apart, see `smooth.smooth_tokens`. The function is
    drawn from the seed, one for all splits, and has variance 1; the noise is normal. Reals are rounded to float32.

    Raises:
        ValueError: sizes outside their limits, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "smooth_regression"
    num_inputs: ClassVar[int] = 2

    sequence_length: int = 64
    """t, 2 to 2^20: neighbouring importances then differ in float32."""
    kind: str = "piecewise"
    """Which tokens count: "fixed" the last ones, "piecewise" the most important ones."""
    num_variables: int = 4
    """j, tokens that the function reads, at most sequence_length."""
    smoothness: float = 1.0
    """a_1 > 0, of the first variable: the larger, the fewer examples are needed."""
    smoothness_power: float = 1.0
    """Of the j-th variable it is a_1 j^power: the larger, the less later ones matter."""
    level: float = 7.0
    """T >= a_1: the function has components of smoothness up to T, about 2^(T / a_1) of them."""
    gap_power: float = 1.0
    """Importances of ranks i and i + 1 differ in proportion to i^-gap_power, 0 to 4."""
    sigma: float = 0.3
    """Standard deviation of the noise, 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(f"{self.name}.kind", self.kind, KINDS)
        self._require(2 <= self.sequence_length <= 2**20, "sequence_length", "give 2 to 2**20")
        most = min(self.sequence_length, 16)
        self._require(1 <= self.num_variables <= most, "num_variables", f"give 1 to {most}")
        self._require(0 < self.smoothness <= 64, "smoothness", "give a positive number, at most 64")
        self._require(0 <= self.smoothness_power <= 8, "smoothness_power", "give 0 to 8")
        least = f"give at least smoothness={self.smoothness}: below it the function is constant"
        self._require(self.level >= self.smoothness, "level", least)
        terms = num_functions(self._exponents, self.level)
        self._require(
            terms <= _MOST_TERMS, "level", f"the function has {terms:,} terms; lower it until they are {_MOST_TERMS:,}"
        )
        self._require(0 <= self.gap_power <= 4, "gap_power", "give 0 to 4")
        self._require(0 <= self.sigma < np.inf, "sigma", "give a finite number, 0 for no noise")

    def without_noise(self) -> "SmoothRegression":
        """The same with sigma = 0: the noise is drawn apart from all else."""
        return replace(self, sigma=0.0)

    @property
    def constant_mse(self) -> float:
        """Squared error of the best constant, the variance of the function and that of the noise: 1 + sigma^2."""
        return 1 + self.oracle_mse

    @property
    def oracle_mse(self) -> float:
        """Squared error of who knows the function, sigma^2."""
        return float(self.sigma**2)

    def function(self, seed: int) -> SmoothFunction:
        """The function of a seed, of unit variance."""
        return _function(seed, self._exponents, self.level)

    @property
    def _exponents(self) -> tuple[float, ...]:
        return tuple(smoothness_exponents(self.num_variables, self.smoothness, self.smoothness_power).tolist())

    def _rows(self, rng: RowRandom) -> tuple[Floats, Floats]:
        drawn = draw_examples(
            self.function(rng.seed), rng, self.sequence_length, self.kind, power=self.gap_power, sigma=self.sigma
        )
        return np.stack([drawn.importance, drawn.content], axis=2), drawn.observed


def num_functions(a: tuple[float, ...], level: float) -> int:
    """Number of basis functions with <a, s> <= level, the sum of 2^(s_1 + ... + s_j); stops counting past 2^40.

    Args:
        a: positive smoothnesses (j,).
        level: T.
    """
    if not a:
        return 1
    number = 0
    for s in range(int(min(level / a[0], 40) + 1e-9) + 1):
        number += 2**s * num_functions(a[1:], level - a[0] * s)
        if number > 2**40:
            break
    return number


@lru_cache(maxsize=16)
def _function(seed: int, a: tuple[float, ...], level: float) -> SmoothFunction:
    return unit_variance(draw_smooth_function(seed, np.array(a), level))
