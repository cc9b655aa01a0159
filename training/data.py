"""The examples of a run: splits whose rows are found by their index, and what each process is given of them.

Letters: b rows, t positions.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX, RegressionTask, SyntheticTask, Task, get_task
from training.config import TaskConfig, TrainingConfig
from training.readout import Batch, EachReadout, LastReadout, Readout, ValueReadout
from training.score import Score

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
        """The rows of these indices (b,), made anew: arrays of shape (b, …)."""

    def rows(self, indices: np.ndarray) -> Batch:
        """The rows of these indices (b,), as tensors of shape (b, …): whole numbers as int64, real ones as they are."""
        if self._held is None:
            columns = self.columns(indices)
        else:
            columns = {name: column[indices] for name, column in self._held.items()}
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        return {name: column if column.is_floating_point() else column.long() for name, column in tensors.items()}

    def deliveries(self, step: int, share: Share, position: Mapping[str, Any]) -> Iterator[Delivery]:
        """As every source; each delivery is a pure function of (seed, step), so that no position is needed."""
        while True:
            indices = batch_indices(step, share.batch_size, len(self), share.seed)
            chunks = np.split(indices, share.num_processes * share.parts)
            yield Delivery([self.rows(chunk) for chunk in chunks[share.process :: share.num_processes]])
            step += 1


class TaskExamples(Examples):
    """The first rows of a split of a synthetic task."""

    def __init__(self, task: Task, split: str, seed: int, count: int) -> None:
        self._task, self._split, self._seed = task, split, seed
        super().__init__(count, task.sequence_length)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices (b,): arrays of shape (b, …)."""
        return self._task.examples(self._split, self._seed, indices.astype(np.uint64))


@dataclass(frozen=True, kw_only=True)
class RunData(ABC):
    """What a model learns from, is selected by and is tested on."""

    name: str
    """What the data are called."""

    sequence_length: int
    """Tokens of a row, t."""

    readout: Readout
    """How a model answers, and how its answers are scored."""

    train: TrainingSource
    """What the model learns from."""

    validation: Examples
    """What selects the weights and stops the run."""

    test: Examples
    """What is looked at once, with the selected weights."""

    selected_by: Literal["accuracy", "loss"]
    """What makes one model better than another on the validation split."""

    def check(self, training: TrainingConfig) -> None:  # noqa: B027  most data refuse nothing
        """Raise UsageError where the loop is told something that these data do not have."""

    @abstractmethod
    def report(self, score: Score) -> dict[str, float]:
        """The numbers of a score that say something about these data, by name."""

    @abstractmethod
    def summary(self, score: Score, split: str) -> str:
        """A score in a line, beside what guessing reaches on this split."""

    @abstractmethod
    def best_trivial(self, split: str) -> float | None:
        """What the best rule without a network reaches on a split, in the number of `selected_by`; None if unknown."""


_Task = TypeVar("_Task", bound=Task)


@dataclass(frozen=True, kw_only=True)
class GeneratedData(RunData, Generic[_Task]):
    """A synthetic task and its three disjoint splits."""

    task: _Task
    """What the training examples are made by."""

    evaluated: _Task
    """What those of validation and test are made by."""


@dataclass(frozen=True, kw_only=True)
class TaskData(GeneratedData[SyntheticTask]):
    """A task of tokens."""

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


@dataclass(frozen=True, kw_only=True)
class RegressionData(GeneratedData[RegressionTask]):
    """A task of real numbers: learned from noisy labels, evaluated on labels without noise."""

    def check(self, training: TrainingConfig) -> None:
        """Refuse a target accuracy."""
        if training.target_accuracy is not None:
            raise UsageError(
                f"training.target_accuracy is {training.target_accuracy}, but the answers of {self.name} are real "
                "numbers: use null."
            )

    def report(self, score: Score) -> dict[str, float]:
        """The mean squared error, also as the loss, and R², the share of the variance that the model explains.

        R² = 1 - mse / variance
        """
        return {"loss": score.loss, "mse": score.loss, "r2": 1 - score.loss / self.evaluated.constant_mse}

    def summary(self, score: Score, split: str) -> str:
        """The squared error beside that of the best constant."""
        numbers = self.report(score)
        constant = self.evaluated.constant_mse
        return f"squared error {score.loss:.4g}  (best constant {constant:.4g})  R² {numbers['r2']:.4f}"

    def best_trivial(self, split: str) -> float:
        """The squared error of the best constant, the variance of the function."""
        return self.evaluated.constant_mse


def load_task_data(config: TaskConfig) -> TaskData | RegressionData:
    """Make the three splits of a task.

    Raises:
        UsageError: for an unknown task, and for sizes that it refuses.
    """
    try:
        task = get_task(config.name, **config.sizes)
        return _regression_data(task, config) if isinstance(task, RegressionTask) else _token_data(task, config)
    except (ValueError, TypeError) as error:
        raise UsageError(f"The section `task` is refused: {error}") from error


def _token_data(task: SyntheticTask, config: TaskConfig) -> TaskData:
    ids = {"vocab_size": task.vocab_size, "pad_token_id": task.pad_token_id}
    readouts: dict[str, Callable[[], Readout]] = {
        "each": lambda: EachReadout(**ids, label_alignment="same"),
        "last": lambda: LastReadout(**ids, sequence_length=task.sequence_length),
    }
    common = _generated(task, task, config)
    return TaskData(**common, readout=readouts[task.readout](), selected_by="accuracy")


def _regression_data(task: RegressionTask, config: TaskConfig) -> RegressionData:
    readout = ValueReadout(num_inputs=task.num_inputs)
    return RegressionData(**_generated(task, task.without_noise(), config), readout=readout, selected_by="loss")


def _generated(task: Task, evaluated: Task, config: TaskConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "sequence_length": task.sequence_length,
        "train": TaskExamples(task, "train", config.seed, config.train_examples),
        "validation": TaskExamples(evaluated, "validation", config.seed, config.validation_examples),
        "test": TaskExamples(evaluated, "test", config.seed, config.test_examples),
        "task": task,
        "evaluated": evaluated,
    }


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
        A batch, and how many of its rows count; the others repeat row 0, and their labels are not scored.
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
