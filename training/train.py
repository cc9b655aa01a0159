"""Train one model of the zoo on one task.

    python training/train.py --config configs/demo/ssd.yaml --run.seed 1
    accelerate launch training/train.py --config configs/demo/ssd.yaml
    torchrun --nproc_per_node 2 training/train.py --config configs/demo/ssd.yaml

From top to bottom: setup -> main -> start; `loop.py` has the loop, and `config.py` lists all that can be set.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsf_models.analysis import training_flops
from dsf_models.backbone.compat import enable_checkpointing
from dsf_models.hub.usage import UsageError
from training.checkpoint import Progress, drop_newer, load_checkpoint, newest_checkpoint
from training.config import TrainConfig, config_to_dict, parse_config
from training.data import Prefetched, RunData, Share, load_task_data
from training.labelled_data import load_labelled_data
from training.launch import build_accelerator, end
from training.loop import Run, fit, test
from training.metrics import MetricsLog
from training.model import build_model, check_model_runs, count_parameters
from training.optim import build_optimizer, build_schedule
from training.run_folder import check_run_folder, prepare_run_folder
from training.speed import Speed, known_peak
from training.text_data import load_text_data


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: train as told, or say in one line why not."""
    logging.disable_progress_bar()
    try:
        main(parse_config(arguments))
    except UsageError as error:
        sys.exit(f"train.py: error: {error}")


def main(config: TrainConfig) -> None:
    """Train, select, test and publish; everything that can be refused is refused before anything is written.

    Args:
        config: the run.

    Raises:
        UsageError: naming what is wrong and how to put it right.
    """
    accelerator = build_accelerator(config)
    check_run_folder(config)
    folder = Path(config.run.output_dir)
    if config.run.resume and (folder / "final").exists():
        accelerator.print(f"This run is complete: its model is in {folder / 'final'}.")
        return
    checkpoint, progress = None, Progress(num_processes=accelerator.num_processes)
    if config.run.resume:
        checkpoint, progress, complaints = newest_checkpoint(folder / "checkpoints", accelerator.num_processes)
        for complaint in complaints:
            accelerator.print(f"warning: {complaint} An older checkpoint takes its place.")
    data = load_data(config, accelerator)
    data.check(config.training)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    set_seed(config.run.seed)
    model = build_model(config.model, data.readout)
    check_model_runs(model, data.validation.rows(np.zeros(1, int)), data.name)

    run = start(config, accelerator, model, data, progress)
    if checkpoint is not None:
        run.position = load_checkpoint(accelerator, checkpoint)
    with closing(Prefetched(data.train.deliveries(progress.step, share_of(run), run.position))) as deliveries:
        fit(run, deliveries)
    test(run)
    end(accelerator)


def load_data(config: TrainConfig, accelerator: Accelerator) -> RunData:
    """Read or make what the one section says that tells of data."""
    if config.task is not None:
        return load_task_data(config.task)
    return load_text_data(config.text, accelerator) if config.text is not None else load_labelled_data(config.labelled)


def start(
    config: TrainConfig, accelerator: Accelerator, model: PreTrainedModel, data: RunData, progress: Progress
) -> Run:
    """Open the run's folder, and make everything that the loop needs."""
    accelerator.wait_for_everyone()
    folder, training = Path(config.run.output_dir), config.training
    metrics = MetricsLog(folder / "metrics.jsonl")
    if accelerator.is_main_process:
        prepare_run_folder(config, accelerator.num_processes)
        metrics.rewind(progress.step)
        drop_newer(folder / "checkpoints", progress)
    accelerator.wait_for_everyone()
    accelerator.print(
        f"{config.model['architecture']}, {count_parameters(model):,} parameters, on {data.name}: "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, from step {progress.step}, in {folder}."
    )
    set_seed(config.run.seed, device_specific=True)
    if training.activation_checkpointing:
        enable_checkpointing(model)
    optimizer = build_optimizer(model, config.optimizer)
    schedule = build_schedule(optimizer, config.schedule, training.max_steps)
    # Accelerate would step a schedule of its own once per process; this one counts optimiser steps.
    accelerator.register_for_checkpointing(schedule)
    accelerator.init_trackers(config.tracker.project, config=flat_settings(config))
    speed = build_speed(config, accelerator, model, data.sequence_length)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if training.compile:
        prepared.compile()
    return Run(config, accelerator, prepared, optimizer, schedule, data, folder, metrics, progress, speed, {})


def share_of(run: Run) -> Share:
    """Which share of each batch is this process's."""
    return Share(
        batch_size=run.config.training.batch_size,
        parts=run.config.training.gradient_accumulation_steps,
        process=run.accelerator.process_index,
        num_processes=run.accelerator.num_processes,
        seed=run.config.run.seed,
    )


def build_speed(config: TrainConfig, accelerator: Accelerator, model: PreTrainedModel, length: int) -> Speed:
    """A meter of the run's speed, for rows of `length` tokens."""
    training = config.training
    two_sided = model.config.looks_ahead  # whose operations are not counted
    peak = training.peak_flops or known_peak(accelerator.device, training.mixed_precision)
    return Speed(
        device=accelerator.device,
        tokens_per_step=training.batch_size * length,
        flops_per_token=None if two_sided else training_flops(model.config, length).total / length,
        peak=None if peak is None or two_sided else peak * accelerator.num_processes,
    )


def flat_settings(config: TrainConfig) -> dict[str, str]:
    """The configuration as trackers take it: one level, plain values."""
    sections = config_to_dict(config)
    return {f"{section}.{name}": str(value) for section, fields in sections.items() for name, value in fields.items()}


if __name__ == "__main__":
    setup()
