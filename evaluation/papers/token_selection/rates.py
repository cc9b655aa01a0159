"""Slopes of log error on log n, and ratios of errors, with intervals over replicates.

    slope: d log(mean over replicates of error) / d log n, by least squares
    ratio: exp(mean over replicates of log(first / second))

A replicate is a function with its examples; all sizes of one are drawn together, so that the interval counts what they
share. The interval of a slope holds the middle 95 % of 2,000 drawings; with four replicates it is rough, and rather too
short. That of a ratio is Student's, of its logarithm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsf_models.tasks.counter_rng import Floats, Ints
from evaluation.papers.seeds import summary

_DRAWINGS = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and its interval at 95 %."""

    value: float
    """From all replicates."""

    interval: tuple[float, float] | None
    """Least and greatest end; None for a single replicate, which says nothing of the others."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"interval": self.interval and list(self.interval)}


def slope(sizes: Sequence[int], errors: Sequence[Sequence[float]]) -> Estimate:
    """The slope of log error on log n.

    Args:
        sizes: n, at least two.
        errors: positive, (replicates, sizes).

    Raises:
        ValueError: another shape, or an error that is not positive.
    """
    table = _table(errors)
    if table.shape[1] != len(sizes) or len(sizes) < 2:
        raise ValueError(
            f"errors is of shape {table.shape} for {len(sizes)} sizes: give one column each, at least two."
        )
    x = np.log(np.array(sizes, np.float64))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return _estimate(len(table), lambda drawn: np.log(table[drawn].mean(axis=1)) @ weights)


def ratio(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The geometric mean of first / second, replicate by replicate, with Student's interval of its logarithm.

    Raises:
        ValueError: of different lengths, or a number that is not positive.
    """
    logs = summary((np.log(_table([first])[0]) - np.log(_table([second])[0])).tolist())
    interval = logs.interval and (math.exp(logs.interval[0]), math.exp(logs.interval[1]))
    return Estimate(math.exp(logs.mean), interval)


def _estimate(replicates: int, measure: Callable[[Ints], Floats]) -> Estimate:
    """What `measure` makes of all replicates, and of drawings (drawings, replicates) of them."""
    value = float(measure(np.arange(replicates)[None])[0])
    if replicates == 1:
        return Estimate(value, None)
    drawings = np.random.default_rng(0).integers(0, replicates, (_DRAWINGS, replicates))
    low, high = np.quantile(measure(drawings), [0.025, 0.975]).tolist()
    return Estimate(value, (low, high))


def _table(errors: Sequence[Sequence[float]]) -> Floats:
    table = np.array(errors, np.float64)
    if table.ndim != 2 or table.size == 0 or not (table > 0).all():
        raise ValueError(f"errors is {errors!r}: give positive numbers, as many for each replicate.")
    return table
