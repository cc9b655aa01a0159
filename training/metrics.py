"""Scores on a split, and the file that keeps every number of a run."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.functional import cross_entropy

from dsf_models.hub.files import write_text
from dsf_models.tasks import IGNORE_INDEX
from training.data import Batch, rows


@dataclass(frozen=True)
class Score:
    """How well a model answers the scored positions of a split."""

    loss: float
    """Cross-entropy per answer, in nats."""

    accuracy: float
    """Fraction of answers that are right."""

    row_accuracy: float
    """Fraction of examples whose answers are all right."""

    def is_better_than(self, other: "Score | None") -> bool:
        """Higher accuracy is better; of equal accuracies the one with the lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)


@torch.no_grad()
def score_split(
    model: nn.Module, dataset: datasets.Dataset, accelerator: Accelerator, examples_per_batch: int
) -> Score:
    """Score a model on a split, shared out over the processes, with the same result on every one of them.

    Args:
        model: not wrapped for distributed training, since the processes may need different numbers of batches.
        dataset: the split.
        accelerator: says which examples are this process's.
        examples_per_batch: examples per forward pass.

    Returns:
        The score over all examples of the split.
    """
    was_training = model.training
    model.eval()
    own = np.arange(accelerator.process_index, len(dataset), accelerator.num_processes)
    sums = np.zeros(5)
    for start in range(0, len(own), examples_per_batch):
        batch = rows(dataset, own[start : start + examples_per_batch])
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.autocast():
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        sums += _sums(logits, batch)
    model.train(was_training)
    loss, right, answers, right_rows, num_rows = np.sum(gather_object([sums]), axis=0).tolist()
    return Score(loss=loss / answers, accuracy=right / answers, row_accuracy=right_rows / num_rows)


def _sums(logits: torch.Tensor, batch: Batch) -> np.ndarray:
    """Sums over a batch: loss, right answers, answers, examples with all answers right, examples."""
    labels = batch["labels"]
    scored = labels != IGNORE_INDEX
    loss = cross_entropy(logits[scored].float(), labels[scored], reduction="sum")
    right = logits.argmax(-1) == labels
    right_rows = (right | ~scored).all(dim=-1)
    return np.array(
        [loss.item(), (right & scored).sum().item(), scored.sum().item(), right_rows.sum().item(), len(labels)]
    )


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, each with its `step` and `split`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Add a line; a number that JSON cannot express (NaN, infinity) is written as null."""
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what a killed run recorded after its last checkpoint: it will be computed, and recorded, again.

        Args:
            step: the checkpoint's step.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        kept = [record for record in records if record["step"] <= step and record["split"] != "test"]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
