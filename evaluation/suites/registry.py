"""The suites by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dsf_models.errors import suggest
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import list_tasks
from evaluation.config import EvaluationConfig
from evaluation.suites.base import Suite
from evaluation.suites.lra import long_range_arena
from evaluation.suites.perplexity import Perplexity
from evaluation.suites.selection import Selection
from evaluation.suites.speed import Speed
from evaluation.suites.task import TaskSuite

SUITES: Mapping[str, Callable[[EvaluationConfig], Suite]] = MappingProxyType(
    {"lra": long_range_arena, "perplexity": Perplexity, "selection": Selection, "speed": Speed}
)
"""Every suite that is more than one task."""


def load_suite(config: EvaluationConfig) -> Suite:
    """The suite that an evaluation asks for: one of `SUITES`, a task by its name, or the task of the checkpoints.

    Raises:
        UsageError: for an unknown name, offering the closest, and for whatever the suite refuses.
    """
    known = [*SUITES, *list_tasks()]
    if config.suite is not None and config.suite not in known:
        raise UsageError(f"--suite {config.suite} is refused: no task and no suite; {suggest(config.suite, known)}")
    return SUITES.get(config.suite, TaskSuite)(config)
