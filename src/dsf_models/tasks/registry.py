"""The front door: tasks by name, as task objects or as `datasets.Dataset`.

Letters: b rows.
"""

import inspect
import json
from dataclasses import fields
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, List, NamedSplit, Value
from numpy.typing import NDArray

from dsf_models.errors import require, require_known, suggest
from dsf_models.tasks.base import SPLITS, SyntheticTask, Task, require_integer
from dsf_models.tasks.listops import ListOps
from dsf_models.tasks.memorisation import Memorisation
from dsf_models.tasks.mqar import MQAR
from dsf_models.tasks.pathfinder import Pathfinder
from dsf_models.tasks.smooth_regression import SmoothRegression
from dsf_models.tasks.state_tracking import CycleNavigation, EvenPairs, ModularArithmetic, Parity, WordProblem

TASKS = MappingProxyType(
    {
        task.name: task
        for task in (
            ListOps,
            Memorisation,
            MQAR,
            Pathfinder,
            SmoothRegression,
            CycleNavigation,
            EvenPairs,
            ModularArithmetic,
            Parity,
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
    """A task by name, for models that read and answer with tokens; otherwise as `get_task`.

    Raises:
        ValueError: also where the task is one of real numbers.
    """
    task, known = get_task(name, **sizes), ", ".join(list_tasks(SyntheticTask))
    remedy = f"its inputs and answers are real numbers, a language model's are tokens; choose from {known}"
    require(isinstance(task, SyntheticTask), "task", name, remedy)
    return task


def load_task(
    name: str, *, split: str = "train", seed: int = 0, num_examples: int | None = None, **sizes: object
) -> Dataset:
    """The first examples of a split of a synthetic task, as an in-memory dataset.

    Tokens are stored as int32; collators and the torch and numpy formats read them as int64, which embeddings and
    losses take. Real numbers are float32 everywhere.

    Args:
        name: one of `list_tasks()`.
        split: "train", "validation" or "test", three disjoint streams.
        seed: 0..2^64-1.
        num_examples: b, at least 1; by default the task's `default_examples[split]`.
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
    columns = task.generate(split, seed, 0, num_examples)
    features = Features({column: _feature(array) for column, array in columns.items()})
    summary, card = inspect.getdoc(type(task)).split("\n")[0], json.dumps(task.describe())
    # Arrow only wraps the arrays; without a fingerprint of ours, datasets would pickle and hash all of them.
    return Dataset(
        pa.table({column: _arrow(array) for column, array in columns.items()}),
        info=DatasetInfo(description=f"{summary}\n{card}", features=features, dataset_name=name),
        split=NamedSplit(split),
        fingerprint=sha256(f"{card}/{split}/{seed}/{num_examples}".encode()).hexdigest()[:16],
    )


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
