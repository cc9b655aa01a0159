"""The suites by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dsf_models.errors import suggest
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import list_tasks
from evaluation.config import EvaluationConfig
from evaluation.suites.base import Suite
from evaluation.suites.lra import LABELLED, long_range_arena
from evaluation.suites.perplexity import Perplexity
from evaluation.suites.selection import Selection
from evaluation.suites.speed import Speed
from evaluation.suites.task import TaskSuite, load_record

SUITES: Mapping[str, Callable[[EvaluationConfig], Suite]] = MappingProxyType(
    {"lra": long_range_arena, "perplexity": Perplexity, "selection": Selection, "speed": Speed}
)
"""Every suite that is more than one task."""


def load_suite(config: EvaluationConfig) -> Suite:
    """The suite that an evaluation asks for: one of `SUITES`, a task by its name, or what the checkpoints have learned.

    Raises:
        UsageError: for an unknown name, offering the closest, and for whatever the suite refuses.
    """
    known = [*SUITES, *list_tasks()]
    if config.suite is not None and config.suite not in known:
        raise UsageError(f"--suite {config.suite} is refused: no task and no suite; {suggest(config.suite, known)}")
    if config.suite is None and any(learned_labels(model) for model in config.model):
        return long_range_arena(config)
    return SUITES.get(config.suite, TaskSuite)(config)


def learned_labels(model: str) -> bool:
    """Whether a checkpoint's record says that it classifies labelled sequences."""
    record = load_record(model)
    return record is not None and record.name in LABELLED
