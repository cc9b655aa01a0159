"""Synthetic selection tasks as `datasets` objects: `load_task("mqar", split="train", seed=0, num_pairs=16)`."""

from dsf_models.tasks.base import IGNORE_INDEX, SPLITS, RegressionTask, SyntheticTask, Task
from dsf_models.tasks.mqar import MQAR
from dsf_models.tasks.registry import get_task, get_token_task, list_tasks, load_task

__all__ = [
    "IGNORE_INDEX",
    "MQAR",
    "SPLITS",
    "RegressionTask",
    "SyntheticTask",
    "Task",
    "get_task",
    "get_token_task",
    "list_tasks",
    "load_task",
]
