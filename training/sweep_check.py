"""Finds a run that cannot start before any has started: its model without data, and one batch of its task."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from dsf_models.hub.usage import UsageError
from training.config import TrainConfig, config_to_dict
from training.data import Share, load_task_data
from training.model import build_model, check_model_runs
from training.sweep_plan import PlannedRun


def check_runs(runs: Sequence[PlannedRun]) -> None:
    """Check every run; models and tasks that several runs share are built once.

    Raises:
        UsageError: naming the run and what is wrong with it.
    """
    checked = set()
    for run in runs:
        sections = config_to_dict(run.config)
        data = sections["task"] or sections["text"]
        data.pop("seed")
        key = json.dumps([sections["model"], data, run.config.training.batch_size])
        if key in checked:
            continue
        checked.add(key)
        try:
            check_run(run.config)
        except UsageError as error:
            raise UsageError(f"Run {run.name!r} is refused: {error}") from error


def check_run(config: TrainConfig) -> None:
    """Make one batch of a run's task, and pass a row through its model on the meta device, which holds shapes alone.

    Text is not read: the run finds out about it.
    """
    if config.task is None:
        return
    training = config.training
    few = replace(config.task, train_examples=training.batch_size, validation_examples=1, test_examples=1)
    data = load_task_data(few)
    parts, seed = training.gradient_accumulation_steps, config.run.seed
    share = Share(batch_size=training.batch_size, parts=parts, process=0, num_processes=1, seed=seed)
    next(iter(data.train.deliveries(0, share, {})))
    with torch.device("meta"):
        model = build_model(config.model, data)
    check_model_runs(model, data)
