"""State tracking: parity, even pairs, cycle navigation, modular arithmetic, word problems.

Every row here is a word of symbols, each drawn i.i.d. uniformly, that drives a finite automaton; the answer is a
function of the state it has reached. Pads stand at the right, where a causal model never reads them. Brackets need a
stack: `modular_arithmetic_brackets`.

Sources: R. Grazzi et al., "Unlocking state-tracking in linear RNNs through negative eigenvalues", arXiv:2411.12537;
W. Merrill, J. Petty, A. Sabharwal, "The illusion of state in state-space models", arXiv:2404.08819.

Letters: b rows, t positions, s states, x symbols, k tokens per symbol.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.groups import GROUPS, PERMUTATION_GROUPS, group_table, points_moved

STEPS = ("all", "swaps", "three")


def run_automaton(transition: Ints, symbols: Ints) -> Ints:
    """The state after each symbol, from state 0: transition (s, x), symbols (b, t) -> (b, t)."""
    states, state = np.empty_like(symbols), np.zeros(len(symbols), np.int64)
    for t in range(symbols.shape[1]):
        state = states[:, t] = transition[state, symbols[:, t]]
    return states


def memoryless_accuracy(transition: Ints, answer: Ints, weights: list[float]) -> float:
    """Accuracy of the best rule that knows the position and the symbol there, and none of the earlier symbols.

        sum_t weight_t sum_x max_a Prob(symbol x stands at t and the answer there is a) / sum_t weight_t

    Args:
        transition: the automaton (s, x), from state 0, under i.i.d. uniform symbols.
        answer: answer of each state (s,), from 0.
        weights: how often position t = 0, 1, ... is scored.
    """
    states, symbols = transition.shape
    law, total = np.eye(states)[0], 0.0
    for weight in weights:
        moved = np.zeros((symbols, states))
        np.add.at(moved, (np.arange(symbols), transition), law[:, None] / symbols)
        answers = np.zeros((symbols, answer.max() + 1))
        np.add.at(answers.T, answer, moved.T)
        total, law = total + weight * answers.max(axis=1).sum(), moved.sum(axis=0)
    return float(total / sum(weights))


@dataclass(frozen=True, kw_only=True)
class StateTracking(SyntheticTask):
    """A task whose answer is a function of a state that every symbol of the row changes.

    Rows differ in length. The target of the output at a symbol is the answer after reading it.
    """

    min_symbols: int
    """Fewest symbols of a row; the most are those that fill sequence_length."""
    every_position: bool
    """Whether every symbol is scored (the answer of each prefix), or only the last one of the row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_symbols()
        self._require(
            1 <= self.min_symbols <= self._max_symbols, "min_symbols", f"give 1 to {self._max_symbols}, all that fit"
        )
        least = self._num_tokens + self._has_pads
        self._require(self.vocab_size >= least, "vocab_size", f"give at least {least}")

    def _require_symbols(self) -> None:
        """Raise ValueError where the sizes that make the symbols make no sense."""

    @property
    @abstractmethod
    def _num_tokens(self) -> int:
        """Token ids in use besides the pad."""

    @property
    def _max_symbols(self) -> int:
        return self.sequence_length

    @property
    def _has_pads(self) -> bool:
        return self.min_symbols < self._max_symbols

    @property
    def pad_token_id(self) -> int | None:
        """The last token, at the right of shorter rows; None where all rows have one length."""
        return self.vocab_size - 1 if self._has_pads else None

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The number of positions up to each scored one, itself included ("length").

        Args:
            input_ids: (b, t).
            labels: (b, t).

        Returns:
            "length": (n,).
        """
        return {"length": np.nonzero(labels != IGNORE_INDEX)[1] + 1}


@dataclass(frozen=True, kw_only=True)
class Automaton(StateTracking):
    """A task whose answer is a function of the state of a finite automaton that has read the row.

    A row has n symbols, n uniform in min_symbols..max; the symbols are i.i.d. uniform, so nothing is ambiguous.
    """

    @property
    @abstractmethod
    def _transition(self) -> Ints:
        """The automaton (s, x); it starts in state 0."""

    @property
    @abstractmethod
    def _answer(self) -> Ints:
        """The answer of each state, from 0: (s,)."""

    def _tokens(self, symbols: Ints) -> Ints:
        """The tokens of the symbols (b, n), without their rests: (b, n, 1..k)."""
        return symbols[:, :, None]

    @property
    def _width(self) -> int:
        """k, tokens of each symbol: its own, then rests."""
        return 1

    @property
    def _rest(self) -> int:
        """The token of rest; used where k > 1."""
        return 0

    @property
    def _max_symbols(self) -> int:
        return self.sequence_length // self._width

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the answers."""
        return 1 / (int(self._answer.max()) + 1)

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that keeps no state, to 6 decimals; see `memoryless_accuracy`.

        It knows the symbol at the position and the position itself; where every position is scored, the first answer of
        a row needs no state.
        """
        lengths = self._max_symbols - self.min_symbols + 1
        reached = [1 - max(0, t + 1 - self.min_symbols) / lengths for t in range(self._max_symbols)]
        ends = [float(t + 1 >= self.min_symbols) / lengths for t in range(self._max_symbols)]
        weights = reached if self.every_position else ends
        return max(self.chance, round(memoryless_accuracy(self._transition, self._answer, weights), 6))

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        most = self._max_symbols
        symbols = rng.integers("symbols", most, self._transition.shape[1])
        length = self.min_symbols + rng.integers("length", 1, most - self.min_symbols + 1)
        position = np.arange(most)
        scored = position < length if self.every_position else position == length - 1
        answers = self._answer[run_automaton(self._transition, symbols)]
        shape = (len(symbols), most, self._width)
        input_ids, labels = np.full(shape, self._rest), np.full(shape, IGNORE_INDEX)
        tokens = self._tokens(symbols)
        input_ids[:, :, : tokens.shape[2]] = tokens
        labels[:, :, -1][scored] = answers[scored]
        input_ids[position >= length] = self.vocab_size - 1
        return input_ids.reshape(len(symbols), -1), labels.reshape(len(symbols), -1)


@dataclass(frozen=True, kw_only=True)
class Parity(Automaton):
    """Parity: whether the number of ones read is odd; tokens and answers are 0 and 1."""

    name: ClassVar[str] = "parity"

    vocab_size: int = 3
    """Tokens 0 and 1 are bits, the last one is the pad."""
    sequence_length: int = 40
    """Most bits of a row."""
    min_symbols: int = 3
    """Fewest symbols of a row."""
    every_position: bool = False
    """Whether every prefix is scored, or only the whole row."""

    _transition: ClassVar[Ints] = np.array([[0, 1], [1, 0]])
    _answer: ClassVar[Ints] = np.array([0, 1])
    _num_tokens: ClassVar[int] = 2

    def vocabulary(self) -> dict[str, Any]:
        return {"bits": [0, 1], "answers": [0, 1], "pad": self.pad_token_id}


@dataclass(frozen=True, kw_only=True)
class EvenPairs(Automaton):
    """Even pairs: 1 where the last symbol equals the first, that is, where 01 and 10 occur evenly often, else 0."""

    name: ClassVar[str] = "even_pairs"

    vocab_size: int = 3
    """Tokens 0 and 1 are bits, the last one is the pad."""
    sequence_length: int = 40
    """Most bits of a row."""
    min_symbols: int = 3
    """Fewest symbols of a row."""
    every_position: bool = False
    """Whether every prefix is scored, or only the whole row."""

    # States: nothing read; then 1 + 2 (first bit) + (last bit).
    _transition: ClassVar[Ints] = np.array([[1, 4], [1, 2], [1, 2], [3, 4], [3, 4]])
    _answer: ClassVar[Ints] = np.array([1, 1, 0, 0, 1])
    _num_tokens: ClassVar[int] = 2

    def vocabulary(self) -> dict[str, Any]:
        return {"bits": [0, 1], "answers": [0, 1], "pad": self.pad_token_id}


@dataclass(frozen=True, kw_only=True)
class CycleNavigation(Automaton):
    """Cycle navigation: the place reached on a cycle of five from place 0 by steps of 0, +1 and -1."""

    name: ClassVar[str] = "cycle_navigation"

    vocab_size: int = 9
    """Tokens 0..4 are places (answers), 5, 6 and 7 the steps 0, +1 and -1, the last one is the pad."""
    sequence_length: int = 40
    """Most steps of a row."""
    min_symbols: int = 3
    """Fewest symbols of a row."""
    every_position: bool = False
    """Whether every prefix is scored, or only the whole row."""

    _transition: ClassVar[Ints] = (np.arange(5)[:, None] + np.array([0, 1, -1])) % 5
    _answer: ClassVar[Ints] = np.arange(5)
    _num_tokens: ClassVar[int] = 8

    def vocabulary(self) -> dict[str, Any]:
        return {"answers": [0, 4], "stay": 5, "forward": 6, "back": 7, "pad": self.pad_token_id}

    def _tokens(self, symbols: Ints) -> Ints:
        return symbols[:, :, None] + 5


def _arithmetic() -> tuple[Ints, Ints]:
    """The automaton of sums and products modulo 5: state 0, then 1 + 5 acc + term, for the value acc + term.

    Symbol 5 i + d is the operator i of + - * with the digit d; the first one of a row is the digit alone.
    """
    operator, digit = np.divmod(np.arange(15), 5)
    acc, term = (part[:, None] for part in np.divmod(np.arange(25), 5))
    product = operator == 2
    acc_after = np.where(product, acc, (acc + term) % 5)
    term_after = np.where(product, term * digit, np.where(operator == 1, -digit, digit)) % 5
    transition = np.vstack([1 + digit, 1 + 5 * acc_after + term_after])
    return transition, np.append(0, ((acc + term) % 5).ravel())


@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Automaton):
    """Modular arithmetic: the value modulo 5 of digits joined by +, - and *, products first, without brackets.

        = 3 + 4 * 2 - 1      answers 3, 2, 1, 0 at the digits

    The trivial rule knows the last operator and digit.
    """

    name: ClassVar[str] = "modular_arithmetic"

    vocab_size: int = 10
    """Tokens 0..4 are digits and answers, 5, 6 and 7 are +, - and *, 8 begins a row, the last one is the pad."""
    sequence_length: int = 40
    """Most tokens of a row, even: two for each digit."""
    min_symbols: int = 2
    """Fewest digits of a row."""
    every_position: bool = False
    """Whether every prefix that ends in a digit is scored, or only the whole row."""

    _transition: ClassVar[Ints] = _arithmetic()[0]
    _answer: ClassVar[Ints] = _arithmetic()[1]
    _num_tokens: ClassVar[int] = 9
    _width: ClassVar[int] = 2

    def _require_symbols(self) -> None:
        self._require(self.sequence_length % 2 == 0, "sequence_length", "give 1 to 2**31 - 1, even: two tokens a digit")

    def vocabulary(self) -> dict[str, Any]:
        return {"digits": [0, 4], "answers": [0, 4], "+": 5, "-": 6, "*": 7, "begin": 8, "pad": self.pad_token_id}

    def _tokens(self, symbols: Ints) -> Ints:
        tokens = np.stack([5 + symbols // 5, symbols % 5], axis=2)
        tokens[:, 0, 0] = 8
        return tokens


@dataclass(frozen=True, kw_only=True)
class WordProblem(Automaton):
    """The word problem of a group: after each element, the product of all elements read.

        answer_t = a_t a_{t-1} ... a_0     (left action: table[a_t, answer_{t-1}])

    For permutations, (p q)(x) = p(q(x)), so the answer applies the elements to a point in the order in which they are
    read.
    """

    name: ClassVar[str] = "word_problem"

    vocab_size: int = 121
    """Token i is element i of the group, then comes a token of rest, the last one is the pad."""
    sequence_length: int = 32
    """Most tokens of a row; a multiple of tokens_per_element."""
    group: str = "S5"
    """One of S3, S4, S5, A5, A4xZ5, Z60."""
    steps: str = "all"
    """Elements that are drawn: "all"; "swaps", the transpositions and the identity; "three", those that move at most
    three points. The last two need a group of permutations."""
    min_symbols: int = 32
    """Fewest elements of a row."""
    every_position: bool = True
    """Whether every prefix is scored, or only the whole row."""
    tokens_per_element: int = 1
    """Each element is followed by this number less one of rests; the answer is scored at the last token."""

    def _require_symbols(self) -> None:
        require_known(f"{self.name}.group", self.group, GROUPS)
        require_known(f"{self.name}.steps", self.steps, STEPS)
        known = self.steps == "all" or self.group in PERMUTATION_GROUPS
        self._require(known, "steps", f"{self.group} has no permutations here: give 'all', or a group of permutations")
        remedy = f"only the identity of {self.group} is among them: give 'all' or 'three'"
        self._require(len(self._elements) > 1, "steps", remedy)
        width = self.tokens_per_element
        whole = 1 <= width <= self.sequence_length and self.sequence_length % width == 0
        self._require(whole, "tokens_per_element", f"give a divisor of sequence_length={self.sequence_length}")

    @property
    def _transition(self) -> Ints:
        # transition[state, symbol] = table[element, state]
        return group_table(self.group)[self._elements].T

    @property
    def _answer(self) -> Ints:
        return np.arange(len(group_table(self.group)))

    @property
    def _elements(self) -> Ints:
        """The elements that are drawn (x,)."""
        if self.steps == "all":
            return self._answer
        return np.flatnonzero(points_moved(self.group) <= (2 if self.steps == "swaps" else 3))

    @property
    def _rest(self) -> int:
        return len(group_table(self.group))

    @property
    def _num_tokens(self) -> int:
        return self._rest + (self.tokens_per_element > 1)

    @property
    def _width(self) -> int:
        return self.tokens_per_element

    def _tokens(self, symbols: Ints) -> Ints:
        return self._elements[symbols][:, :, None]

    def vocabulary(self) -> dict[str, Any]:
        rest = self._rest if self.tokens_per_element > 1 else None
        return {"elements": [0, self._rest - 1], "rest": rest, "pad": self.pad_token_id}
