"""Finds a run that cannot start before any has started: its model without data, and one batch of its task."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from dsf_models.hub.usage import UsageError
from training.config import TrainConfig, config_to_dict
from training.data import Share, load_task_data
from training.labelled_data import shape_of
from training.model import build_model, check_model_runs
from training.readout import EachReadout
from training.sweep_plan import PlannedRun

_SOME_VOCABULARY = 50_257
"""Tokens of a tokenizer that is not looked at."""


def check_runs(runs: Sequence[PlannedRun]) -> None:
    """Check every run; models and tasks that several runs share are built once.

    Raises:
        UsageError: naming the run and what is wrong with it.
    """
    checked = set()
    for run in runs:
        sections = config_to_dict(run.config)
        data = sections[run.config.data_section]
        data.pop("seed", None)
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

    Text and images are not read: the run finds out about them.
    """
    if config.labelled is not None:
        readout, length = shape_of(config.labelled)
        batch, name = {"input_ids": torch.zeros(1, length, dtype=torch.long)}, config.labelled.data
    elif config.text is not None:
        readout = EachReadout(vocab_size=config.text.vocab_size or _SOME_VOCABULARY, label_alignment="next")
        batch = {"input_ids": torch.zeros(1, config.text.block_size, dtype=torch.long)}
        name = config.text.name
    else:
        few = replace(config.task, train_examples=config.training.batch_size, validation_examples=1, test_examples=1)
        data = load_task_data(few)
        data.check(config.training)
        parts, seed = config.training.gradient_accumulation_steps, config.run.seed
        share = Share(batch_size=config.training.batch_size, parts=parts, process=0, num_processes=1, seed=seed)
        batch = next(iter(data.train.deliveries(0, share, {}))).parts[0]
        readout, name = data.readout, data.name
    with torch.device("meta"):
        model = build_model(config.model, readout)
    check_model_runs(model, batch, name)
