"""Modular arithmetic with brackets: the value modulo 5 of an expression of digits, +, - and *.

    ( 4 - 2 ) * 3 + 1 pad ...
    answers:  . . . . 2 . 1 . 2             at each digit or bracket that ends an expression, no bracket being open

Pads stand at the right, where a causal model never reads them.

Sources: G. Delétang et al., "Neural networks and the Chomsky hierarchy", arXiv:2207.02098, and R. Grazzi et al.,
"Unlocking state-tracking in linear RNNs through negative eigenvalues", arXiv:2411.12537; here every expression of a
length is equally likely.

Letters: b rows, t positions, n symbols read so far, r symbols left, d depth, D max_depth, v values modulo 5, k what a
string ends with: a digit 0..4, or 5 for a bracket.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s
from dsf_models.tasks.counter_rng import Floats, Ints, RowRandom
from dsf_models.tasks.state_tracking import StateTracking

MODULUS = 5
PLUS, MINUS, TIMES, OPEN, CLOSE = range(MODULUS, MODULUS + 5)
_LONGEST = 2048  # the counts of longer expressions leave the range of float64
_TOKENS_PER_BLOCK = 2**17  # a loop over positions wants many rows at once, which stay in the processor's cache
_PER_SYMBOL = 0.25  # factor that keeps them in it, and a power of two: it rounds nothing


@dataclass(frozen=True, kw_only=True)
class ModularArithmeticBrackets(StateTracking):
    """Modular arithmetic with brackets: the value of an expression modulo 5, a task of 5 answers.

        expression = term | expression + term | expression - term
        term       = factor | term * factor
        factor     = 0 | 1 | 2 | 3 | 4 | ( expression )        brackets nested at most max_depth deep

    * binds closer than + and -, and equal ones are read from the left, as in Python. Expressions have an odd number of
    symbols: the length is uniform over min_symbols, min_symbols + 2, ..., and all expressions of a length are equally
    likely. An answer is defined where the symbols so far are an expression: after a digit or a bracket that leaves no
    bracket open.

    Raises:
        ValueError: sizes that no expression has, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "modular_arithmetic_brackets"

    vocab_size: int = 11
    """Tokens 0..4 are digits and answers, 5..9 are + - * ( ), the last one is the pad."""
    sequence_length: int = 40
    """Most tokens of a row, at most 2048."""
    min_symbols: int = 3
    """Fewest tokens of a row, odd."""
    every_position: bool = False
    """Whether every prefix that is an expression is scored, or only the whole row."""
    max_depth: int = 4
    """D, most brackets open at once, 1 to 64."""

    _num_tokens: ClassVar[int] = CLOSE + 1

    def _require_symbols(self) -> None:
        self._require(self.min_symbols % 2 == 1, "min_symbols", "expressions have an odd number of symbols: give one")
        self._require(self.sequence_length <= _LONGEST, "sequence_length", f"give 1 to {_LONGEST}")
        self._require(1 <= self.max_depth <= 64, "max_depth", "give 1 to 64; modular_arithmetic has no brackets")

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the five values."""
        return 1 / MODULUS

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that knows the position and the symbol there, and no earlier one, to 6 decimals."""
        law = expression_law(self.sequence_length, self.max_depth)
        expressions, right = law.sum(axis=(1, 2)), law.max(axis=2).sum(axis=1)
        scored = np.zeros(self.sequence_length)
        after, _ = completions(self.sequence_length, self.max_depth)
        for length in self._lengths:
            # Of all expressions of n + r symbols, expressions(n) after(r) begin with one of n.
            first = 0 if self.every_position else length - 1
            scored[first:length] += after[0, length - 1 - first :: -1] / expressions[length - 1]
        return round(float(scored @ right / (scored @ expressions)), 6)

    def vocabulary(self) -> dict[str, Any]:
        symbols = {symbol: MODULUS + i for i, symbol in enumerate("+-*()")}
        return {"digits": [0, MODULUS - 1], "answers": [0, MODULUS - 1], **symbols, "pad": self.pad_token_id}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The positions up to each scored one ("length"), and the most brackets open at once in them ("depth").

        Args:
            input_ids: (b, t).
            labels: (b, t).

        Returns:
            "length" and "depth": (n,).
        """
        opened = (input_ids == OPEN).astype(np.int64) - (input_ids == CLOSE)
        deepest = np.maximum.accumulate(opened.cumsum(axis=1), axis=1)
        return {**super().groups(input_ids, labels), "depth": deepest[labels != IGNORE_INDEX]}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        length = self._lengths[rng.integers("length", 1, len(self._lengths))]
        symbols = draw_expressions(rng, length[:, 0], self.sequence_length, self.max_depth)
        read = np.arange(1, self.sequence_length + 1)
        scored = read <= length if self.every_position else read == length
        labels = np.where(scored, prefix_values(symbols, self.max_depth), IGNORE_INDEX)
        return np.where(read <= length, symbols, self.vocab_size - 1), labels

    @property
    def _rows_per_block(self) -> int:
        return max(1, _TOKENS_PER_BLOCK // self.sequence_length)

    @property
    def _lengths(self) -> Ints:
        """The possible numbers of symbols of a row."""
        return np.arange(self.min_symbols, self.sequence_length + 1, 2)


# ---- reading --------------------------------------------------------------------------------------------------------


def prefix_values(input_ids: Ints, max_depth: int) -> Ints:
    """Return the value modulo 5 of each prefix that is an expression, -100 elsewhere.

    At each depth the machine holds a total, the signed term that may still be multiplied, and the last operator; the
    value there is total + term.

    Args:
        input_ids: beginnings of expressions (b, t).
        max_depth: most brackets open at once.

    Returns:
        int64 (b, t).
    """
    total, term, operator = np.zeros((3, len(input_ids), max_depth + 1), np.int64)
    operator[:] = PLUS
    depth, answers = np.zeros(len(input_ids), np.int64), np.full(input_ids.shape, IGNORE_INDEX)
    for t, symbol in enumerate(input_ids.T):
        closed, opened = np.flatnonzero(symbol == CLOSE), np.flatnonzero(symbol == OPEN)
        value = symbol.copy()
        value[closed] = total[closed, depth[closed]] + term[closed, depth[closed]]
        depth[closed] -= 1
        depth[opened] += 1
        total[opened, depth[opened]], term[opened, depth[opened]], operator[opened, depth[opened]] = 0, 0, PLUS

        between = np.flatnonzero((symbol >= PLUS) & (symbol <= TIMES))
        operator[between, depth[between]] = symbol[between]

        rows = np.flatnonzero((symbol < MODULUS) | (symbol == CLOSE))
        at, value = (rows, depth[rows]), value[rows]
        multiplied = operator[at] == TIMES
        total[at] += np.where(multiplied, 0, term[at])
        term[at] = np.where(multiplied, term[at] * value, np.where(operator[at] == MINUS, -value, value)) % MODULUS
        answers[rows, t] = np.where(at[1] == 0, (total[at] + term[at]) % MODULUS, IGNORE_INDEX)
    return answers


# ---- drawing --------------------------------------------------------------------------------------------------------


@cache
def completions(length: int, max_depth: int) -> tuple[Floats, Floats]:
    """Count the strings of r symbols that complete the beginning of an expression with d brackets open.

        after[d, r]  = 3 before[d, r-1] + after[d-1, r-1]     an operator, or a bracket closes;    after[0, 0] = 1
        before[d, r] = 5 after[d, r-1] + before[d+1, r-1]     a digit, or a bracket opens

    Args:
        length: largest r.
        max_depth: D.

    Returns:
        after an operand, and before one: counts times 4^-r, (D + 1, length + 1), the first for r = 0.
    """
    after, before = np.zeros((2, max_depth + 1, length + 1))
    after[0, 0] = 1
    for r in range(1, length + 1):
        after[:, r], before[:, r] = 3 * before[:, r - 1], 5 * after[:, r - 1]
        after[1:, r] += after[:-1, r - 1]
        before[:-1, r] += before[1:, r - 1]
        after[:, r] *= _PER_SYMBOL
        before[:, r] *= _PER_SYMBOL
    after.flags.writeable = before.flags.writeable = False
    return after, before


@cache
def _bracket_probabilities(length: int, max_depth: int) -> Floats:
    """Probability that the next symbol closes a bracket after an operand, or opens one before it: (2, D + 1, r)."""
    after, before = completions(length, max_depth)
    brackets = np.zeros((2, max_depth + 1, length + 1))
    brackets[0, 1:, 1:] = _PER_SYMBOL * after[:-1, :-1]
    brackets[1, :-1, 1:] = _PER_SYMBOL * before[1:, :-1]
    counts = np.stack([after, before])
    return np.divide(brackets, counts, out=brackets, where=counts > 0)


def draw_expressions(rng: RowRandom, lengths: Ints, width: int, max_depth: int) -> Ints:
    """Draw expressions, each of the given length with the same probability.

    Args:
        rng: rows (b,).
        lengths: odd (b,).
        width: t, at least the greatest length.
        max_depth: most brackets open at once.

    Returns:
        int64 (b, t), beyond the length of a row meaningless symbols.
    """
    probability = _bracket_probabilities(width, max_depth)
    uniform, words = rng.uniform("brackets", width), rng.integers("symbols", width, 3 * MODULUS)
    symbols = np.empty_like(words)
    depth, before = np.zeros((2, len(lengths)), np.int64)
    before += 1
    for t in range(width):
        bracket = uniform[:, t] < probability[before, depth, np.maximum(lengths - t, 0)]
        digit, operator = words[:, t] % MODULUS, PLUS + words[:, t] % 3
        symbols[:, t] = np.where(before == 1, np.where(bracket, OPEN, digit), np.where(bracket, CLOSE, operator))
        depth += bracket * (2 * before - 1)
        before = (before == bracket).astype(np.int64)
    return symbols


# ---- their law ------------------------------------------------------------------------------------------------------


@cache
def expression_law(length: int, max_depth: int) -> Floats:
    """Count the expressions of n symbols that end with k and have the value v modulo 5.

    Args:
        length: largest n.
        max_depth: D.

    Returns:
        counts times 4^-n, (n, k, v), the first for n = 1.
    """
    values = np.arange(MODULUS)
    one = np.eye(MODULUS)
    times = one[np.outer(values, values) % MODULUS]
    plus_or_minus = one[(values[:, None] + values) % MODULUS] + one[(values[:, None] - values) % MODULUS]
    inner = np.zeros((length + 1, MODULUS + 1, MODULUS))
    for _ in range(max_depth + 1):
        factor, term, expression = np.zeros((3, length + 1, MODULUS + 1, MODULUS))
        factor[1, values, values] = _PER_SYMBOL
        factor[2:, MODULUS] = _PER_SYMBOL**2 * inner[:-2].sum(axis=1)
        for n in range(1, length + 1, 2):
            term[n] = factor[n] + _joined(term, factor, n, times)
            expression[n] = term[n] + _joined(expression, term, n, plus_or_minus)
        inner = expression
    expression.flags.writeable = False
    return expression[1:]


def _joined(left: Floats, right: Floats, n: int, table: Floats) -> Floats:
    """Counts (k, v) of strings of n symbols "left operator right", the values of left and right joined by a table."""
    pairs = np.tensordot(left[1 : n - 1].sum(axis=1), right[1 : n - 1][::-1], axes=(0, 0))
    return _PER_SYMBOL * np.einsum("ukw,uwv->kv", pairs, table)
