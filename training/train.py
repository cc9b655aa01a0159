"""Train one model of the zoo on one task.

    python training/train.py --config configs/demo/ssd.yaml --run.seed 1
    accelerate launch training/train.py --config configs/demo/ssd.yaml
    torchrun --nproc_per_node 2 training/train.py --config configs/demo/ssd.yaml

From top to bottom: setup -> main -> fit -> training_step, validate -> test. `config.py` lists all that can be set.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX
from training.checkpoint import Progress, best_folder, last_checkpoint, read_progress, save_best, save_checkpoint
from training.config import TrainConfig, config_to_dict, parse_config
from training.data import TaskData, load_data, parts_of_process
from training.launch import build_accelerator, end
from training.metrics import MetricsLog, Score, score_split
from training.model import build_model, check_model_runs, count_parameters
from training.optim import build_optimizer, build_schedule
from training.publish import publish
from training.run_folder import check_run_folder, prepare_run_folder


@dataclass
class Run:
    """What a run consists of while it goes on."""

    config: TrainConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    data: TaskData
    folder: Path
    metrics: MetricsLog
    progress: Progress

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model without what distributed training wraps around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


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
    checkpoint = last_checkpoint(folder / "checkpoints") if config.run.resume else None
    if checkpoint is None:
        progress = Progress(num_processes=accelerator.num_processes)
    else:
        progress = read_progress(checkpoint, accelerator.num_processes)
    data = load_data(config.task)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    set_seed(config.run.seed)
    model = build_model(config.model, data.task.vocab_size)
    check_model_runs(model, data.train[:1]["input_ids"])

    run = start(config, accelerator, model, data, progress)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
    fit(run)
    test(run)
    end(accelerator)


def start(
    config: TrainConfig, accelerator: Accelerator, model: PreTrainedModel, data: TaskData, progress: Progress
) -> Run:
    """Open the run's folder, and make everything that the loop needs."""
    accelerator.wait_for_everyone()
    folder = Path(config.run.output_dir)
    metrics = MetricsLog(folder / "metrics.jsonl")
    if accelerator.is_main_process:
        prepare_run_folder(config, accelerator.num_processes)
        metrics.rewind(progress.step)
    accelerator.wait_for_everyone()
    accelerator.print(
        f"{config.model['architecture']}, {count_parameters(model):,} parameters, on {config.task.name}: "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, from step {progress.step}, in {folder}."
    )
    set_seed(config.run.seed, device_specific=True)
    optimizer = build_optimizer(model, config.optimizer)
    schedule = build_schedule(optimizer, config.schedule, config.training.max_steps)
    # Accelerate would step a schedule of its own once per process; this one counts optimiser steps.
    accelerator.register_for_checkpointing(schedule)
    accelerator.init_trackers(config.tracker.project, config=flat_settings(config))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    return Run(config, accelerator, prepared, optimizer, schedule, data, folder, metrics, progress)


def fit(run: Run) -> None:
    """Train until the last step, the target accuracy or the end of patience."""
    training, progress = run.config.training, run.progress
    started = time.perf_counter() - progress.seconds
    bar = tqdm(
        total=training.max_steps, initial=progress.step, disable=None if run.accelerator.is_main_process else True
    )
    while not progress.finished:
        numbers = training_step(run)
        progress.step += 1
        progress.seconds = time.perf_counter() - started
        bar.update()
        last = progress.step == training.max_steps
        if last or progress.step % training.log_every == 0:
            bar.set_postfix(loss=report_training(run, numbers), refresh=False)
        if last or progress.step % training.eval_every == 0:
            validate(run)
        progress.finished = last or stops_early(run)
        if progress.finished or progress.step % training.checkpoint_every == 0:
            save_checkpoint(run.accelerator, run.checkpoints, progress, training.keep_checkpoints)
    bar.close()


def training_step(run: Run) -> dict[str, torch.Tensor | float]:
    """One optimiser step on the global batch of this step.

        loss = sum over all answers of the batch of -log p(answer) / number of answers of the batch

    The number counts all processes and parts, so that sharing a batch out changes nothing, also where parts differ in
    their number of answers.

    Returns:
        This process's share of `loss`, the `gradient_norm` before clipping, and the `learning_rate` of the step.
    """
    training, accelerator = run.config.training, run.accelerator
    batch = run.data.training_batch(run.progress.step, training.batch_size, run.config.run.seed)
    answers = (batch["labels"] != IGNORE_INDEX).sum().to(accelerator.device)
    parts = parts_of_process(
        batch, accelerator.process_index, accelerator.num_processes, training.gradient_accumulation_steps
    )
    loss = torch.zeros((), device=accelerator.device)
    for i, part in enumerate(parts):
        part = {name: tensor.to(accelerator.device) for name, tensor in part.items()}
        with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(run.model):
            share = run.model(**part, num_items_in_batch=answers, use_cache=False).loss
            # Distributed training averages the gradients over the processes, while the shares add up.
            accelerator.backward(share * accelerator.num_processes)
        loss += share.detach()
    # Clipping to an infinite norm only measures it.
    norm = accelerator.clip_grad_norm_(run.model.parameters(), training.max_grad_norm or float("inf"))
    learning_rate = run.schedule.get_last_lr()[0]
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.schedule.step()
    return {"loss": loss, "gradient_norm": norm, "learning_rate": learning_rate}


def report_training(run: Run, numbers: Mapping[str, torch.Tensor | float]) -> float:
    """Record the numbers of the step just made and return its loss over all processes; stop a run that has diverged."""
    loss = run.accelerator.reduce(numbers["loss"], reduction="sum").item()
    rest = {name: float(numbers[name]) for name in ("gradient_norm", "learning_rate")}
    record(run, "train", {"loss": loss, **rest, "seconds": run.progress.seconds})
    if not math.isfinite(loss):
        raise UsageError(
            f"The loss is {loss} at step {run.progress.step}: lower optimizer.learning_rate "
            f"({run.config.optimizer.learning_rate}), raise schedule.warmup_steps ({run.config.schedule.warmup_steps}) "
            f"or lower training.max_grad_norm ({run.config.training.max_grad_norm})."
        )
    return loss


def validate(run: Run) -> None:
    """Score the validation split, and keep the weights if they are the best so far."""
    progress = run.progress
    score = score_split(run.plain_model, run.data.validation, run.accelerator, run.config.training.eval_batch_size)
    record(run, "validation", score.to_dict())
    announce(run, "validation", score)
    if not score.is_better_than(progress.best_score):
        progress.evaluations_since_best += 1
        return
    progress.best_step, progress.best_score, progress.evaluations_since_best = progress.step, score, 0
    if run.accelerator.is_main_process:
        save_best(run.plain_model, run.checkpoints, progress.step)


def stops_early(run: Run) -> bool:
    """Whether the target accuracy is reached or the patience used up."""
    training, progress = run.config.training, run.progress
    if progress.best_score is None:
        return False
    reached = training.target_accuracy is not None and progress.best_score.accuracy >= training.target_accuracy
    return reached or progress.evaluations_since_best == training.patience


def test(run: Run) -> None:
    """Score the selected weights on the test split, once, and publish them."""
    run.accelerator.wait_for_everyone()
    selected = AutoModelForCausalLM.from_pretrained(best_folder(run.checkpoints, run.progress.best_step))
    run.plain_model.load_state_dict(selected.state_dict())
    score = score_split(run.plain_model, run.data.test, run.accelerator, run.config.training.eval_batch_size)
    record(run, "test", {**score.to_dict(), "selected_step": run.progress.best_step})
    announce(run, "test", score)
    if run.accelerator.is_main_process:
        publish(run.folder / "final", run.plain_model, run.config, run.data, run.progress, score)
    run.accelerator.wait_for_everyone()
    run.accelerator.print(f"The model of step {run.progress.best_step} is in {run.folder / 'final'}.")


def record(run: Run, split: str, numbers: Mapping[str, float]) -> None:
    """Write numbers to `metrics.jsonl` and to the tracker."""
    if run.accelerator.is_main_process:
        run.metrics.append(run.progress.step, split, numbers)
    run.accelerator.log({f"{split}/{name}": number for name, number in numbers.items()}, step=run.progress.step)


def announce(run: Run, split: str, score: Score) -> None:
    """Print a score, beside what guessing reaches."""
    if run.accelerator.is_main_process:
        tqdm.write(
            f"step {run.progress.step:>6}  {split:<10}  loss {score.loss:.4f}  accuracy {100 * score.accuracy:6.2f} %  "
            f"(chance {100 * run.data.task.chance:.2f} %, best trivial {100 * run.data.task.best_trivial:.2f} %)  "
            f"whole rows {100 * score.row_accuracy:6.2f} %"
        )


def flat_settings(config: TrainConfig) -> dict[str, str]:
    """The configuration as trackers take it: one level, plain values."""
    sections = config_to_dict(config)
    return {f"{section}.{name}": str(value) for section, fields in sections.items() for name, value in fields.items()}


if __name__ == "__main__":
    setup()
