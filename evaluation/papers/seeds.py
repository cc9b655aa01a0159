"""Means over seeds and paired differences, with Student's intervals.

    mean ± t_{0.975, n-1} s / sqrt(n)

Outcomes of synthetic tasks are often bimodal, chance or solved, and no interval from a few seeds describes that: least,
greatest and every single value stand beside each mean.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import t


@dataclass(frozen=True)
class Summary:
    """A few values of one quantity, one for each seed."""

    values: tuple[float, ...]
    """All of them."""

    mean: float
    """Their mean."""

    interval: tuple[float, float] | None
    """Student's interval of the mean at 95 %; None for a single value."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"min": min(self.values), "max": max(self.values)}


def summary(values: Sequence[float]) -> Summary:
    """Summarise values of independent seeds.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("values is empty: give at least one.")
    centre = mean(values)
    if len(values) == 1:
        return Summary(tuple(values), centre, None)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Summary(tuple(values), centre, (centre - half, centre + half))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Summary:
    """Summarise first - second, seed by seed: what both share of a seed's luck cancels.

    Raises:
        ValueError: their numbers differ.
    """
    return summary([a - b for a, b in zip(first, second, strict=True)])
