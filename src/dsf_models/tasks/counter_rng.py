"""Counter-based random numbers: a draw is a pure function of its address and depends on no order, batch or worker.

    draw(seed, scope, stream, row, j) = word (j mod 2) of Threefry-2x64-20(key = (seed, H), counter = (row, j div 2))
    H = first 8 bytes of SHA-256("scope/stream"), read as a little-endian integer

Only operations that IEEE 754 and arithmetic modulo 2^64 fix to the last bit are used (no library logarithm, no
numpy.random): the same address gives the same number on every platform and with every version of numpy.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11,
doi:10.1145/2063384.2063405 (20 rounds, the authors' choice with a safety margin; 13 pass BigCrush).

Letters: b rows, j draws of one row.
"""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ROTATIONS = (16, 42, 12, 31, 16, 32, 24, 21)
_PARITY = 0x1BD11BDAA9FC1A22
_WORD = 2**64


def threefry2x64(key: tuple[int, int], counter: tuple[UInts, UInts]) -> tuple[UInts, UInts]:
    """Encrypt counters with the 20-round Threefry-2x64 block cipher.

    Args:
        key: two integers in 0..2^64-1.
        counter: two uint64 arrays of shapes that broadcast together.

    Returns:
        Two uint64 arrays of the broadcast shape.
    """
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + np.uint64(key[0]), counter[1] + np.uint64(key[1])
    for step in range(1, 6):
        for rotation in _ROTATIONS[:4] if step % 2 else _ROTATIONS[4:]:
            x = x + y
            y = ((y << rotation) | (y >> (64 - rotation))) ^ x
        x = x + np.uint64(schedule[step % 3])
        y = y + np.uint64((schedule[(step + 1) % 3] + step) % _WORD)
    return x, y


def negative_log(u: Floats) -> Floats:
    """-log(u) to a relative error below 1e-11, bit for bit the same everywhere.

    u = m 2^e with m in [sqrt(1/2), sqrt(2)), s = (m - 1)/(m + 1), log u = e log 2 + 2 (s + s^3/3 + s^5/5 + ...).

    Args:
        u: numbers in (0, 1), any shape.

    Returns:
        Positive numbers of the same shape.
    """
    mantissa, exponent = np.frexp(u)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, 2 * mantissa, mantissa)
    s = (mantissa - 1) / (mantissa + 1)
    square, series = s * s, np.float64(1 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = series * square + 1 / odd
    return (low - exponent) * 0.6931471805599453 - 2 * s * series


@dataclass(frozen=True)
class RowRandom:
    """Random numbers for a set of rows, in named streams of unlimited length.

    Draw j of a row is the same whichever rows are asked for with it and however many draws are asked for:
    `bits(stream, n)[:, :m] == bits(stream, m)`.
    """

    seed: int
    """The user's seed, 0..2^64-1."""
    scope: str
    """What the numbers are for ("task/split"); other scopes are independent."""
    rows: UInts
    """Row numbers (b,)."""

    def take(self, which: Ints) -> "RowRandom":
        """The same generator restricted to the rows at the indices `which`."""
        return replace(self, rows=self.rows[which])

    def bits(self, stream: str, draws: int) -> UInts:
        """Uniform 64-bit words, uint64 (b, draws)."""
        digest = sha256(f"{self.scope}/{stream}".encode()).digest()
        key = self.seed, int.from_bytes(digest[:8], "little")
        blocks = np.arange((draws + 1) // 2, dtype=np.uint64)
        words = threefry2x64(key, (self.rows[:, None], blocks[None, :]))
        return np.stack(words, axis=-1).reshape(len(self.rows), -1)[:, :draws]

    def uniform(self, stream: str, draws: int) -> Floats:
        """Uniform numbers (k + 1/2) / 2^52 in the open interval (0, 1), float64 (b, draws)."""
        return ((self.bits(stream, draws) >> 12) + 0.5) * 2.0**-52

    def exponential(self, stream: str, draws: int) -> Floats:
        """Exponential numbers of mean 1, float64 (b, draws)."""
        return negative_log(self.uniform(stream, draws))

    def integers(self, stream: str, draws: int, bound: int | Ints) -> Ints:
        """Integers floor(word * bound / 2^64) in 0..bound-1, int64 (b, draws); bound <= 2^32, or one a row (b, 1).

        Each value has probability 1/bound up to a relative error of bound / 2^64 (below 3e-10).
        """
        bits = self.bits(stream, draws)
        high, low = (bits >> 32) * np.uint64(bound), (bits & 0xFFFFFFFF) * np.uint64(bound)
        return ((high + (low >> 32)) >> 32).astype(np.int64)
