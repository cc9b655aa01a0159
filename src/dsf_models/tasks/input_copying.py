"""Input copying: repeat a string of random letters, or the letters that follow an n-gram of it.

    form          example                 labels
    "copy"        $ w1 ... wm | w1 ... wm     w1 ... wm . : the output at "|" is w1, and so on
    "duplicate"   the same, and one n-gram of w stands in it twice
    "prefix"      $ gram | w | answer         the k letters that follow the gram in w, and "."
    "suffix"      $ w | gram answer           the same

The last token of the answer is a label only. With delimiters=False neither "$" nor "." stands: w1 ... wm | w1 ... wm-1,
the shape of token selection in N. Nishikawa, T. Suzuki, arXiv:2405.19036.

Source: S. Jelassi et al., "Repeat after me: transformers are better than state space models at copying",
arXiv:2402.01032. Here one example makes a row, padded at its end.

Letters: b rows, t positions, m letters of w, n letters of the n-gram, k letters of a looked-up answer, f columns.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Bools, Ints, RowRandom
from dsf_models.tasks.laws import expected_share

FORMS = ("copy", "duplicate", "prefix", "suffix")
_PAD, _START, _BAR, _STOP, _FIRST_LETTER = range(5)


@dataclass(frozen=True, kw_only=True)
class InputCopying(SyntheticTask):
    """Input copying: repeat the string before the bar, or what follows an n-gram of it.

    |w| is uniform in min_length..max_length, its letters are independent and uniform. The n-gram of a lookup stands
    at a uniform place of w; strings in which it stands twice are drawn again, so that the answer is never ambiguous.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "input_copying"

    vocab_size: int = 30
    """V. Pad 0, "$" 1, "|" 2, "." 3, letters 4..V-1."""
    sequence_length: int = 102
    """L, at least what the longest example takes."""
    min_length: int = 10
    """Least |w|. Equal to max_length, it makes a task that a fixed delay solves."""
    max_length: int = 50
    """Largest |w|."""
    form: str = "copy"
    """"copy", "duplicate", "prefix" or "suffix"."""
    ngram: int = 2
    """n, of every form but "copy"."""
    answer_length: int = 1
    """k, of the forms "prefix" and "suffix"."""
    delimiters: bool = True
    """"$" begins the example and "." ends its answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(f"{self.name}.form", self.form, FORMS)
        self._require(self.vocab_size >= 6, "vocab_size", "give at least 6: pad, $, |, . and two letters")
        self._require(self.ngram >= 1, "ngram", "give at least 1")
        self._require(self.answer_length >= 1, "answer_length", "give at least 1")
        least = {"copy": 1, "duplicate": 2 * self.ngram}.get(self.form, self.ngram + self.answer_length)
        self._require(self.min_length >= least, "min_length", f"form={self.form!r} needs at least {least} letters")
        self._require(self.max_length >= self.min_length, "max_length", f"give at least min_length={self.min_length}")
        self._require(
            self._longest <= self.sequence_length,
            "sequence_length",
            f"the longest example takes {self._longest} tokens: give at least as many, or a smaller max_length",
        )
        once = (1 - self._num_letters**-self.ngram) ** (self.max_length - self.ngram)
        self._require(
            not self._looks_up or once >= 0.01,
            "ngram",
            f"about {once:.1g} of the longest strings show an n-gram once: give longer n-grams or more letters",
        )

    @property
    def pad_token_id(self) -> int | None:
        """The pad 0, or None where every example fills its row."""
        return None if self.min_length == self.max_length and self._longest == self.sequence_length else _PAD

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the letters and, with delimiters, "."."""
        return 1 / (self._num_letters + self.delimiters)

    @property
    def best_trivial(self) -> float:
        """Accuracy of the best rule that knows which letters w holds but not their order, to 6 decimals.

        It names the letter that is most frequent among those of w (but the n-gram) that it has not yet seen answered,
        with r of them left it is right with E[largest count of r]/r, and it knows when "." comes. For "duplicate" this
        is the value without the duplicate. For n-grams of two letters or more it neglects the strings drawn again.
        """
        bins = self._num_letters - int(self._looks_up and self.ngram == 1)
        hits = answers = 0.0
        for m in range(self.min_length, self.max_length + 1):
            unseen = m - self.ngram if self._looks_up else m
            asked = self.answer_length if self._looks_up else m
            hits += self.delimiters + sum(expected_share(unseen - i, bins) for i in range(asked))
            answers += self.delimiters + asked
        return round(hits / answers, 6)

    def vocabulary(self) -> dict[str, Any]:
        letters = [_FIRST_LETTER, self.vocab_size - 1]
        return {"pad": _PAD, "start": _START, "bar": _BAR, "stop": _STOP, "letters": letters}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The length |w| of the string of each answer.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            "length": (n,), in the row-major order of `labels[labels != -100]`.
        """
        letters = (input_ids >= _FIRST_LETTER).sum(axis=1) + int(not self.delimiters)
        length = letters - self.ngram - self.answer_length if self._looks_up else letters // 2
        return {"length": np.repeat(length, (labels != IGNORE_INDEX).sum(axis=1))}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        length = self.min_length + rng.integers("length", 1, self.max_length - self.min_length + 1)
        w, here = self._letters(rng, "letters"), np.arange(self.max_length) < length
        if self._looks_up:
            w, start = self._unique(rng, w, length)
            gram = np.take_along_axis(w, start + np.arange(self.ngram), axis=1)
            answer = np.take_along_axis(w, start + self.ngram + np.arange(self.answer_length), axis=1)
            answered = np.ones(answer.shape, bool)
        else:
            w = self._duplicated(rng, w, length) if self.form == "duplicate" else w
            gram, answer, answered = w[:, :0], w, here
        return self._packed(w, here, gram, answer, answered)

    def _packed(self, w: Ints, here: Bools, gram: Ints, answer: Ints, answered: Bools) -> tuple[Ints, Ints]:
        """Join the parts of each row without their gaps; the answers become the labels one position before them."""
        rows = len(w)
        bar, ends = np.full((rows, 1), _BAR), int(self.delimiters)
        prefix = [gram, bar] if self.form == "prefix" else [bar[:, :0]]
        suffix = [gram] if self.form == "suffix" else [bar[:, :0]]
        before = [np.full((rows, ends), _START), *prefix]
        parts = [*before, w, bar, *suffix, answer, np.full((rows, ends), _STOP)]
        columns = np.hstack(parts)
        keep = np.ones(columns.shape, bool)
        first, last = sum(part.shape[1] for part in before), columns.shape[1] - ends
        keep[:, first : first + w.shape[1]] = here
        keep[:, last - answer.shape[1] : last] = answered
        row, column = np.nonzero(keep)
        place = (keep.cumsum(axis=1) - 1)[row, column]
        input_ids = np.full((rows, self.sequence_length + 1), _PAD)
        labels = np.full(input_ids.shape, IGNORE_INDEX)
        input_ids[row, place] = columns[row, column]
        scored = column >= last - answer.shape[1]
        labels[row[scored], place[scored] - 1] = columns[row[scored], column[scored]]
        np.put_along_axis(input_ids, keep.sum(axis=1)[:, None] - 1, _PAD, axis=1)
        return input_ids[:, : self.sequence_length], labels[:, : self.sequence_length]

    def _letters(self, rng: RowRandom, stream: str) -> Ints:
        return _FIRST_LETTER + rng.integers(stream, self.max_length, self._num_letters)

    def _unique(self, rng: RowRandom, w: Ints, length: Ints) -> tuple[Ints, Ints]:
        """Strings in which the n-gram that begins at `start` (b, 1) stands once, each the first such of its stream."""
        start = rng.integers("start", 1, length - self.ngram - self.answer_length + 1)
        again, attempt = np.flatnonzero(self._repeats(w, start, length)), 0
        while again.size:
            attempt += 1
            w[again] = self._letters(rng.take(again), f"letters {attempt}")
            again = again[self._repeats(w[again], start[again], length[again])]
        return w, start

    def _repeats(self, w: Ints, start: Ints, length: Ints) -> Bools:
        """Whether the n-gram at `start` stands at another place of the string too, (b,)."""
        begins = np.arange(self.max_length - self.ngram + 1)
        equal = (begins <= length - self.ngram) & (begins != start)
        for i in range(self.ngram):
            equal &= w[:, i : i + len(begins)] == np.take_along_axis(w, start + i, axis=1)
        return equal.any(axis=1)

    def _duplicated(self, rng: RowRandom, w: Ints, length: Ints) -> Ints:
        """Strings in which a uniform pair of n-grams that do not overlap is one and the same."""
        places = length - 2 * self.ngram + 2
        one, other = rng.integers("one", 1, places), rng.integers("other", 1, places - 1)
        other += other >= one
        gram = np.arange(self.ngram)
        source, copy = np.minimum(one, other) + gram, np.maximum(one, other) + self.ngram - 1 + gram
        np.put_along_axis(w, copy, np.take_along_axis(w, source, axis=1), axis=1)
        return w

    @property
    def _looks_up(self) -> bool:
        return self.form in ("prefix", "suffix")

    @property
    def _longest(self) -> int:
        """Tokens of the longest example, whose last answer is a label only."""
        rest = self.ngram + self.answer_length + int(self.form == "prefix") if self._looks_up else self.max_length
        return self.max_length + rest + 2 * self.delimiters

    @property
    def _num_letters(self) -> int:
        return self.vocab_size - _FIRST_LETTER
