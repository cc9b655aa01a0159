"""How well a model does on a split."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """How well a model answers the scored positions of a split."""

    loss: float
    """Cross-entropy per answer, in nats; of answers that are real numbers the squared error."""

    accuracy: float | None = None
    """Fraction of answers that are right; None where they are real numbers."""

    row_accuracy: float | None = None
    """Fraction of examples whose answers are all right; None where they are real numbers."""

    def is_better_than(self, other: "Score | None", by: Literal["accuracy", "loss"]) -> bool:
        """Whether the criterion is better, or of equal accuracies the loss; a loss that is not a number never is."""
        if other is None or math.isnan(self.loss):
            return not math.isnan(self.loss)
        if by == "loss":
            return self.loss < other.loss
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)
