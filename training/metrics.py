"""Scores on a split, and the file that keeps every number of a run."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dsf_models.hub.files import write_text
from dsf_models.tasks import IGNORE_INDEX
from training.data import RunData, evaluation_batches, to_device
from training.model import answers_logits
from training.score import Score


@torch.no_grad()
def score_split(model: nn.Module, data: RunData, split: str, accelerator: Accelerator, rows_per_batch: int) -> Score:
    """Score a model on a split, shared out over the processes, with the same result on every one of them.

    Args:
        model: made by `build_model`, not wrapped.
        data: has the split.
        split: "validation" or "test".
        accelerator: says which examples are this process's.
        rows_per_batch: examples per forward pass.

    Returns:
        The score over all examples of the split.
    """
    was_training = model.training
    model.eval()
    sums = np.zeros(5)
    share = accelerator.process_index, accelerator.num_processes
    for batch, counted in evaluation_batches(getattr(data, split), rows_per_batch, *share):
        targets = data.targets(batch).to(accelerator.device)
        inputs = to_device({name: batch[name] for name in batch if name != "labels"}, accelerator.device)
        scored = targets != IGNORE_INDEX
        with accelerator.autocast():
            logits = answers_logits(model, model.config, inputs, scored)
        sums += _sums(logits, targets, scored, counted)
    model.train(was_training)
    loss, right, answers, right_rows, num_rows = np.sum(gather_object([sums]), axis=0).tolist()
    return Score(loss=loss / answers, accuracy=right / answers, row_accuracy=right_rows / num_rows)


def _sums(logits: Tensor, targets: Tensor, scored: Tensor, counted: int) -> np.ndarray:
    """Sums over a batch: loss, right answers, answers, examples with all answers right, examples.

    Args:
        logits: (n, v), of the scored positions.
        targets: (b, t).
        scored: (b, t), of which n are true.
        counted: rows that are examples; the ones behind them fill up the batch.
    """
    loss = cross_entropy(logits.float(), targets[scored], reduction="sum")
    wrong = torch.zeros_like(scored)
    wrong[scored] = logits.argmax(-1) != targets[scored]
    answers = scored.sum().item()
    right_rows = (~wrong[:counted].any(dim=-1)).sum().item()
    return np.array([loss.item(), answers - wrong.sum().item(), answers, right_rows, counted])


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, each with its `step` and `split`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Add a line; a number that JSON cannot express (NaN, infinity) is written as null.

        Raises:
            OSError: the line cannot be written; then no part of it is left.
        """
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        line = json.dumps({"step": step, "split": split, **finite}) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, size)
            raise

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
