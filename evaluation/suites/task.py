"""One task of the zoo, with the sizes of the command line, else with those that the checkpoints were trained on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dsf_models.hub.metric import Metric
from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX, SyntheticTask, get_token_task
from evaluation.config import EvaluationConfig
from evaluation.results import Curve, Point, measured
from evaluation.scoring import INTERVAL, Proportion, accuracy, accuracy_by, right_answers, row_accuracy
from evaluation.state import state_bytes
from evaluation.suites.base import Suite

_DEFAULT_EXAMPLES = 1_000


@dataclass(frozen=True)
class Asked:
    """What the command line and the task records say together.

    Attributes:
        name: of the task.
        sizes: of the task; those that are left out are its defaults.
        seed: of the examples.
        num_examples: their number.
    """

    name: str
    sizes: dict[str, Any]
    seed: int
    num_examples: int


@dataclass(frozen=True)
class Examples:
    """The examples of one task.

    Attributes:
        task: what the examples are made by.
        facts: name, sizes, split, seed, number of examples, data hash, baselines and description, as JSON takes them.
        input_ids: (examples, length).
        labels: (examples, length); labels[:, t] is the target of the output at position t.
        attention_mask: (examples, length), 0 at pads; None where there are none.
        facets: name -> one number per answer, in the order of `labels[labels != -100]`.
    """

    task: SyntheticTask
    facts: dict[str, Any]
    input_ids: np.ndarray
    labels: np.ndarray
    attention_mask: np.ndarray | None
    facets: dict[str, np.ndarray]


@dataclass(frozen=True)
class Scores:
    """What a model reached on the examples of one task.

    Attributes:
        accuracy: over all answers.
        row_accuracy: over whole examples.
        by: facet -> bins, see `accuracy_by`.
    """

    accuracy: Proportion
    row_accuracy: Proportion
    by: dict[str, list[dict[str, Any]]]


class TaskSuite(Suite):
    """One task: accuracy over all answers, over whole examples, and by the task's facets."""

    uses = frozenset({"sizes", "split", "seed", "num_examples", "batch_size"})
    heads = ("CausalLM", "TokenClassification")
    interval = INTERVAL

    def __init__(
        self, config: EvaluationConfig, name: str | None = None, sizes: Mapping[str, Any] | None = None
    ) -> None:
        """Make the examples.

        Args:
            config: of the evaluation.
            name: of the task. Default: what the command line or the checkpoints name.
            sizes: those that neither of them names.
        """
        super().__init__(config)
        asked = what_is_asked(config, name)
        chosen = {**(sizes or {}), **asked.sizes}
        self.examples = make_examples(asked.name, chosen, config.split, asked.seed, asked.num_examples)
        self.facts = self.examples.facts

    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Accuracies under `accuracy`, `row_accuracy` and `by`, and as metrics and curves like those of every suite."""
        check_vocabulary(model, name, self.examples)
        try:
            scores = score(model, self.examples, self.config.batch_size)
        except ValueError as error:
            raise UsageError(f"--model {name} does not take the examples of {self.facts['name']}: {error}") from error
        return {
            "state": state_facts(model, self.examples.input_ids),
            "accuracy": scores.accuracy.to_dict(),
            "row_accuracy": scores.row_accuracy.to_dict(),
            "by": scores.by,
            **measured(task_metrics(scores, self.facts), facet_curves(scores, self.facts)),
        }


def what_is_asked(config: EvaluationConfig, name: str | None = None) -> Asked:
    """Join the command line and the task records of the checkpoints.

    Args:
        config: of the evaluation.
        name: of the task. Default: that of the command line, else that of the records.

    Raises:
        UsageError: where no task is named or recorded, and where the records of several checkpoints disagree on
            something that the command line leaves open.
    """
    records = [record for model in config.model if (record := load_record(model)) is not None]
    name = name or config.suite or agreed(records, "suite", lambda record: record.name)
    if name is None:
        raise UsageError(
            "--suite is missing, and no checkpoint has a task.json that names its task: give --suite NAME."
        )
    records = [record for record in records if record.name == name]
    return Asked(
        name=name,
        sizes=_sizes(records, config.sizes),
        seed=_chosen(config.seed, records, "seed", lambda record: record.seed, 0),
        num_examples=_chosen(
            config.num_examples,
            records,
            "num_examples",
            lambda record: record.num_examples.get(config.split),
            _DEFAULT_EXAMPLES,
        ),
    )


def make_examples(name: str, sizes: Mapping[str, Any], split: str, seed: int, num_examples: int) -> Examples:
    """Generate the examples of a task.

    Raises:
        UsageError: for a task of real numbers or whose answers are all read from the last output, and where the task
            refuses its name or a size.
    """
    try:
        task = get_token_task(name, **sizes)
        columns = task.generate(split, seed, 0, num_examples)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--suite {name} is refused: {error}") from error
    input_ids, labels = columns["input_ids"], columns["labels"]
    description = task.describe()
    facts = {
        "name": name,
        "sizes": description["sizes"],
        "split": split,
        "seed": seed,
        "num_examples": num_examples,
        "data_hash": task.data_hash(split, seed, num_examples),
        "chance": task.chance,
        "best_trivial": task.best_trivial,
        "description": description,
    }
    return Examples(task, facts, input_ids, labels, columns.get("attention_mask"), task.groups(input_ids, labels))


def check_vocabulary(model: PreTrainedModel, name: str, examples: Examples) -> None:
    """Refuse a model that has no token for some of the ids."""
    size, task = model.get_input_embeddings().num_embeddings, examples.task
    if size < task.vocab_size:
        raise UsageError(
            f"--model {name} has a vocabulary of {size} tokens, but {task.name} has {task.vocab_size}: "
            f"give --sizes.vocab_size {size} or less."
        )


def score(model: PreTrainedModel, examples: Examples, batch_size: int) -> Scores:
    """Score one model.

    Args:
        model: any model that answers at each position.
        examples: what it answers.
        batch_size: examples per forward pass.

    Raises:
        ValueError: where the model refuses the examples.
    """
    # A causal model never reads the pads, which stand at the right; it is spared the mask.
    mask = examples.attention_mask if looks_ahead(model) else None
    right = right_answers(model, examples.input_ids, examples.labels, batch_size, mask)
    example = np.nonzero(examples.labels != IGNORE_INDEX)[0]
    return Scores(
        accuracy(right, example),
        row_accuracy(right, example),
        {facet: accuracy_by(values, right, example) for facet, values in examples.facets.items()},
    )


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether outputs of a model depend on later tokens; a model of another library that is causal does not."""
    return getattr(model.config, "looks_ahead", False)


def state_facts(model: PreTrainedModel, input_ids: np.ndarray) -> dict[str, Any]:
    """The size of the state behind the first example; a model that looks ahead has none."""
    first = torch.as_tensor(input_ids[:1], dtype=torch.long, device=model.device)
    size = None if looks_ahead(model) else state_bytes(model, first)
    return {"bytes_per_sequence": size, "after_tokens": first.shape[1]}


def task_metrics(scores: Scores, facts: Mapping[str, Any]) -> list[Metric]:
    """Both accuracies, as every suite writes its numbers."""
    baselines = {"chance": facts["chance"], "best_trivial": facts["best_trivial"]}
    return [
        fraction("accuracy", scores.accuracy, facts["split"], **baselines),
        fraction("row accuracy", scores.row_accuracy, facts["split"]),
    ]


def fraction(name: str, found: Proportion, split: str, **baselines: float) -> Metric:
    """A proportion as a metric."""
    counts = {"answers": found.answers, "examples": found.examples}
    return Metric(
        name=name, split=split, value=found.value, interval=(found.low, found.high), counts=counts, **baselines
    )


def facet_curves(scores: Scores, facts: Mapping[str, Any]) -> list[Curve]:
    """Accuracy by each facet."""
    baselines = {"chance": facts["chance"], "best_trivial": facts["best_trivial"]}
    return [
        Curve(
            name=f"accuracy by {facet}",
            y="accuracy",
            x=f"{facet} (tokens)" if facet == "gap" else facet,
            points=[
                Point(
                    x=str(entry["from"]) if entry["from"] == entry["to"] else f"{entry['from']}–{entry['to']}",
                    value=entry["accuracy"],
                    interval=(entry["interval"][0], entry["interval"][1]),
                    count=entry["examples"],
                    **baselines,
                )
                for entry in bins
            ],
        )
        for facet, bins in scores.by.items()
    ]


def load_record(name: str) -> TaskRecord | None:
    """The task record of a checkpoint, None where it has none or is no folder here.

    Raises:
        UsageError: the record is damaged.
    """
    try:
        return TaskRecord.load(Path(name))
    except ValueError as error:
        raise UsageError(str(error)) from error


def agreed(records: Sequence[TaskRecord], argument: str, read: Callable[[TaskRecord], Any]) -> Any:
    """What all records say, None where there are none.

    Raises:
        UsageError: they disagree.
    """
    # Sizes may be lists, which no set holds.
    values = {json.dumps(value, sort_keys=True): value for value in map(read, records)}
    if len(values) > 1:
        raise UsageError(
            f"The checkpoints were trained on different tasks ({argument} [{', '.join(sorted(values))}]): give "
            f"--{argument}."
        )
    return next(iter(values.values()), None)


def _sizes(records: Sequence[TaskRecord], given: Mapping[str, Any]) -> dict[str, Any]:
    names = sorted({name for record in records for name in record.sizes} - given.keys())
    recorded = {
        name: agreed(records, f"sizes.{name}", lambda record, name=name: record.sizes.get(name)) for name in names
    }
    return {**recorded, **given}


def _chosen(
    given: Any, records: Sequence[TaskRecord], argument: str, read: Callable[[TaskRecord], Any], default: Any
) -> Any:
    """What the command line gives, else what all records say, else the default."""
    if given is not None:
        return given
    found = agreed(records, argument, read)
    return default if found is None else found
