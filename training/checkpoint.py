"""Checkpoints that are either whole or absent, and that say so when a file has been damaged since.

checkpoints/step_00000200/   state of model, optimiser, schedule and random generators; manifest.json
checkpoints/best_00000150/   the selected weights, as `from_pretrained` reads them
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel

from dsf_models.hub.files import new_folder, remove_folder, unfinished_name, write_json
from dsf_models.hub.usage import UsageError
from training.metrics import Score

_MANIFEST = "manifest.json"


@dataclass
class Progress:
    """How far a run has come."""

    num_processes: int
    """Processes of the run; each has random generators of its own."""

    step: int = 0
    """Optimiser steps made."""

    best_step: int | None = None
    """Step of the selected weights, or None before the first evaluation."""

    best_score: Score | None = None
    """Their score on the validation split."""

    evaluations_since_best: int = 0
    """Evaluations in a row that were no better."""

    seconds: float = 0.0
    """Time spent, interruptions left out."""

    finished: bool = False
    """Whether the training is over, by number of steps or early."""


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Save everything that the rest of the run depends on; to be called on every process.

    Args:
        accelerator: holds model, optimiser and schedule.
        folder: where the checkpoints of this run lie.
        progress: saved with the rest, and names the checkpoint.
        keep: number of checkpoints to leave; older ones, and weights no longer selected, are removed.
    """
    target = folder / f"step_{progress.step:08d}"
    unfinished = unfinished_name(target)
    if accelerator.is_main_process:
        remove_folder(unfinished)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        hashes = {f"{target.name}/{file.name}": _sha256(file) for file in sorted(unfinished.iterdir())}
        if progress.best_step is not None:
            best = best_folder(folder, progress.best_step)
            hashes |= {f"{best.name}/{file.name}": _sha256(file) for file in sorted(best.iterdir())}
        write_json(unfinished / _MANIFEST, {"progress": asdict(progress), "sha256": hashes})
        unfinished.rename(target)
        _prune(folder, progress, keep)
    accelerator.wait_for_everyone()


def save_best(model: PreTrainedModel, folder: Path, step: int) -> None:
    """Save the weights of `step` as selected; earlier ones stay until a checkpoint no longer needs them."""
    with new_folder(best_folder(folder, step)) as unfinished:
        model.save_pretrained(unfinished)


def best_folder(folder: Path, step: int) -> Path:
    """Where the weights of `step` lie if they were selected."""
    return folder / f"best_{step:08d}"


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None where there is none."""
    return max(folder.glob("step_????????"), default=None)


def read_progress(checkpoint: Path, num_processes: int) -> Progress:
    """Check that a checkpoint is what was saved, and read how far its run had come; nothing is loaded yet.

    Args:
        checkpoint: its folder.
        num_processes: processes that are to resume it.

    Returns:
        The progress of the run.

    Raises:
        UsageError: for a damaged checkpoint, naming the file that is missing or has changed, and for one of a run with
            another number of processes.
    """
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        progress = Progress(**manifest["progress"])
        progress.best_score = progress.best_score and Score(**manifest["progress"]["best_score"])
        hashes = manifest["sha256"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(checkpoint, checkpoint / _MANIFEST, "cannot be read") from error
    for name, expected in hashes:
        file = checkpoint.parent / name
        if not file.is_file():
            raise _damaged(checkpoint, file, "is missing")
        if _sha256(file) != expected:
            raise _damaged(checkpoint, file, "is not what was saved (its SHA-256 differs)")
    if progress.num_processes != num_processes:
        raise UsageError(
            f"{checkpoint} was saved by {progress.num_processes} processes, whose random generators are not those of "
            f"{num_processes}: resume with {progress.num_processes}."
        )
    return progress


def _prune(folder: Path, progress: Progress, keep: int) -> None:
    steps = sorted(folder.glob("step_????????"))
    unselected = [path for path in folder.glob("best_????????") if path != best_folder(folder, progress.best_step or 0)]
    for path in steps[:-keep] + unselected:
        remove_folder(path)


def _damaged(checkpoint: Path, file: Path, how: str) -> UsageError:
    return UsageError(
        f"Checkpoint file {file} {how}. Remove the folder {checkpoint} to resume from the checkpoint before it, "
        "or start the run again with --run.overwrite true."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
