"""Sweeps of training runs, carried out by `training/sweep.py` in a process of its own and kept as small files.

A study's folder keeps `sweep.json` and `results.json`, from which the sweep goes on where its run folders are
missing, and `observations.json`, what was read from the checkpoints while they were there.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dsf_models.hub.files import write_json
from dsf_models.hub.usage import UsageError
from evaluation.papers.study import ROOT

OBSERVATIONS = "observations.json"
_SWEEP, _RESULTS = "sweep.json", "results.json"
_COPIED = (_SWEEP, "table.json", "table.md", "learning_rates.png")
_STATES = {0: "finished", 1: "failed", 3: "left"}


def sweep_folder(config: Path) -> Path:
    """Where a sweep's runs lie."""
    return ROOT / yaml.safe_load(config.read_text(encoding="utf-8"))["output_dir"]


def carry_out(config: Path, kept: Path, hours: float | None, parallel: int | None) -> str:
    """Run what is left of a sweep, and keep what came out.

    Args:
        config: file of the sweep.
        kept: folder that keeps its small files; a sweep without a folder of its own goes on from these.
        hours: time after which it stops, to go on later; None for no limit.
        parallel: runs at a time; None leaves the choice to the sweep.

    Returns:
        "finished"; "left" where time or a signal has stopped it; "failed" where runs have failed.

    Raises:
        UsageError: the sweep is refused.
    """
    folder = sweep_folder(config)
    restore(kept, folder)
    limits = {"--hours": hours, "--parallel": parallel}
    words = [word for name, value in limits.items() if value is not None for word in (name, str(value))]
    script = ROOT / "training" / "sweep.py"
    ended = subprocess.run([sys.executable, script, "--config", config, *words], cwd=ROOT, check=False)
    keep(folder, kept)
    if ended.returncode not in _STATES:
        raise UsageError(f"The sweep {config} has ended with exit code {ended.returncode}: its last line says why.")
    return _STATES[ended.returncode]


def restore(kept: Path, folder: Path) -> None:
    """Give a sweep the results that were kept of it and that it does not have, such as those of another machine."""
    if (kept / _RESULTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _RESULTS, joined(folder / _RESULTS, kept / _RESULTS))
        if (kept / _SWEEP).is_file() and not (folder / _SWEEP).is_file():
            shutil.copyfile(kept / _SWEEP, folder / _SWEEP)


def keep(folder: Path, kept: Path) -> None:
    """Copy the small files of a sweep; no result that was kept before is lost."""
    kept.mkdir(parents=True, exist_ok=True)
    if (folder / _RESULTS).is_file():
        write_json(kept / _RESULTS, joined(folder / _RESULTS, kept / _RESULTS))
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, kept / name)


def joined(first: Path, second: Path) -> dict[str, Any]:
    """The content of two files of results, of which either may be missing; where both know a run, that of the first."""
    contents = [read_json(file) for file in (second, first) if file.is_file()]
    runs: dict[str, Any] = {}
    for run in (run for content in contents for run in content["runs"]):
        if run["result"] is not None or run["name"] not in runs:
            runs[run["name"]] = run
    return {"tuned": contents[-1]["tuned"], "runs": list(runs.values())}


def observe(folder: Path, kept: Path, look: Callable[[Path], Mapping[str, Any]]) -> None:
    """Look at the checkpoint of each finished run that is there and was not yet looked at.

    Args:
        folder: of the sweep.
        kept: keeps what was seen, by the name of the run.
        look: reads a checkpoint folder.
    """
    seen = observations(kept)
    for checkpoint in sorted((folder / "runs").glob("*/final")):
        if checkpoint.parent.name not in seen:
            seen[checkpoint.parent.name] = dict(look(checkpoint))
    write_json(kept / OBSERVATIONS, seen)


def observations(kept: Path) -> dict[str, Any]:
    """What was seen in the checkpoints, by the name of the run."""
    return read_json(kept / OBSERVATIONS) if (kept / OBSERVATIONS).is_file() else {}


def read_json(file: Path) -> Any:
    """Read a file of a study.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): run the study first.") from error
