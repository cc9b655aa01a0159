"""The loop: training steps, evaluations, checkpoints, and what is done when one of them goes wrong.

From top to bottom: fit -> training_step, validate, keep -> test.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from dsf_models.hub.usage import UsageError
from training.checkpoint import Progress, best_folder, save_best, save_checkpoint
from training.config import TrainConfig
from training.data import Batch, Delivery, Prefetched, RunData, to_device
from training.interruption import EXIT_STATUS, Interruption
from training.metrics import MetricsLog, score_split
from training.publish import publish
from training.result import write_result
from training.score import Score
from training.speed import Speed


@dataclass
class Run:
    """What a run consists of while it goes on."""

    config: TrainConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    data: RunData
    folder: Path
    metrics: MetricsLog
    progress: Progress
    speed: Speed
    position: Mapping[str, object]
    """Where the training data go on."""
    interruption: Interruption = field(default_factory=Interruption)
    warned: set[str] = field(default_factory=set)
    """What was already warned of."""

    @property
    def model_config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self.plain_model.config

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model without what distributed training wraps around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def warn(self, kind: str, message: str) -> None:
        """Tell of something that the run survives, once for each kind."""
        if kind not in self.warned and self.accelerator.is_main_process:
            tqdm.write(f"warning: {message}")
        self.warned.add(kind)


def fit(run: Run, deliveries: Prefetched) -> None:
    """Train until the last step, the target accuracy or the end of patience.

    Raises:
        UsageError: too many steps in a row had to be skipped.
        SystemExit: the process was asked to end; a checkpoint was saved before.
    """
    training, progress = run.config.training, run.progress
    bar = tqdm(
        total=training.max_steps, initial=progress.step, disable=None if run.accelerator.is_main_process else True
    )
    with run.interruption.watched():
        while not progress.finished:
            numbers, ends = timed_step(run, deliveries)
            progress.step += 1
            bar.update()
            last = progress.step == training.max_steps
            if last or progress.step % training.log_every == 0:
                bar.set_postfix(loss=report_training(run, numbers), refresh=False)
            if last or progress.step % training.eval_every == 0:
                validate(run)
            progress.finished = last or stops_early(run)
            if progress.finished or ends or progress.step % training.checkpoint_every == 0:
                keep(run)
            if ends and not progress.finished:
                run.accelerator.print(f"Asked to end behind step {progress.step}: go on with --run.resume true.")
                raise SystemExit(EXIT_STATUS)
    bar.close()


def timed_step(run: Run, deliveries: Prefetched) -> tuple[dict[str, Tensor | float], bool]:
    """Take the next delivery, make a step with it, and count the time."""
    run.speed.start_step()
    waited = deliveries.waited
    delivery = next(deliveries)
    waited = deliveries.waited - waited
    found = training_step(run, delivery)
    run.position = delivery.position
    run.progress.seconds += run.speed.end_step(waited)
    return found


def training_step(run: Run, delivery: Delivery) -> tuple[dict[str, Tensor | float], bool]:
    """One optimiser step on the global batch of this step.

        loss = sum over all answers of the batch of their losses / number of answers of the batch

    The number counts all processes and parts, so that sharing a batch out changes nothing, also where parts differ in
    their number of answers. Where the gradient is not finite the weights are left alone.

    Returns:
        This process's share of `loss`, the `gradient_norm` before clipping, and the `learning_rate` of the step; and
        whether any process was asked to end.

    Raises:
        UsageError: too many steps in a row had no finite gradient.
    """
    training, accelerator = run.config.training, run.accelerator
    targets = [run.data.readout.targets(part) for part in delivery.parts]
    answers, ends = agree(run, sum(map(run.data.readout.count, targets)))
    loss = torch.zeros((), device=accelerator.device)
    for i, (part, target) in enumerate(zip(delivery.parts, targets, strict=True)):
        with nullcontext() if i == len(targets) - 1 else accelerator.no_sync(run.model):
            share = forward(run, part, target, answers)
            # Distributed training averages the gradients over the processes, while the shares add up.
            accelerator.backward(share * accelerator.num_processes)
        loss += share.detach()
    # Clipping to an infinite norm only measures it.
    norm = accelerator.clip_grad_norm_(run.model.parameters(), training.max_grad_norm or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    learning_rate = run.schedule.get_last_lr()[0]
    update(run, bool(torch.isfinite(norm)))
    return {"loss": loss, "gradient_norm": norm, "learning_rate": learning_rate}, ends


def forward(run: Run, part: Batch, targets: Tensor, answers: Tensor) -> Tensor:
    """Return the loss of one part of a batch: the sum over its answers, over the answers of the whole batch."""
    inputs = to_device({name: part[name] for name in part if name != "labels"}, run.accelerator.device)
    targets = targets.to(run.accelerator.device)
    return run.data.readout.loss(run.model, run.model_config, inputs, targets, answers)


def agree(run: Run, answers: int) -> tuple[Tensor, bool]:
    """Return the answers of all processes together, and whether any of them was asked to end."""
    own = torch.tensor([answers, int(run.interruption.requested)], device=run.accelerator.device)
    total = run.accelerator.reduce(own, reduction="sum")
    return total[0], bool(total[1])


def update(run: Run, finite: bool) -> None:
    """Change the weights by a finite gradient, or count a step that leaves them alone.

    Raises:
        UsageError: it was one too many in a row.
    """
    progress, config = run.progress, run.config
    # A scaler of float16 gradients leaves the weights alone by itself, and learns from it.
    if finite or run.accelerator.scaler is not None:
        run.optimizer.step()
    run.optimizer.zero_grad()
    run.schedule.step()
    progress.skipped_steps += not finite
    progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
    if progress.skipped_in_a_row > config.training.max_skipped_steps:
        raise UsageError(
            f"The gradient was infinite or not a number in {progress.skipped_in_a_row} steps in a row, up to step "
            f"{progress.step + 1}: lower optimizer.learning_rate ({config.optimizer.learning_rate}), raise "
            f"schedule.warmup_steps ({config.schedule.warmup_steps}) or lower training.max_grad_norm "
            f"({config.training.max_grad_norm})."
        )


def report_training(run: Run, numbers: Mapping[str, Tensor | float]) -> float:
    """Record the numbers of the step just made, and how fast the last ones were; return its loss over all processes."""
    loss = run.accelerator.reduce(numbers["loss"], reduction="sum").item()
    rest = {name: float(numbers[name]) for name in ("gradient_norm", "learning_rate")}
    record(run, "train", {"loss": loss, **rest, "skipped_steps": run.progress.skipped_steps})
    left = run.config.training.max_steps - run.progress.step
    record(run, "speed", {"seconds": run.progress.seconds, **run.speed.report(left)})
    return loss


def validate(run: Run) -> None:
    """Score the validation split, and keep the weights if they are the best so far."""
    progress = run.progress
    score = score_split(run.plain_model, run.data, "validation", run.accelerator, run.config.training.eval_batch_size)
    record(run, "validation", run.data.report(score))
    announce(run, "validation", score)
    better = score.is_better_than(progress.best_score, run.data.selected_by)
    if better and _keeps_best(run):
        progress.best_step, progress.best_score, progress.evaluations_since_best = progress.step, score, 0
    else:
        progress.evaluations_since_best += not better


def _keeps_best(run: Run) -> bool:
    """Save the weights as the best ones; where that fails, the earlier ones stay selected."""
    weights = run.accelerator.get_state_dict(run.model)
    failed = save_best(run.accelerator, run.plain_model, weights, run.checkpoints, run.progress.step)
    if failed:
        run.warn("best", f"the best weights of step {run.progress.step} could not be saved ({failed}).")
    return failed is None


def keep(run: Run) -> None:
    """Save a checkpoint; where that fails, the run goes on with the earlier ones."""
    keep_checkpoints = run.config.training.keep_checkpoints
    failed = save_checkpoint(run.accelerator, run.checkpoints, run.progress, run.position, keep_checkpoints)
    if failed:
        run.warn("checkpoint", f"{failed}.")


def stops_early(run: Run) -> bool:
    """Whether the target accuracy is reached or the patience used up."""
    training, progress = run.config.training, run.progress
    if progress.best_score is None:
        return False
    reached = training.target_accuracy is not None and progress.best_score.accuracy >= training.target_accuracy
    return reached or progress.evaluations_since_best == training.patience


def test(run: Run) -> None:
    """Score the selected weights on the test split, once, and publish them.

    Raises:
        UsageError: there are no selected weights.
    """
    run.accelerator.wait_for_everyone()
    if run.progress.best_step is None:
        raise UsageError(
            "No weights were selected: either their loss was never a number, then lower optimizer.learning_rate "
            f"({run.config.optimizer.learning_rate}), or there was no room for them in {run.checkpoints}."
        )
    folder = best_folder(run.checkpoints, run.progress.best_step)
    selected = type(run.plain_model).from_pretrained(folder).to(run.accelerator.device)
    score = score_split(selected, run.data, "test", run.accelerator, run.config.training.eval_batch_size)
    record(run, "test", {**run.data.report(score), "selected_step": run.progress.best_step})
    announce(run, "test", score)
    if run.accelerator.is_main_process:
        write_result(run.folder, selected, run.config, run.data, run.progress, score)
        publish(run.folder / "final", selected, run.config, run.data, run.progress, score)
    run.accelerator.wait_for_everyone()
    run.accelerator.print(f"The model of step {run.progress.best_step} is in {run.folder / 'final'}.")


def record(run: Run, split: str, numbers: Mapping[str, float]) -> None:
    """Write numbers to `metrics.jsonl` and to the tracker; the run survives the loss of either."""
    step = run.progress.step
    if run.accelerator.is_main_process:
        _survive(run, "metrics.jsonl", lambda: run.metrics.append(step, split, numbers))
    named = {f"{split}/{name}": number for name, number in numbers.items()}
    _survive(run, "tracker", lambda: run.accelerator.log(named, step=step))


def _survive(run: Run, what: str, write: Callable[[], None]) -> None:
    try:
        write()
    except Exception as error:  # a tracker may raise anything, and none of it is worth a run
        run.warn(what, f"{what} takes no more numbers ({type(error).__name__}: {error}); the run goes on.")


def announce(run: Run, split: str, score: Score) -> None:
    """Print a score."""
    if run.accelerator.is_main_process:
        tqdm.write(f"step {run.progress.step:>6}  {split:<10}  {run.data.summary(score, split)}")
