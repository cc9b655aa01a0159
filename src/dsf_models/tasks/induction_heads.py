"""Induction heads: a special token stands once in the body; seeing it again at the end, name what followed it.

    x x x # y x x x x x #
    labels: -100 everywhere, y at the last position

Source: A. Gu, T. Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752, which
trains at length 256 and tests at the powers of two from 64 to 2^20.

Letters: b rows, t positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_share


@dataclass(frozen=True, kw_only=True)
class InductionHeads(SyntheticTask):
    """Induction heads: name the token that followed the special one.

    The special token stands at a uniform one of the positions 0..L-3 and at L-1. The other tokens are independent and
    uniform over 1..V-1, so that the answer is never ambiguous. The only label is at L-1.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "induction_heads"

    vocab_size: int = 16
    """V. Token 0 is the special one, 1..V-1 are the others."""
    sequence_length: int = 256
    """L."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.vocab_size >= 3, "vocab_size", "give at least 3: the special token and two others")
        self._require(self.sequence_length >= 4, "sequence_length", "give at least 4: two to choose from")

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among all tokens but the special one, 1 / (V - 1)."""
        return 1 / (self.vocab_size - 1)

    @property
    def best_trivial(self) -> float:
        """Accuracy of the most frequent token of the body, to 6 decimals.

        The answer is a uniform one of the L - 2 ordinary tokens: E[largest count] / (L - 2).
        """
        return round(expected_share(self.sequence_length - 2, self.vocab_size - 1), 6)

    def vocabulary(self) -> dict[str, Any]:
        return {"special": 0, "tokens": [1, self.vocab_size - 1]}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """The gap of each row: L - 1 minus the position of the special token in the body.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            "gap": (b,), from 2 to L - 1.
        """
        return {"gap": self.sequence_length - 1 - (input_ids == 0).argmax(axis=1)}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        input_ids = 1 + rng.integers("tokens", self.sequence_length, self.vocab_size - 1)
        special = rng.integers("special", 1, self.sequence_length - 2)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, -1:] = np.take_along_axis(input_ids, special + 1, axis=1)
        np.put_along_axis(input_ids, special, 0, axis=1)
        input_ids[:, -1] = 0
        return input_ids, labels
