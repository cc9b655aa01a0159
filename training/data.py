"""The examples of a run. A batch is a pure function of (seed, step): nothing has to be remembered to resume."""

from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import torch

from dsf_models.hub.usage import UsageError
from dsf_models.tasks import SyntheticTask, get_task, load_task
from training.config import TaskConfig

Batch = dict[str, torch.Tensor]
"""`input_ids` and `labels`, both (examples, length); labels[:, t] is the target of the output at position t."""


@dataclass(frozen=True)
class TaskData:
    """A task and its three disjoint splits."""

    task: SyntheticTask
    """What the examples are made by."""

    train: datasets.Dataset
    """What the model learns from."""

    validation: datasets.Dataset
    """What selects the weights and stops the run."""

    test: datasets.Dataset
    """What is looked at once, with the selected weights."""

    def training_batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """The examples of optimiser step `step` (from 0), for all processes together.

        Args:
            step: number of optimiser steps already made.
            batch_size: examples in the batch.
            seed: seed of the order.

        Returns:
            Tensors of shape (batch_size, length).
        """
        return rows(self.train, batch_indices(step, batch_size, len(self.train), seed))


def load_data(config: TaskConfig) -> TaskData:
    """Generate the three splits of a task.

    Raises:
        UsageError: for an unknown task, and for sizes that it refuses.
    """
    try:
        task = get_task(config.name, **config.sizes)
        splits = {
            split: load_task(config.name, split=split, seed=config.seed, num_examples=count, **config.sizes)
            for split, count in (
                ("train", config.train_examples),
                ("validation", config.validation_examples),
                ("test", config.test_examples),
            )
        }
    except (ValueError, TypeError) as error:
        raise UsageError(f"The section `task` is refused: {error}") from error
    return TaskData(task, **{split: dataset.with_format("torch") for split, dataset in splits.items()})


def batch_indices(step: int, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
    """Which examples make up batch `step`.

    The training order is the concatenation of one permutation per epoch, perm_e(0), …, perm_e(N - 1); batch s takes the
    positions s·B, …, (s + 1)·B - 1 of it, so that no example is left out at the end of an epoch.

    Returns:
        Integers of shape (batch_size,), each below num_examples.
    """
    epochs, offsets = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
    parts = [_permutation(num_examples, seed, int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def rows(dataset: datasets.Dataset, indices: np.ndarray) -> Batch:
    """The examples at `indices`, as stacked tensors of shape (len(indices), length)."""
    return dict(dataset[indices])


def parts_of_process(batch: Batch, process: int, num_processes: int, num_parts: int) -> list[Batch]:
    """Split a batch into equal parts for all processes and accumulation steps, and take those of one process.

    Returns:
        `num_parts` batches of batch_size / (num_processes · num_parts) examples each.
    """
    total = num_processes * num_parts
    chunks = {name: tensor.chunk(total) for name, tensor in batch.items()}
    return [{name: parts[i] for name, parts in chunks.items()} for i in range(process, total, num_processes)]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
