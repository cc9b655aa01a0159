"""Checkpoints that are either whole or absent, and that say so when a file has been damaged since.

checkpoints/step_00000200/   state of model, optimiser, schedule, random generators and data; manifest.json
checkpoints/best_00000150/   the selected weights, as `from_pretrained` reads them
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from dsf_models.hub.files import new_folder, remove_folder, unfinished_name, write_json
from dsf_models.hub.usage import UsageError
from training.score import Score

_MANIFEST = "manifest.json"
_STEPS, _BEST = "step_????????", "best_????????"
_WRITING_FAILED = (OSError, RuntimeError, SafetensorError)
"""What the libraries that write files raise where the disk is full or gone."""


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

    skipped_steps: int = 0
    """Steps whose gradient was not finite, so that they left the weights alone."""

    skipped_in_a_row: int = 0
    """How many of them were the last ones."""

    seconds: float = 0.0
    """Time spent in these steps."""

    finished: bool = False
    """Whether the training is over, by number of steps or early."""


class CheckpointError(Exception):
    """A checkpoint's file is missing or is not what was saved; the message names it."""


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, position: Mapping[str, Any], keep: int
) -> str | None:
    """Save everything that the rest of the run depends on; to be called on every process.

    Args:
        accelerator: holds model, optimiser and schedule.
        folder: where the checkpoints of this run lie.
        progress: saved with the rest, and names the checkpoint.
        position: where the data of this process go on.
        keep: number of checkpoints to leave; older ones, and weights that none of them needs, are removed.

    Returns:
        None, or what went wrong, on every process alike: the checkpoint could not be saved, of which nothing is left
        then; or it is there, and older ones could not be removed.
    """
    target = folder / f"step_{progress.step:08d}"
    unfinished = unfinished_name(target)

    def on_main(write: Callable[[], None]) -> Callable[[], None]:
        return write if accelerator.is_main_process else lambda: None

    failed = everywhere(accelerator, on_main(lambda: _new_folder(unfinished)))
    failed = failed or everywhere(accelerator, lambda: _save_state(accelerator, unfinished, position))
    failed = failed or everywhere(accelerator, on_main(lambda: _publish(unfinished, target, progress)))
    if failed is not None:
        everywhere(accelerator, on_main(lambda: remove_folder(unfinished)))
        return f"the checkpoint of step {progress.step} could not be saved ({failed})"
    failed = everywhere(accelerator, on_main(lambda: _prune(folder, keep)))
    return failed and f"checkpoints older than that of step {progress.step} could not be removed ({failed})"


def everywhere(accelerator: Accelerator, write: Callable[[], None]) -> str | None:
    """Write something on every process, and return the first complaint of any of them on all; None where all went well.

    Args:
        accelerator: reaches the other processes.
        write: what this process writes.
    """
    found = gather_object([_attempt(write)])
    return next((complaint for complaint in found if complaint is not None), None)


def save_best(
    accelerator: Accelerator, model: PreTrainedModel, state_dict: Mapping[str, Tensor], folder: Path, step: int
) -> str | None:
    """Save the weights of `step` as selected; earlier ones stay until no checkpoint needs them.

    Returns:
        None, or why they could not be written, on every process alike.
    """

    def write() -> None:
        if accelerator.is_main_process:
            with new_folder(best_folder(folder, step)) as unfinished:
                model.save_pretrained(unfinished, state_dict=dict(state_dict))

    return everywhere(accelerator, write)


def best_folder(folder: Path, step: int) -> Path:
    """Where the weights of `step` lie if they were selected."""
    return folder / f"best_{step:08d}"


def newest_checkpoint(folder: Path, num_processes: int) -> tuple[Path | None, Progress, list[str]]:
    """Find the newest checkpoint that is what was saved; nothing is loaded or changed.

    Args:
        folder: where the checkpoints of a run lie.
        num_processes: processes that are to resume it.

    Returns:
        The checkpoint and how far its run had come (None and the very beginning where there is none), and what is wrong
        with each of the newer ones.

    Raises:
        UsageError: all checkpoints are damaged, or the newest good one is of a run with another number of processes.
    """
    complaints: list[str] = []
    for checkpoint in sorted(folder.glob(_STEPS), reverse=True):
        try:
            progress = _read_progress(checkpoint)
        except CheckpointError as error:
            complaints.append(str(error))
            continue
        if progress.num_processes != num_processes:
            raise UsageError(
                f"{checkpoint} was saved by {progress.num_processes} processes, whose random generators are not those "
                f"of {num_processes}: resume with {progress.num_processes}."
            )
        return checkpoint, progress, complaints
    if complaints:
        raise UsageError(f"{' '.join(complaints)} No checkpoint is left: start again with --run.overwrite true.")
    return None, Progress(num_processes=num_processes), complaints


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` saved into the objects of an accelerator, and return the position of the data."""
    accelerator.load_state(str(checkpoint))
    return json.loads((checkpoint / _position_name(accelerator)).read_text(encoding="utf-8"))


def drop_newer(folder: Path, progress: Progress) -> None:
    """Remove what lies behind the checkpoint that a run is resumed from: damaged checkpoints, and their weights."""
    for pattern in (_STEPS, _BEST):
        for path in folder.glob(pattern):
            if int(path.name[-8:]) > progress.step:
                remove_folder(path)


def _attempt(write: Callable[[], None]) -> str | None:
    try:
        write()
    except _WRITING_FAILED as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _new_folder(folder: Path) -> None:
    remove_folder(folder)
    folder.mkdir(parents=True)


def _save_state(accelerator: Accelerator, folder: Path, position: Mapping[str, Any]) -> None:
    accelerator.save_state(str(folder))
    write_json(folder / _position_name(accelerator), dict(position))


def _position_name(accelerator: Accelerator) -> str:
    return f"data_{accelerator.process_index}.json"


def _publish(unfinished: Path, target: Path, progress: Progress) -> None:
    hashes = {f"{target.name}/{file.relative_to(unfinished)}": _sha256(file) for file in _files(unfinished)}
    if progress.best_step is not None:
        best = best_folder(target.parent, progress.best_step)
        hashes |= {f"{best.name}/{file.relative_to(best)}": _sha256(file) for file in _files(best)}
    write_json(unfinished / _MANIFEST, {"progress": asdict(progress), "sha256": hashes})
    remove_folder(target)
    unfinished.rename(target)


def _read_progress(checkpoint: Path) -> Progress:
    """Return how far a run had come at a checkpoint whose files are all what was saved."""
    progress, hashes = _read_manifest(checkpoint)
    for name, expected in hashes.items():
        file = checkpoint.parent / name
        if not file.is_file():
            raise CheckpointError(f"Checkpoint file {file} is missing.")
        if _sha256(file) != expected:
            raise CheckpointError(f"Checkpoint file {file} is not what was saved (its SHA-256 differs).")
    return progress


def _read_manifest(checkpoint: Path) -> tuple[Progress, dict[str, str]]:
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        progress = Progress(**manifest["progress"])
        progress.best_score = progress.best_score and Score(**manifest["progress"]["best_score"])
        return progress, dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"Checkpoint file {checkpoint / _MANIFEST} cannot be read.") from error


def _prune(folder: Path, keep: int) -> None:
    steps = sorted(folder.glob(_STEPS))
    for path in steps[:-keep]:
        remove_folder(path)
    # A run that is resumed from an older checkpoint needs the weights that were the best ones then.
    needed = {_best_step(path) for path in steps[-keep:]}
    for path in folder.glob(_BEST):
        if int(path.name[-8:]) not in needed:
            remove_folder(path)


def _best_step(checkpoint: Path) -> int | None:
    try:
        return _read_manifest(checkpoint)[0].best_step
    except CheckpointError:
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
