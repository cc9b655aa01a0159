"""The examples of a run: splits whose rows are found by their index, and what each process is given of them.

Letters: b rows, t positions.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from dsf_models.backbone.loss import aligned_targets
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX, SyntheticTask, get_token_task
from training.config import TaskConfig
from training.score import Score

Batch = dict[str, torch.Tensor]
"""Arguments of the model by name: input_ids, labels and, where there are pads or documents, what tells of them."""

_HELD_TOKENS = 2**25
"""Tokens of a split that are kept in memory (128 MiB a column)."""
_AHEAD = 2
"""Batches that are made ready while the model works."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How each batch is shared out, and which share is this process's."""

    batch_size: int
    """Rows of one optimiser step over all processes and parts together."""

    parts: int
    """Parts that each process splits its share into."""

    process: int
    """Index of this process."""

    num_processes: int
    """Number of processes."""

    seed: int
    """Seed of the order of the rows."""


@dataclass(frozen=True)
class Delivery:
    """What one process needs for one optimiser step."""

    parts: list[Batch]
    """Equal parts of its share of the batch."""

    position: dict[str, Any] = field(default_factory=dict)
    """Where the data go on behind this batch, as JSON takes it; empty where the number of the step says it."""


class TrainingSource(ABC):
    """What a model learns from."""

    @abstractmethod
    def deliveries(self, step: int, share: Share, position: Mapping[str, Any]) -> Iterator[Delivery]:
        """The deliveries of optimiser steps `step`, `step + 1`, … without end.

        Args:
            step: optimiser steps already made.
            share: which part of each batch is wanted.
            position: that of the delivery of step `step` - 1; empty for step 0.
        """


class Examples(TrainingSource):
    """A split: rows of one length, found by their index; in memory where they fit, else made when asked for."""

    def __init__(self, count: int, length: int) -> None:
        """Hold all rows, if that is not too much.

        Args:
            count: number of rows.
            length: tokens of a row.
        """
        self._count = count
        self._held = self.columns(np.arange(count)) if count * length <= _HELD_TOKENS else None

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    @abstractmethod
    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices (b,), made anew: arrays of shape (b, t)."""

    def rows(self, indices: np.ndarray) -> Batch:
        """The rows of these indices (b,), as tensors of shape (b, t)."""
        if self._held is None:
            columns = self.columns(indices)
        else:
            columns = {name: column[indices] for name, column in self._held.items()}
        return {name: torch.from_numpy(column).long() for name, column in columns.items()}

    def deliveries(self, step: int, share: Share, position: Mapping[str, Any]) -> Iterator[Delivery]:
        """As every source; each delivery is a pure function of (seed, step), so that no position is needed."""
        while True:
            indices = batch_indices(step, share.batch_size, len(self), share.seed)
            chunks = np.split(indices, share.num_processes * share.parts)
            yield Delivery([self.rows(chunk) for chunk in chunks[share.process :: share.num_processes]])
            step += 1


class TaskExamples(Examples):
    """The first rows of a split of a synthetic task."""

    def __init__(self, task: SyntheticTask, split: str, seed: int, count: int) -> None:
        self._task, self._split, self._seed = task, split, seed
        super().__init__(count, task.sequence_length)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices (b,): arrays of shape (b, t)."""
        return self._task.examples(self._split, self._seed, indices.astype(np.uint64))


@dataclass(frozen=True, kw_only=True)
class RunData(ABC):
    """What a model learns from, is selected by and is tested on."""

    name: str
    """What the data are called."""

    vocab_size: int
    """Number of token ids."""

    pad_token_id: int | None
    """Token that fills up shorter rows."""

    eos_token_id: int | None
    """Token that ends a document."""

    sequence_length: int
    """Tokens of a row, t."""

    label_alignment: Literal["next", "same"]
    """Whether the output at t is scored against labels[t + 1] or labels[t]."""

    train: TrainingSource
    """What the model learns from."""

    validation: Examples
    """What selects the weights and stops the run."""

    test: Examples
    """What is looked at once, with the selected weights."""

    selected_by: Literal["accuracy", "loss"]
    """What makes one model better than another on the validation split."""

    def targets(self, batch: Batch) -> torch.Tensor:
        """What each output of a batch is scored against, (b, t); -100 where nothing is."""
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        return aligned_targets(batch["labels"], self.label_alignment, mask)

    @abstractmethod
    def report(self, score: Score) -> dict[str, float]:
        """The numbers of a score that say something about these data, by name."""

    @abstractmethod
    def summary(self, score: Score, split: str) -> str:
        """A score in a line, beside what guessing reaches on this split."""

    @abstractmethod
    def best_trivial(self, split: str) -> float | None:
        """What the best rule without a network reaches on a split, in the number of `selected_by`; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class TaskData(RunData):
    """A synthetic task and its three disjoint splits."""

    task: SyntheticTask
    """What the examples are made by."""

    def report(self, score: Score) -> dict[str, float]:
        """Loss, accuracy and accuracy of whole rows."""
        return asdict(score)

    def summary(self, score: Score, split: str) -> str:
        """The three numbers beside the task's baselines."""
        return (
            f"loss {score.loss:.4f}  accuracy {100 * score.accuracy:6.2f} %  (chance {100 * self.task.chance:.2f} %, "
            f"best trivial {100 * self.task.best_trivial:.2f} %)  whole rows {100 * score.row_accuracy:6.2f} %"
        )

    def best_trivial(self, split: str) -> float:
        """The accuracy of the task's best trivial rule, the same on every split."""
        return self.task.best_trivial


def load_task_data(config: TaskConfig) -> TaskData:
    """Make the three splits of a task.

    Raises:
        UsageError: for an unknown task, for one of real numbers or whose answers are all read from the last output, and
            for sizes that it refuses.
    """
    counts = {
        "train": config.train_examples,
        "validation": config.validation_examples,
        "test": config.test_examples,
    }
    try:
        task = get_token_task(config.name, **config.sizes)
        splits = {split: TaskExamples(task, split, config.seed, count) for split, count in counts.items()}
    except (ValueError, TypeError) as error:
        raise UsageError(f"The section `task` is refused: {error}") from error
    return TaskData(
        name=config.name,
        vocab_size=task.vocab_size,
        pad_token_id=task.pad_token_id,
        eos_token_id=None,
        sequence_length=task.sequence_length,
        label_alignment="same",
        **splits,
        selected_by="accuracy",
        task=task,
    )


# ---- which rows are whose -------------------------------------------------------------------------------------------


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


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


def evaluation_batches(
    examples: Examples, rows_per_batch: int, process: int, num_processes: int
) -> Iterator[tuple[Batch, int]]:
    """One process's share of a split, in as many batches on every process, so that all of them call the model equally.

    Yields:
        A batch, and how many of its rows count; the others repeat row 0 and have no labels.
    """
    most = -(-len(examples) // num_processes)
    own = np.arange(process, len(examples), num_processes)
    padded = np.append(own, np.zeros(most - len(own), own.dtype))
    for start in range(0, most, rows_per_batch):
        indices = padded[start : start + rows_per_batch]
        counted = min(len(own) - start, len(indices))
        batch = examples.rows(indices)
        batch["labels"][counted:] = IGNORE_INDEX
        yield batch, counted


# ---- ahead of the model ---------------------------------------------------------------------------------------------


class Prefetched(Iterator[Delivery]):
    """Deliveries made ready in a thread of its own while the model works; counts how long the model waited for them."""

    def __init__(self, source: Iterator[Delivery]) -> None:
        self.waited = 0.0
        """Seconds."""
        self._ready: queue.Queue[Delivery | BaseException] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True)
        self._thread.start()

    def __next__(self) -> Delivery:
        started = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        self._thread.join()

    def _work(self, source: Iterator[Delivery]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(RuntimeError("the training data have come to an end"))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Delivery | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
