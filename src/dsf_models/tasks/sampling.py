"""Sampling without replacement, one independent sample per row: the result of a row depends on no other row.

Letters: b rows, k sampled items, m draws, f filler positions.
"""

import numpy as np

from dsf_models.tasks.counter_rng import Bools, Floats, Ints, RowRandom, UInts

_NONE = np.uint64(2**64 - 1)


def distinct(rng: RowRandom, stream: str, count: int, bound: int) -> Ints:
    """Sample `count` distinct integers of 0..bound-1 per row, all ordered samples equally likely.

    The sample is the first `count` different values of the row's endless stream of draws, however many that takes;
    where more than half of the range is wanted, the head of the shuffled range.

    Args:
        rng: rows (b,).
        stream: name of the random stream.
        count: k, at most `bound`.
        bound: size of the range, at most 2^32.

    Returns:
        int64 (b, k).
    """
    if 2 * count > bound:
        return _head_of_order(rng.bits(stream, bound), count)
    sample = np.empty((len(rng.rows), count), np.int64)
    missing, draws = np.arange(len(rng.rows)), count + count * count // bound + 4
    while missing.size:
        found, complete = _first_distinct(rng.take(missing).integers(stream, draws, bound), count)
        sample[missing[complete]] = found[complete]
        missing, draws = missing[~complete], 2 * draws
    return sample


def weighted(rng: RowRandom, stream: str, count: int, weights: Floats) -> Ints:
    """Draw `count` of n items one after the other without replacement, each time proportionally to the weights.

    Exponential race: item g arrives at time E_g / w_g, and the order of arrival is the order of drawing. It is the
    Gumbel top-k trick without its outer logarithm.

    Args:
        rng: rows (b,).
        stream: name of the random stream.
        count: k, at most n.
        weights: positive (n,).

    Returns:
        int64 (b, k), column i the item drawn i-th.
    """
    arrival = rng.exponential(stream, len(weights)) / weights
    # Positive floats and their bit patterns have the same order.
    return _head_of_order(arrival.view(np.uint64), count)


def skip_excluded(ranks: Ints, excluded: Ints, bound: int) -> Ints:
    """Turn ranks among the allowed integers into the integers themselves.

    Args:
        ranks: (b, f), in 0..bound-k-1.
        excluded: (b, k), distinct in each row, in 0..bound-1.
        bound: size of the range.

    Returns:
        int64 (b, f): entry r is the r-th (from 0) integer of 0..bound-1 that its row does not exclude.
    """
    rows, k = excluded.shape
    # The j-th excluded integer s_j (sorted) has s_j - j allowed integers below it.
    allowed_below = np.sort(excluded, axis=1) - np.arange(k)
    offset = bound * np.arange(rows)[:, None]
    passed = np.searchsorted((allowed_below + offset).ravel(), ranks + offset, side="right")
    return ranks + passed - k * np.arange(rows)[:, None]


def _head_of_order(order: UInts, count: int) -> Ints:
    """Indices of the `count` smallest entries of each row, ascending; equal up to the packed index counts as a tie."""
    low = order.shape[1].bit_length()
    packed = (order >> low << low) | np.arange(order.shape[1], dtype=np.uint64)
    packed.sort(axis=1)
    return (packed[:, :count] & (2**low - 1)).astype(np.int64)


def _first_distinct(values: Ints, count: int) -> tuple[Ints, Bools]:
    """The first `count` different values of each row (b, m), and which rows have that many."""
    packed = (values.astype(np.uint64) << 32) | np.arange(values.shape[1], dtype=np.uint64)
    packed.sort(axis=1)
    repeated = packed[:, 1:] >> 32 == packed[:, :-1] >> 32
    by_index = (packed << 32) | (packed >> 32)
    by_index[:, 1:][repeated] = _NONE
    by_index.sort(axis=1)
    return (by_index[:, :count] & 0xFFFFFFFF).astype(np.int64), by_index[:, count - 1] != _NONE
