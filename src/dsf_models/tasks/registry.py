"""The front door: tasks by name, as task objects or as data sets of `datasets`.

Letters: b rows.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, IterableDataset, List, NamedSplit, Value
from datasets.iterable_dataset import ArrowExamplesIterable
from numpy.typing import NDArray

from dsf_models.errors import require, require_known, suggest
from dsf_models.tasks.associative_recall import AssociativeRecall
from dsf_models.tasks.base import SPLITS, Columns, SyntheticTask, Task, require_integer
from dsf_models.tasks.compression import Compression
from dsf_models.tasks.in_context_recall import FuzzyRecall, InContextRecall, NoisyRecall
from dsf_models.tasks.induction_heads import InductionHeads
from dsf_models.tasks.input_copying import InputCopying
from dsf_models.tasks.listops import ListOps
from dsf_models.tasks.memorisation import Memorisation
from dsf_models.tasks.modular_arithmetic_brackets import ModularArithmeticBrackets
from dsf_models.tasks.mqar import MQAR
from dsf_models.tasks.mqar_update import MQARUpdate
from dsf_models.tasks.needle import Needle
from dsf_models.tasks.pathfinder import Pathfinder
from dsf_models.tasks.selective_copying import SelectiveCopying
from dsf_models.tasks.smooth_regression import SmoothRegression
from dsf_models.tasks.state_tracking import CycleNavigation, EvenPairs, ModularArithmetic, Parity, WordProblem

TASKS = MappingProxyType(
    {
        task.name: task
        for task in (
            AssociativeRecall,
            Compression,
            CycleNavigation,
            EvenPairs,
            FuzzyRecall,
            InContextRecall,
            InductionHeads,
            InputCopying,
            ListOps,
            Memorisation,
            ModularArithmetic,
            ModularArithmeticBrackets,
            MQAR,
            MQARUpdate,
            Needle,
            NoisyRecall,
            Parity,
            Pathfinder,
            SelectiveCopying,
            SmoothRegression,
            WordProblem,
        )
    }
)
"""Every task class by its name."""


def list_tasks(kind: type[Task] = Task) -> list[str]:
    """The sorted names of all tasks of a kind.

    Args:
        kind: `Task` for all; `SyntheticTask` for those of tokens, `RegressionTask` for those of real numbers.
    """
    return sorted(name for name, task in TASKS.items() if issubclass(task, kind))


def get_task(name: str, **sizes: object) -> Task:
    """A task by name.

    Args:
        name: one of `list_tasks()`.
        **sizes: fields of the task's class; the others keep their defaults.

    Raises:
        ValueError: unknown name or size (with the closest known ones), or a size that makes no sense.
    """
    require_known("task", name, list_tasks())
    known = [field.name for field in fields(TASKS[name])]
    for size, value in sizes.items():
        require(size in known, f"{name}.{size}", value, f"no such size; {suggest(size, known)}")
    return TASKS[name](**sizes)


def get_token_task(name: str, **sizes: object) -> SyntheticTask:
    """A task by name, for models that read tokens and answer at each of them; otherwise as `get_task`.

    Raises:
        ValueError: also where the task is one of real numbers, or all answers are to be read from the last output.
    """
    task = get_task(name, **sizes)
    known = ", ".join(name for name in list_tasks(SyntheticTask) if TASKS[name].readout == "each")
    numbers = f"its inputs and answers are real numbers, a language model's are tokens; choose from {known}"
    require(isinstance(task, SyntheticTask), "task", name, numbers)
    last = f"all answers are read from its last output, a language model answers once at each; choose from {known}"
    require(task.readout == "each", "task", name, last)
    return task


def load_task(
    name: str,
    *,
    split: str = "train",
    seed: int = 0,
    num_examples: int | None = None,
    streaming: bool = False,
    **sizes: object,
) -> Dataset | IterableDataset:
    """The first examples of a split of a synthetic task, as a dataset in memory or as a stream.

    A stream generates the same rows in the same order, a block at a time. It has up to 64 shards, consecutive ranges of
    examples whose sizes differ by one at most: the workers of a DataLoader share them, and so do the processes of
    `datasets.distributed.split_dataset_by_node`, so that no example is read twice.

    Tokens are stored as int32; collators and the torch and numpy formats read them as int64, which embeddings and
    losses take. Real numbers are float32 everywhere.

    Args:
        name: one of `list_tasks()`.
        split: "train", "validation" or "test", three disjoint streams.
        seed: 0..2^64-1.
        num_examples: b, at least 1; by default the task's `default_examples[split]`.
        streaming: return an `IterableDataset` instead of a `Dataset`.
        **sizes: fields of the task's class.

    Returns:
        The columns of `SyntheticTask` or `RegressionTask`, b rows; `info.description` holds the task's `describe()`.

    Raises:
        ValueError: see `get_task` and `Task.generate`.
    """
    task = get_task(name, **sizes)
    require_known("split", split, SPLITS)
    num_examples = task.default_examples[split] if num_examples is None else num_examples
    require_integer("num_examples", num_examples, 1)
    require_integer("seed", seed, 0)
    features = Features({column: _feature(array) for column, array in task.generate(split, seed, 0, 0).items()})
    summary, card = inspect.getdoc(type(task)).split("\n")[0], json.dumps(task.describe())
    info = DatasetInfo(description=f"{summary}\n{card}", features=features, dataset_name=name)
    if streaming:
        arguments = {"task": task, "split": split, "seed": seed, "shards": _shards(num_examples)}
        # The public `from_generator` takes examples one by one; tables keep a block together.
        return IterableDataset(ArrowExamplesIterable(_tables, arguments), info=info, split=NamedSplit(split))
    # Arrow only wraps the arrays; without a fingerprint of ours, datasets would pickle and hash all of them.
    return Dataset(
        _table(task.generate(split, seed, 0, num_examples)),
        info=info,
        split=NamedSplit(split),
        fingerprint=sha256(f"{card}/{split}/{seed}/{num_examples}".encode()).hexdigest()[:16],
    )


def _shards(num_examples: int) -> list[tuple[int, int]]:
    """Cut the examples into up to 64 ranges (start, stop) of nearly equal size."""
    count = min(num_examples, 64)
    return [(num_examples * i // count, num_examples * (i + 1) // count) for i in range(count)]


def _tables(
    task: Task, split: str, seed: int, shards: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """Yield the rows of the shards block by block, with (first example of the shard, number of the block) as keys."""
    for start, stop in shards:
        for number, columns in enumerate(task.blocks(split, seed, start, stop)):
            yield (start, number), _table(columns)


def _table(columns: Columns) -> pa.Table:
    return pa.table({column: _arrow(array) for column, array in columns.items()})


def _feature(array: NDArray[Any]) -> Value | List:
    """The type of one row of (b, ...): nested lists of fixed length."""
    feature = Value(array.dtype.name)
    for length in reversed(array.shape[1:]):
        feature = List(feature, length=length)
    return feature


def _arrow(array: NDArray[Any]) -> pa.Array:
    """Wrap (b, ...) as b rows of nested lists of fixed length, without a copy."""
    wrapped = pa.array(np.ravel(array))
    for length in reversed(array.shape[1:]):
        wrapped = pa.FixedSizeListArray.from_arrays(wrapped, length)
    return wrapped
