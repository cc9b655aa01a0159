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
from torch import nn

from dsf_models.hub.files import write_text
from training.data import RunData, evaluation_batches, to_device
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
    sums = []
    share = accelerator.process_index, accelerator.num_processes
    for batch, counted in evaluation_batches(getattr(data, split), rows_per_batch, *share):
        targets = data.readout.targets(batch).to(accelerator.device)
        inputs = to_device({name: batch[name] for name in batch if name != "labels"}, accelerator.device)
        with accelerator.autocast():
            sums.append(data.readout.sums(model, inputs, targets, counted))
    model.train(was_training)
    return data.readout.score(np.sum(gather_object([np.sum(sums, axis=0)]), axis=0))


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
