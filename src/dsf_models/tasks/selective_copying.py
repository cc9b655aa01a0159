"""Selective copying: tokens at random places among blanks; afterwards, emit them in order.

    "mad":    a _ _ b _ c _ | > _ _ _      labels: a b c at the last n positions
    "mamba":  a _ _ b _ c _ | > > >        labels: the same

Source: "mamba": A. Gu, T. Dao, arXiv:2312.00752; "mad": M. Poli et al., "Mechanistic design and scaling of hybrid
architectures", arXiv:2403.17844. Here the places of both are a uniform choice of the body's positions, from the task's
own seed; MAD's generator puts no blank behind the last token.

Letters: b rows, t positions, n tokens to copy.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dsf_models.errors import require_known
from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_share
from dsf_models.tasks.sampling import distinct

FORMS = ("mad", "mamba")


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(SyntheticTask):
    """Selective copying: leave out the blanks and emit the tokens in order.

    The body holds n tokens, independent and uniform over 1..V-2, at distinct positions, and blanks elsewhere. The last
    n positions are scored; the label of the i-th is the i-th token.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "selective_copying"

    vocab_size: int = 16
    """V. Token 0 is the blank, V-1 the copy token, 1..V-2 are the content."""
    sequence_length: int = 256
    """L, tail included; 4112 has the body of 4096 of Mamba's paper."""
    num_tokens: int = 16
    """n, how many tokens are copied."""
    form: str = "mad"
    """The tail: "mad", one copy token and n blanks, or "mamba", n copy tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(f"{self.name}.form", self.form, FORMS)
        self._require(self.vocab_size >= 4, "vocab_size", "give at least 4: blank, copy and two content tokens")
        self._require(self.num_tokens >= 2, "num_tokens", "give at least 2: one token has no order")
        least = 2 * self.num_tokens + int(self.form == "mad")
        self._require(
            least <= self.sequence_length,
            "num_tokens",
            f"body and tail need {least} tokens, sequence_length={self.sequence_length}: give fewer, or a longer one",
        )

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the content tokens, 1 / (V - 2)."""
        return 1 / (self.vocab_size - 2)

    @property
    def best_trivial(self) -> float:
        """Accuracy of naming the row's most frequent content token everywhere, to 6 decimals: E[largest count] / n.

        It is the best rule that knows which tokens the row holds, but nothing of their order.
        """
        return round(expected_share(self.num_tokens, self.vocab_size - 2), 6)

    def vocabulary(self) -> dict[str, Any]:
        return {"blank": 0, "content": [1, self.vocab_size - 2], "copy": self.vocab_size - 1}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """Of each answer, its rank among the n, and its distance to the token that it copies.

        Args:
            input_ids: whole rows (b, t).
            labels: (b, t).

        Returns:
            "rank" and "gap": (b n,), in the row-major order of `labels[labels != -100]`.
        """
        place = np.nonzero(input_ids[:, : self._body])[1].reshape(-1, self.num_tokens)
        rank = np.broadcast_to(np.arange(self.num_tokens), place.shape)
        return {"rank": rank.ravel(), "gap": (self.sequence_length - self.num_tokens + rank - place).ravel()}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        content = 1 + rng.integers("content", self.num_tokens, self.vocab_size - 2)
        place = np.sort(distinct(rng, "places", self.num_tokens, self._body), axis=1)
        input_ids = np.zeros((len(content), self.sequence_length), np.int64)
        np.put_along_axis(input_ids, place, content, axis=1)
        input_ids[:, self._body : self._body + 1 if self.form == "mad" else None] = self.vocab_size - 1
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, -self.num_tokens :] = content
        return input_ids, labels

    @property
    def _body(self) -> int:
        """Positions of the body, before the first copy token."""
        return self.sequence_length - self.num_tokens - int(self.form == "mad")
