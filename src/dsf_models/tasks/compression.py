"""Compression: read random tokens; the output at the end has to hold all of them.

    x0 x1 x2 ... compress
    labels: x0 x1 x2 ... -100, all of them read from the output at `compress`

Source: M. Poli et al., "Mechanistic design and scaling of hybrid architectures" (MAD), arXiv:2403.17844, where an MLP
decodes the last output, joined with a code of each position, into the token at that position.

Letters: b rows, t positions, n scored positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dsf_models.tasks.base import IGNORE_INDEX, Int32s, SyntheticTask
from dsf_models.tasks.counter_rng import Ints, RowRandom
from dsf_models.tasks.laws import expected_share


@dataclass(frozen=True, kw_only=True)
class Compression(SyntheticTask):
    """Compression: decode every token of the row from the output at its end.

    The tokens are independent and uniform over 0..V-2, and the last one is V-1, `compress`. labels[t] is token t.

    Raises:
        ValueError: sizes that leave no room, naming the field, its value and the remedy.
    """

    name: ClassVar[str] = "compression"
    readout: ClassVar[Literal["each", "last"]] = "last"

    vocab_size: int = 16
    """V."""
    sequence_length: int = 32
    """L, the compress token included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("vocab_size", "sequence_length"):
            self._require(getattr(self, field) >= 3, field, "give at least 3: two tokens and the compress token")

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the tokens, 1 / (V - 1)."""
        return 1 / (self.vocab_size - 1)

    @property
    def best_trivial(self) -> float:
        """Accuracy of naming the row's most frequent token everywhere, to 6 decimals: E[largest count] / (L - 1).

        It is the best rule that knows which tokens the row holds, but nothing of their order.
        """
        return round(expected_share(self.sequence_length - 1, self.vocab_size - 1), 6)

    def vocabulary(self) -> dict[str, Any]:
        return {"tokens": [0, self.vocab_size - 2], "compress": self.vocab_size - 1}

    def groups(self, input_ids: Int32s, labels: Int32s) -> dict[str, Ints]:
        """How many positions before the end each token stands ("gap"), from 1 to L - 1.

        Args:
            input_ids: (b, t).
            labels: (b, t).

        Returns:
            "gap": (n,).
        """
        return {"gap": self.sequence_length - 1 - np.nonzero(labels != IGNORE_INDEX)[1]}

    def _rows(self, rng: RowRandom) -> tuple[Ints, Ints]:
        input_ids = rng.integers("tokens", self.sequence_length, self.vocab_size - 1)
        labels = input_ids.copy()
        input_ids[:, -1], labels[:, -1] = self.vocab_size - 1, IGNORE_INDEX
        return input_ids, labels
