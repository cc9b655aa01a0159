"""Which examples are evaluated: from the command line, else from what the checkpoints say about themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import SyntheticTask, get_token_task, load_task
from evaluation.config import EvaluationConfig

_DEFAULT_EXAMPLES = 1_000


@dataclass(frozen=True)
class Suite:
    """The examples of one evaluation.

    Attributes:
        task: what the examples are made by.
        facts: name, sizes, split, seed, number of examples, data hash, baselines and description, as JSON takes them.
        input_ids: (examples, length).
        labels: (examples, length); labels[:, t] is the target of the output at position t.
        facets: name -> one number per answer, in the order of `labels[labels != -100]`.
    """

    task: SyntheticTask
    facts: dict[str, Any]
    input_ids: np.ndarray
    labels: np.ndarray
    facets: dict[str, np.ndarray]


def load_suite(config: EvaluationConfig) -> Suite:
    """Generate the examples that an evaluation asks for.

    Raises:
        UsageError: where no task is named or recorded, where the records of several checkpoints disagree on something
            that the command line leaves open, for a task of real numbers or whose answers are all read from the last
            output, and where the task refuses its name or a size.
    """
    records = [record for name in config.model if (record := _load_record(name)) is not None]
    name = config.suite or _agreed(records, "suite", lambda record: record.name)
    if name is None:
        raise UsageError(
            "--suite is missing, and no checkpoint has a task.json that names its task: give --suite NAME."
        )
    records = [record for record in records if record.name == name]
    sizes = _sizes(records, config.sizes)
    seed = _first(config.seed, _agreed(records, "seed", lambda record: record.seed), 0)
    recorded_examples = _agreed(records, "num_examples", lambda record: record.num_examples.get(config.split))
    num_examples = _first(config.num_examples, recorded_examples, _DEFAULT_EXAMPLES)
    try:
        task = get_token_task(name, **sizes)
        dataset = load_task(name, split=config.split, seed=seed, num_examples=num_examples, **sizes)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--suite {name} is refused: {error}") from error
    columns = dataset.with_format("numpy")[:]
    input_ids, labels = columns["input_ids"], columns["labels"]
    facts = {
        "name": name,
        "sizes": task.describe()["sizes"],
        "split": config.split,
        "seed": seed,
        "num_examples": num_examples,
        "data_hash": task.data_hash(config.split, seed, num_examples),
        "chance": task.chance,
        "best_trivial": task.best_trivial,
        "description": task.describe(),
    }
    return Suite(task, facts, input_ids, labels, task.groups(input_ids, labels))


def _load_record(name: str) -> TaskRecord | None:
    try:
        return TaskRecord.load(Path(name))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _sizes(records: Sequence[TaskRecord], given: Mapping[str, Any]) -> dict[str, Any]:
    names = sorted({name for record in records for name in record.sizes} - given.keys())
    recorded = {
        name: _agreed(records, f"sizes.{name}", lambda record, name=name: record.sizes.get(name)) for name in names
    }
    return {**recorded, **given}


def _agreed(records: Sequence[TaskRecord], argument: str, read: Callable[[TaskRecord], Any]) -> Any:
    """What all records say, None where there are none."""
    values = {read(record) for record in records}
    if len(values) > 1:
        raise UsageError(
            f"The checkpoints were trained on different tasks ({argument} {sorted(values)}): give --{argument}."
        )
    return next(iter(values), None)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
