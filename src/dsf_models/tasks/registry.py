"""The front door: tasks by name, as task objects or as `datasets.Dataset`.

Letters: b rows, t positions.
"""

import inspect
import json
from dataclasses import fields
from hashlib import sha256
from types import MappingProxyType

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, List, NamedSplit, Value

from dsf_models.errors import require, require_known, suggest
from dsf_models.tasks.base import SPLITS, Int32s, SyntheticTask, require_integer
from dsf_models.tasks.mqar import MQAR

TASKS = MappingProxyType({task.name: task for task in (MQAR,)})
"""Every task class by its name."""


def list_tasks() -> list[str]:
    """The sorted names of all tasks."""
    return sorted(TASKS)


def get_task(name: str, **sizes: object) -> SyntheticTask:
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


def load_task(
    name: str, *, split: str = "train", seed: int = 0, num_examples: int | None = None, **sizes: object
) -> Dataset:
    """The first examples of a split of a synthetic task, as an in-memory dataset.

    The columns are stored as int32; collators and the torch and numpy formats read them as int64, which embeddings and
    losses take.

    Args:
        name: one of `list_tasks()`.
        split: "train", "validation" or "test", three disjoint streams.
        seed: 0..2^64-1.
        num_examples: b, at least 1; by default the task's `default_examples[split]`.
        **sizes: fields of the task's class.

    Returns:
        The columns of `SyntheticTask`, b lists of t int32; `info.description` holds the task's `describe()`.

    Raises:
        ValueError: see `get_task` and `SyntheticTask.generate`.
    """
    task = get_task(name, **sizes)
    require_known("split", split, SPLITS)
    num_examples = task.default_examples[split] if num_examples is None else num_examples
    require_integer("num_examples", num_examples, 1)
    columns = task.generate(split, seed, 0, num_examples)
    features = Features({column: List(Value("int32"), length=task.sequence_length) for column in columns})
    summary, card = inspect.getdoc(type(task)).split("\n")[0], json.dumps(task.describe())
    # Arrow only wraps the arrays; without a fingerprint of ours, datasets would pickle and hash all of them.
    return Dataset(
        pa.table({column: _fixed_lists(array) for column, array in columns.items()}),
        info=DatasetInfo(description=f"{summary}\n{card}", features=features, dataset_name=name),
        split=NamedSplit(split),
        fingerprint=sha256(f"{card}/{split}/{seed}/{num_examples}".encode()).hexdigest()[:16],
    )


def _fixed_lists(array: Int32s) -> pa.FixedSizeListArray:
    """Wrap (b, t) as b lists of t, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
