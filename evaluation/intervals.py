"""Intervals of ratios over documents.

Letters: d documents, r resamples, k quantities.
"""

from collections.abc import Callable

import numpy as np

from dsf_models.tasks.counter_rng import Floats

RESAMPLES = 1_000
_BLOCK = 2**24
"""Counts that are held at once."""


def bootstrap(quantities: Floats, statistic: Callable[[Floats], Floats], seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval at 95 % of a statistic of sums over documents.

    Documents are drawn with replacement, as many as there are, so that tokens of one document stay together.

    Args:
        quantities: (d, k), what each document adds to the sums.
        statistic: sums (r, k) -> values (r,).
        seed: of the resamples.

    Returns:
        Its two ends, or None for fewer than two documents, and where a resample has no value.

    Source: B. Efron, R. Tibshirani, "An introduction to the bootstrap", 1993.
    """
    count = len(quantities)
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // count)
    sums = [
        rng.multinomial(count, np.full(count, 1 / count), size=min(block, RESAMPLES - start)) @ quantities
        for start in range(0, RESAMPLES, block)
    ]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = statistic(np.concatenate(sums))
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
