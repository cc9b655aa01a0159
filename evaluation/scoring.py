"""Accuracy with its uncertainty, over all answers and by facet.

Letters: b examples, t positions, n scored answers of all examples together.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dsf_models.tasks import IGNORE_INDEX

INTERVAL = (
    "Wilson score interval at 95 %, with whole examples as the independent units: the answers of one example may be "
    "right or wrong together. It is conservative where they are not."
)
"""What the intervals in the results are."""

_Z = 1.959964
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """A measured fraction, with what it was measured on.

    Attributes:
        value: the fraction.
        low, high: 95 % interval.
        answers: number of answers.
        examples: number of examples that they come from.
    """

    value: float
    low: float
    high: float
    answers: int
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "accuracy": self.value,
            "interval": [self.low, self.high],
            "answers": self.answers,
            "examples": self.examples,
        }


@torch.no_grad()
def right_answers(
    model: PreTrainedModel,
    input_ids: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    attention_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Which scored positions a model answers right: where the highest logit at position t is that of labels[t].

    The logits are compared directly, never through the model's loss, whose labels may be shifted.

    Args:
        model: any causal language model, or classifier of tokens.
        input_ids: (b, t).
        labels: (b, t).
        batch_size: examples per forward pass.
        attention_mask: (b, t), 0 at pads; None where there are none, or where none is ever read.

    Returns:
        Booleans of shape (n,), in the order of `labels[labels != -100]`.
    """
    right = []
    for start in range(0, len(input_ids), batch_size):
        batch = slice(start, start + batch_size)
        ids = torch.as_tensor(input_ids[batch], dtype=torch.long, device=model.device)
        mask = {} if attention_mask is None else {"attention_mask": torch.as_tensor(attention_mask[batch]).to(ids)}
        predicted = model(input_ids=ids, **mask, use_cache=False).logits.argmax(dim=-1).cpu().numpy()
        scored = labels[batch] != IGNORE_INDEX
        right.append(predicted[scored] == labels[batch][scored])
    return np.concatenate(right)


def accuracy(right: np.ndarray, example: np.ndarray) -> Proportion:
    """Fraction of right answers, with an interval that allows for answers of one example to depend on each other.

    With w_r answers in example r, the fraction has at most the variance p (1 - p) / n of a proportion over

        n = (sum_r w_r)^2 / sum_r w_r^2

    independent trials, which the answers reach when those of one example are all right or all wrong together.

    Args:
        right: booleans (n,).
        example: index of each answer's example (n,).

    Returns:
        The fraction and its Wilson interval with that n.
    """
    counts = np.bincount(example)
    counts = counts[counts > 0]
    value = float(right.mean())
    low, high = wilson_interval(value, float(counts.sum() ** 2 / (counts**2).sum()))
    return Proportion(value, low, high, int(counts.sum()), len(counts))


def row_accuracy(right: np.ndarray, example: np.ndarray) -> Proportion:
    """Fraction of examples whose answers are all right."""
    examples, position = np.unique(example, return_inverse=True)
    wrong = np.bincount(position, weights=~right)
    return accuracy(wrong == 0, examples)


def accuracy_by(values: np.ndarray, right: np.ndarray, example: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy in bins of a facet that double in width: 0, 1, 2–3, 4–7, 8–15 and so on.

    Args:
        values: non-negative integers (n,).
        right: booleans (n,).
        example: index of each answer's example (n,).

    Returns:
        One entry per bin that holds answers: `from` and `to` (inclusive), and the fields of `Proportion`.
    """
    # frexp(v) = (m, e) with v = m·2^e and 1/2 <= m < 1: e numbers the bins exactly, 0 for 0, 1 for 1, 2 for 2–3.
    exponents = np.frexp(values.astype(np.float64))[1]
    bins = []
    for exponent in np.unique(exponents):
        inside = exponents == exponent
        first, last = int(2.0 ** (exponent - 1)), int(2**exponent) - 1
        bins.append({"from": first, "to": last, **accuracy(right[inside], example[inside]).to_dict()})
    return bins


def wilson_interval(value: float, trials: float) -> tuple[float, float]:
    """Wilson score interval of a proportion at 95 %.

        (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the normal interval it stays inside [0, 1] and keeps a width at p = 0 and p = 1.

    Args:
        value: p.
        trials: n, the number of independent trials; need not be whole.

    Returns:
        Its two ends.
    """
    square = _Z**2 / trials
    centre = value + square / 2
    spread = _Z * math.sqrt(value * (1 - value) / trials + square / (4 * trials))
    # At p = 0 and p = 1 one end is p itself, from which rounding must not move it inwards.
    return max(0.0, min(value, (centre - spread) / (1 + square))), min(
        1.0, max(value, (centre + spread) / (1 + square))
    )
