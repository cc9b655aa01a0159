"""Runs in processes of their own, killed twice and resumed: the end is that of a run that nobody killed."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.helpers import ROOT, assert_same_weights, command, metrics

pytestmark = pytest.mark.slow
LAUNCHERS = {1: ["python"], 2: ["torchrun", "--standalone", "--nproc_per_node", "2"]}
LOOP = {
    "model__dropout": 0.1,
    "training__max_steps": 120,
    "training__checkpoint_every": 3,
    "training__eval_every": 5,
    "training__gradient_accumulation_steps": 4,
}
"""Checkpoints so often that many a kill meets one; the steps pass through the 50 examples of the task 19 times."""
TEXT = {
    "text__files": f"[{ROOT / 'README.md'}, {ROOT / 'docs'}/*.md]",
    "text__separator": "",
    "text__block_size": 64,
    "text__evaluation_rows": 8,
}
DATA: dict[str, dict[str, Any]] = {
    "task": {},
    "text": TEXT,
    "numbers": {"task__name": "smooth_regression"},
    "stream": TEXT | {"text__streaming": True, "text__shuffle_window": 16},
}


def start(processes: int, folder: Path, data: str, **changes: Any) -> subprocess.Popen:
    return command(LAUNCHERS[processes], folder, **LOOP, **DATA[data], **changes)


def finish(process: subprocess.Popen) -> None:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed


@pytest.fixture(scope="module")
def whole_runs() -> dict[tuple[int, str], Path]:
    """Runs that nobody killed, by number of processes and kind of data; each is made when it is first needed."""
    return {}


def kill_all(process: subprocess.Popen, by: signal.Signals) -> None:
    """Kill a launcher and all that it started, so that nobody tidies up; or send SIGTERM to the launcher alone."""
    # Its workers are in sessions of their own: they would outlive it, and go on.
    workers = psutil.Process(process.pid).children(recursive=True) if by == signal.SIGKILL else []
    for one in (process, *workers):
        one.send_signal(by)
    process.communicate(timeout=120)
    psutil.wait_procs(workers)


def wait_for_a_moment(process: subprocess.Popen, folder: Path, moment: str, kill: int) -> None:
    """Wait until the run has come some way, and for "checkpoint" until one is being written."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = max((int(path.name[-8:]) for path in folder.glob("checkpoints/step_????????")), default=0)
        writing = any(folder.glob("checkpoints/step_*.unfinished"))
        if done >= 12 * (kill + 1) and (writing or moment != "checkpoint"):
            return
        time.sleep(0.0005)
    raise AssertionError(process.communicate()[0])


CASES: Sequence[tuple[str, signal.Signals]] = (
    ("step", signal.SIGKILL),
    ("checkpoint", signal.SIGKILL),
    ("step", signal.SIGTERM),
)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("processes", LAUNCHERS)
@pytest.mark.parametrize(("moment", "by"), CASES, ids=["step-SIGKILL", "checkpoint-SIGKILL", "step-SIGTERM"])
def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    whole_runs: dict[tuple[int, str], Path],
    processes: int,
    data: str,
    moment: str,
    by: signal.Signals,
) -> None:
    if (processes, data) not in whole_runs:
        whole_runs[processes, data] = tmp_path_factory.mktemp("whole") / "run"
        finish(start(processes, whole_runs[processes, data], data))
    folder = tmp_path / "run"
    for kill in range(2):
        process = start(processes, folder, data, run__resume=kill > 0)
        wait_for_a_moment(process, folder, moment, kill)
        kill_all(process, by)
        assert not (folder / "final").exists(), "killed too late to tell anything"
    finish(start(processes, folder, data, run__resume=True))
    assert_same_weights(folder, whole_runs[processes, data])
    assert metrics(folder) == metrics(whole_runs[processes, data])
