"""ListOps: nested lists of digits under MIN, MAX, median and sum modulo 10, written with brackets; give the value.

    [MAX 2 9 [MIN 4 7 ] 0 ]   pads ...
    labels:          ... 9    -100 ...      at the root's closing bracket, the last token before the pads

Sources: N. Nangia, S. Bowman, "ListOps: a diagnostic dataset for latent tree learning", arXiv:1804.06028, in the form
of Y. Tay et al., "Long Range Arena", arXiv:2011.04006, whose rows have no seed.

Letters: b rows, t positions, n nodes of all rows together, w words of a row, z points on a circle of the complex plane.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import comb
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Floats, Ints, RowRandom

SMALL = MappingProxyType({"max_depth": 5, "max_args": 5, "min_size": 32, "max_size": 128, "sequence_length": 128})
"""Sizes of a version that small models learn on a CPU: `get_task("listops", **SMALL)`. The defaults are LRA's."""

MIN, MAX, MED, SM, CLOSE, PAD = range(10, 16)
_WORDS_PER_BLOCK = 2**17  # more rows share the attempts at a tree, fewer stay in the processor's cache
_OPERATOR_SHARE = 1 / 4


@dataclass(frozen=True, kw_only=True)
class ListOps(SyntheticTask):
    """ListOps: the value of a nested list of digits, a task of 10 classes.

    tree(depth) is, with probability 1/4 where depth < max_depth, an operator over a uniform number 2..max_args of
    trees(depth + 1), and a uniform digit otherwise. Trees of min_size..max_size tokens are kept, the others drawn
    again. An operator takes two tokens, the opening with its name and the closing bracket. The median of an even number
    of values is the mean of the middle two, rounded down.

    Pads stand at the right, where a causal model never reads them; the only label is the value, at the root's closing
    bracket.

    Raises:
        ValueError: sizes that no tree can have, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "listops"
    default_examples: ClassVar[Mapping[str, int]] = MappingProxyType(
        {"train": 96_000, "validation": 2_000, "test": 2_000}
    )

    vocab_size: int = 16
    """Tokens 0..9 are digits and values, 10..13 open MIN, MAX, MED and SM, 14 closes, 15 is the pad."""
    sequence_length: int = 2000
    """T, at least max_size."""
    max_depth: int = 10
    """Depth of the deepest digit; the root has depth 1."""
    max_args: int = 10
    """Most arguments of an operator."""
    min_size: int = 501
    """Fewest tokens of a row."""
    max_size: int = 1999
    """Most tokens of a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 16, "vocab_size", "give at least 16: ten digits, four operators, bracket, pad")
        self._require(2 <= self.max_depth <= 32, "max_depth", "give 2 to 32")
        self._require(2 <= self.max_args <= 64, "max_args", "give 2 to 64")
        self._require(self.min_size >= 4, "min_size", "the smallest list has 4 tokens: give at least 4")
        self._require(self.max_size >= self.min_size, "max_size", f"give at least min_size={self.min_size}")
        self._require(self.max_size < 2**16, "max_size", "give less than 2**16")
        self._require(
            self.sequence_length >= self.max_size, "sequence_length", f"give at least max_size={self.max_size}"
        )
        self._require(
            self.acceptance >= 1e-5,
            "min_size",
            f"a share of {self.acceptance:.1g} of the trees has {self.min_size} to {self.max_size} tokens:"
            " give a wider window, or a larger max_depth or max_args",
        )

    @property
    def pad_token_id(self) -> int:
        """15, at the right of shorter rows."""
        return PAD

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the ten digits."""
        return 0.1

    @property
    def best_trivial(self) -> float:
        """Accuracy of always answering the most frequent value, to 6 decimals; see `label_law`."""
        return round(float(self.label_law.max()), 6)

    @property
    def label_law(self) -> Floats:
        """Probability of each value 0..9, exact up to rounding: (10,)."""
        law = self._law
        return law / law.sum()

    @property
    def acceptance(self) -> float:
        """Share of the trees whose size is in the window, exact up to rounding."""
        return _OPERATOR_SHARE * float(self._law.sum())

    @property
    def _law(self) -> Floats:
        return size_and_value_law(self.max_depth, self.max_args, self.min_size, self.max_size)

    @property
    def _rows_per_block(self) -> int:
        return max(1, _WORDS_PER_BLOCK // self.max_size)

    def vocabulary(self) -> dict[str, Any]:
        return {"digits": [0, 9], "MIN": MIN, "MAX": MAX, "MED": MED, "SM": SM, "close": CLOSE, "pad": PAD}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """Tokens of each row without its pads ("size"), and its deepest nesting of operators ("depth").

        Args:
            input_ids: (b, t).
            labels: (b, t), one of each row scored.

        Returns:
            "size" and "depth": (b,).
        """
        opens, closes = (input_ids >= MIN) & (input_ids <= SM), input_ids == CLOSE
        depth = (opens.astype(np.int64) - closes).cumsum(axis=1).max(axis=1)
        return {"size": (input_ids != PAD).sum(axis=1), "depth": depth}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        levels = evaluate(*self._trees(rng), self.max_args)
        input_ids = write(levels, self.sequence_length)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[np.arange(len(labels)), levels[0].spans - 1] = levels[0].values
        return input_ids, labels

    def _trees(self, rng: RowRandom) -> tuple[NDArray[np.uint32], Ints]:
        """Words (b, w) and level ends (b, depth) of the first tree of each row's endless stream that fits."""
        words = np.empty((len(rng.rows), self.max_size), np.uint32)
        ends = np.empty((len(rng.rows), self.max_depth), np.int64)
        missing, attempt = np.arange(len(rng.rows)), 0
        while missing.size:
            drawn = node_words(rng.take(missing), f"tree {attempt}", self.max_size)
            found, size = level_ends(drawn, self.max_depth, self.max_args)
            fits = (self.min_size <= size) & (size <= self.max_size)
            words[missing[fits]], ends[missing[fits]] = drawn[fits], found[fits]
            missing, attempt = missing[~fits], attempt + 1
        return words, ends


# ---- trees ----------------------------------------------------------------------------------------------------------
# A node is a word of 32 bits, and a tree its words in level order. The highest two bits are 0 for an operator, the next
# two say which; the other 28 give its number of arguments, or the digit. The root, word 0, is always an operator, as it
# is in every tree that is kept.


def node_words(rng: RowRandom, stream: str, number: int) -> NDArray[np.uint32]:
    """Return words (b, number), each a half of one of the generator's, the root's an operator."""
    bits = rng.bits(stream, (number + 1) // 2)
    words = np.stack([bits >> 32, bits & 0xFFFFFFFF], axis=2).astype(np.uint32).reshape(len(bits), -1)[:, :number]
    words[:, 0] &= 0x3FFFFFFF
    return words


def _scaled(words: NDArray[np.uint32], bound: int) -> Ints:
    """Return integers of 0..bound-1 from the low 28 bits of words."""
    return ((words & np.uint32(0xFFFFFFF)).astype(np.int64) * bound) >> 28


def level_ends(words: NDArray[np.uint32], max_depth: int, max_args: int) -> tuple[Ints, Ints]:
    """Return where the levels of trees end, and how many tokens the trees take.

    Level d + 1 ends where level d and the children of all nodes so far do: e_1 = 1, e_{d+1} = 1 + C(e_d).

    Args:
        words: (b, w).
        max_depth: depth of the deepest level, which holds digits alone.
        max_args: most arguments of an operator.

    Returns:
        ends e_1, ..., e_max_depth (b, max_depth), and the sizes (b,); a size above w of trees with more nodes than w.
    """
    operator = words >> 30 == 0
    children = np.zeros((len(words), words.shape[1] + 1), np.int64)
    np.cumsum(operator * (2 + _scaled(words, max_args - 1)), axis=1, out=children[:, 1:])
    ends = np.ones((len(words), max_depth), np.int64)
    rows = np.arange(len(words))
    for depth in range(1, max_depth):
        ends[:, depth] = 1 + children[rows, np.minimum(ends[:, depth - 1], words.shape[1])]
    inner = np.arange(words.shape[1]) < ends[:, -2:-1]
    return ends, ends[:, -1] + (operator & inner).sum(axis=1)


@dataclass(frozen=True)
class Level:
    """The nodes of one depth of all trees, n, one tree after the other, and the p operators among them.

    The children of successive operators follow each other in the next level.
    """

    symbols: Ints
    """The digit of a digit, the opening token of an operator (n,)."""
    values: Ints
    """(n,)."""
    spans: Ints
    """Tokens of the subtrees (n,)."""
    operators: Ints
    """Indices of the operators (p,)."""
    number: Ints
    """Their numbers of arguments (p,)."""


def evaluate(words: NDArray[np.uint32], ends: Ints, max_args: int) -> list[Level]:
    """Evaluate trees level by level, from the deepest up.

    Args:
        words: (b, w).
        ends: of `level_ends`, (b, depth), none above w.
        max_args: most arguments of an operator.

    Returns:
        The levels, the roots' first.
    """
    starts = np.hstack([np.zeros((len(ends), 1), np.int64), ends[:, :-1]])
    rows = words.shape[1] * np.arange(len(words))
    levels: list[Level] = []
    for depth in range(ends.shape[1] - 1, -1, -1):
        nodes = words.reshape(-1)[_ranges(rows + starts[:, depth], ends[:, depth] - starts[:, depth])]
        levels.insert(0, _level(nodes, levels[0] if levels else None, max_args))
    return levels


def _level(nodes: NDArray[np.uint32], below: Level | None, max_args: int) -> Level:
    """Return the level of these words (n,), whose operators apply to all of the level below, if there is one."""
    symbols, spans = _scaled(nodes, 10), np.ones(len(nodes), np.int64)
    values = symbols.copy()
    operators = np.flatnonzero(nodes >> 30 == 0) if below is not None else np.zeros(0, np.int64)
    number = 2 + _scaled(nodes[operators], max_args - 1)
    if len(operators):
        first = number.cumsum() - number
        symbols[operators] = MIN + (nodes[operators] >> 28).astype(np.int64)
        values[operators] = _apply(symbols[operators], below.values, first, number)
        spans[operators] = 2 + np.add.reduceat(below.spans, first)
    return Level(symbols, values, spans, operators, number)


def _apply(operators: Ints, arguments: Ints, first: Ints, number: Ints) -> Ints:
    """Return the values of operators (p,) whose arguments begin at `first` (p,) and follow each other."""
    candidates = (
        np.minimum.reduceat(arguments, first),
        np.maximum.reduceat(arguments, first),
        _medians(arguments, first, number),
        np.add.reduceat(arguments, first) % 10,
    )
    return np.choose(operators - MIN, candidates)


def _medians(arguments: Ints, first: Ints, number: Ints) -> Ints:
    """Return the mean of the middle two of each operator's sorted arguments, rounded down; of one where it is alone."""
    keys = np.repeat(np.arange(len(number)), number) * 10 + arguments
    keys.sort()
    return (keys[first + (number - 1) // 2] % 10 + keys[first + number // 2] % 10) // 2


def write(levels: list[Level], length: int) -> Ints:
    """Write trees as tokens, each level into the places that its parents leave it, padded at the right: (b, length).

    A child stands behind its parent's opening token and its older siblings.
    """
    rows = len(levels[0].values)
    tokens = np.full(rows * length, PAD, np.int64)
    place = length * np.arange(rows)
    for level, below in zip(levels, [*levels[1:], None], strict=True):
        tokens[place] = level.symbols
        parents = place[level.operators]
        tokens[parents + level.spans[level.operators] - 1] = CLOSE
        if not len(parents):
            break
        before = below.spans.cumsum() - below.spans
        first = level.number.cumsum() - level.number
        place = before + np.repeat(parents + 1 - before[first], level.number)
    return tokens.reshape(rows, length)


def _ranges(first: Ints, number: Ints) -> Ints:
    """Return first[i], first[i] + 1, ..., first[i] + number[i] - 1 for all i, one after the other."""
    before = number.cumsum() - number
    return np.repeat(first - before, number) + np.arange(number.sum())


# ---- their law ------------------------------------------------------------------------------------------------------


@cache
def size_and_value_law(max_depth: int, max_args: int, min_size: int, max_size: int) -> Floats:
    """Probability that a tree has min_size..max_size tokens and a value, given that its root is an operator: (10,).

        G_v(z) = sum_s Prob(size = s, value = v) z^s,    at depth d from those at depth d + 1

    on a circle of radius r in the complex plane; its coefficients come from a Fourier transform of w points. Sizes
    above w alias with the factor r^w = 1e-10, and rounding adds about 1e-16 / r^max_size = 1e-11.
    """
    points = 2 * max_size + 2
    radius = 1e-10 ** (1 / points)
    z = radius * np.exp(2j * np.pi * np.arange(points // 2 + 1) / points)
    digit = np.repeat(z[None] / 10, 10, axis=0)
    tree = digit
    for _ in range(max_depth - 1):
        operator = _operator_law(tree, z, max_args)
        tree = (1 - _OPERATOR_SHARE) * digit + _OPERATOR_SHARE * operator
    law = np.fft.irfft(operator.conj(), points) / radius ** np.arange(points)
    return np.maximum(law[:, min_size : max_size + 1].sum(axis=1), 0)


def _operator_law(tree: NDArray[np.complex128], z: NDArray[np.complex128], max_args: int) -> NDArray[np.complex128]:
    """Generating functions (10, z) of the value of an operator over independent trees (10, z)."""
    law = np.zeros_like(tree)
    up_to = np.vstack([np.zeros_like(z), tree.cumsum(axis=0)])  # of values below v, v = 0..10
    whole = up_to[10]
    waves = np.fft.fft(tree, axis=0)
    for number in range(2, max_args + 1):
        law += np.diff(up_to**number, axis=0)
        law -= np.diff((whole - up_to) ** number, axis=0)
        law += np.fft.ifft(waves**number, axis=0)
        law += _median_law(up_to, number)
    return law * z**2 / (4 * (max_args - 1))


def _median_law(up_to: NDArray[np.complex128], number: int) -> NDArray[np.complex128]:
    """Generating functions (10, z) of the median, from those of the values below v (11, z).

    With up_to = P(value < v), the a-th smallest of the values has the law

        Prob(a-th < v) = sum_{i >= a} C(number, i) P(value < v)^i P(value >= v)^(number - i).

    Of an even number the middle two are l < u where half of the values are at most l, one of them l, and the other half
    at least u, one of them u: then l, the law of the lower one, gives way to (l + u) // 2.
    """
    above = up_to[10] - up_to
    half = number // 2
    terms = [comb(number, i) * up_to**i * above ** (number - i) for i in range(number + 1)]
    if number % 2:
        return np.diff(sum(terms[half + 1 :]), axis=0)
    lower, upper = np.diff(up_to**half, axis=0), -np.diff(above**half, axis=0)
    split = comb(number, half) * lower[:, None] * upper[None]
    law = np.diff(sum(terms[half:]), axis=0)
    for low in range(10):
        for high in range(low + 1, 10):
            law[low] -= split[low, high]
            law[(low + high) // 2] += split[low, high]
    return law
