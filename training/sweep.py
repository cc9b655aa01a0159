"""Run a grid or a random search over any field of a training run, and table what came out.

    python training/sweep.py --config configs/mqar/lr_64_4.yaml --dry-run
    python training/sweep.py --config configs/mqar/lr_64_4.yaml --parallel 2 --hours 1.5
    python training/sweep.py --config configs/mqar/lr_64_4.yaml --table

Every run is a process of its own. The same command goes on after an interruption: finished runs are skipped, begun ones
continue, failed ones are tried again. A sweep may grow; other changes are refused. With `sweep.json` and `results.json`
it goes on elsewhere, or where the folders of finished runs have been deleted.

    sweep.json                  every run and its settings
    configs/, runs/, logs/      configuration, folder and output of each run
    failures.json               exit code and last lines of each run that failed
    results.json                every result in one file
    table.md, table.json        what they amount to
    learning_rates.png          curves, where the learning rate was swept

Exit code: 0 when every run has finished, 1 when some have failed, 2 when the sweep is refused, 3 when some are left.
From top to bottom: setup -> main -> carry_out -> run_all -> report. `sweep_config.py` lists all that can be set.
"""

import fcntl
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsf_models.hub.files import write_json, write_text
from dsf_models.hub.usage import UsageError
from training.config import config_to_yaml, differences
from training.result import RESULT
from training.sweep_check import check_runs
from training.sweep_config import LEARNING_RATE, SweepConfig, parse_sweep
from training.sweep_figure import draw_learning_rates
from training.sweep_launch import Job, Launcher, LocalLauncher, RayLauncher
from training.sweep_plan import PlannedRun, base_config, plan, record_of
from training.sweep_report import markdown
from training.sweep_table import RESULTS, kept_results, read_runs, table_rows

_PAUSE = 0.2
_TAIL_LINES = 20
_FINISHED, _FAILED, _REFUSED, _LEFT = 0, 1, 2, 3


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: do as told and exit with a code that says how it went, or say in one line why not."""
    try:
        code = main(*parse_sweep(arguments))
    except UsageError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        sys.exit(_REFUSED)
    sys.exit(code)


def main(sweep: SweepConfig, action: str) -> int:
    """Run, check or table a sweep.

    Args:
        sweep: the sweep.
        action: "run", "dry-run" or "table".

    Returns:
        The exit code.

    Raises:
        UsageError: naming what is wrong and how to put it right; nothing has been written then.
    """
    if action == "table":
        report(sweep.folder)
        return _FINISHED
    runs = plan(sweep)
    record = record_of(sweep, runs)
    check_unchanged(sweep.folder, record)
    check_runs(runs)
    if action == "dry-run":
        for run in runs:
            print(f"--- # {run.name}\n{config_to_yaml(run.config)}", end="")
        print(f"{len(runs)} runs, each of which can be built.", file=sys.stderr)
        return _FINISHED
    return carry_out(sweep, runs, record)


def carry_out(sweep: SweepConfig, runs: Sequence[PlannedRun], record: dict[str, Any]) -> int:
    """Run what is left of a sweep, then report."""
    started = time.monotonic()
    folder = sweep.folder
    for name in ("configs", "logs", "runs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with only_one_sweep(folder) as lock:
        launcher = build_launcher(sweep, lock)
        write_json(folder / "sweep.json", record)
        for run in runs:
            write_text(folder / "configs" / f"{run.name}.yaml", config_to_yaml(run.config))
        end = None if sweep.hours is None else started + 3600 * sweep.hours
        # Behind the launcher: Ray installs signal handlers of its own, by which a process dies at once.
        with stop_on_signals() as stop:
            failures = run_all(folder, [run.name for run in runs], launcher, stop, end)
    left = len(unfinished(folder, [run.name for run in runs])) - len(failures)
    report(folder)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure['log_tail'][-1] if failure['log_tail'] else failure['exit_code']}")
    print(f"{len(runs) - left - len(failures)} finished, {len(failures)} failed, {left} left of {len(runs)} runs.")
    return _FAILED if failures else _LEFT if left else _FINISHED


def run_all(
    folder: Path, names: Sequence[str], launcher: Launcher, stop: Event, end: float | None
) -> dict[str, dict[str, Any]]:
    """Start runs as room comes free, until all have ended, the time is up or a signal has come.

    Args:
        folder: of the sweep.
        names: of all its runs.
        launcher: starts them.
        stop: set by a signal.
        end: on the monotonic clock; what runs then is stopped so that it can be resumed.

    Returns:
        By name the failures that stand: `exit_code` and `log_tail`.
    """
    failures = {name: failure for name, failure in read_failures(folder).items() if name in names}
    waiting = unfinished(folder, names)
    # What failed before has its turn after what has not been tried.
    waiting.sort(key=lambda name: name in failures)
    total, running = len(names), {}
    try:
        while (waiting or running) and not stop.is_set() and (end is None or time.monotonic() < end):
            while waiting and (launcher.parallel is None or len(running) < launcher.parallel):
                name = waiting.pop(0)
                failures.pop(name, None)
                running[name] = launcher.start(folder / "configs" / f"{name}.yaml", log_of(folder, name))
            for name, code in [(name, job.poll()) for name, job in running.items()]:
                if code is not None:
                    del running[name]
                    if failure := failure_of(folder, name, code):
                        failures[name] = failure
                    write_json(folder / "failures.json", failures)
                    done = total - len(waiting) - len(running)
                    print(f"[{done}/{total}] {name}: {'failed' if failure else outcome(folder, name)}", flush=True)
            stop.wait(_PAUSE)
    finally:
        stop_jobs(running.values())
    return failures


def stop_jobs(jobs: Sequence[Job]) -> None:
    """Tell all to end, then wait for each."""
    for job in jobs:
        job.stop()
    for job in jobs:
        job.wait()


def report(folder: Path) -> None:
    """Write results, table and figure from the files of the runs alone, and print the table."""
    runs, tuned = read_runs(folder)
    rows = table_rows(runs, tuned)
    text = markdown(rows, runs)
    results = [{"name": run.name, "axes": dict(run.axes), "seeds": run.seeds, "result": run.result} for run in runs]
    write_json(folder / RESULTS, {"tuned": tuned, "runs": results})
    write_json(folder / "table.json", [row.to_dict() for row in rows])
    write_text(folder / "table.md", text)
    print(text)
    if LEARNING_RATE in tuned:
        draw_learning_rates(rows, folder / "learning_rates.png")


def unfinished(folder: Path, names: Sequence[str]) -> list[str]:
    """Those runs that have neither published their model and result nor, without a folder, had their result kept."""
    kept = kept_results(folder)
    return [name for name in names if name not in kept and not is_published(folder, name)]


def is_published(folder: Path, name: str) -> bool:
    """Whether a run's folder holds its model and its result."""
    run = folder / "runs" / name
    return (run / "final").is_dir() and (run / RESULT).is_file()


def failure_of(folder: Path, name: str, exit_code: int) -> dict[str, Any] | None:
    """What is known about a run that has ended without its result; None for one that has it."""
    if exit_code == 0 and is_published(folder, name):
        return None
    lines = log_of(folder, name).read_text(encoding="utf-8", errors="replace").splitlines()
    return {"exit_code": exit_code, "log_tail": lines[-_TAIL_LINES:]}


def outcome(folder: Path, name: str) -> str:
    """A finished run in a few words."""
    result = json.loads((folder / "runs" / name / RESULT).read_text(encoding="utf-8"))
    test = result["test"]
    # A loss that is not finite is null, and a run that has diverged is none that has failed.
    loss = "no finite loss" if test["loss"] is None else f"loss {test['loss']:.4g}"
    reached = f"{100 * test['accuracy']:.2f} %" if test.get("accuracy") is not None else loss
    return f"{reached} after {result['steps']} steps, {result['seconds']:.0f} s"


def log_of(folder: Path, name: str) -> Path:
    """Where a run's output goes, that of every launch after that of the one before."""
    return folder / "logs" / f"{name}.txt"


def read_failures(folder: Path) -> dict[str, dict[str, Any]]:
    """Failures of earlier launches."""
    file = folder / "failures.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def check_unchanged(folder: Path, record: dict[str, Any]) -> None:
    """Refuse to mix the runs of two sweeps in one folder, and to write to a folder of something else.

    Raises:
        UsageError: naming what differs.
    """
    file = folder / "sweep.json"
    if not file.is_file():
        if folder.exists() and any(path.name not in ("configs", "logs", "runs", "lock") for path in folder.iterdir()):
            raise UsageError(f"output_dir is {str(folder)!r}, which holds something else than a sweep: give a new one.")
        return
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = differences(old["base"], record["base"])
    changed += [f"{name} is gone" for name in old["runs"].keys() - record["runs"].keys()]
    for name in old["runs"].keys() & record["runs"].keys():
        changed += differences(old["runs"][name], record["runs"][name], f"{name}: ")
    if changed:
        shown = "; ".join(sorted(changed)[:10]) + (f"; and {len(changed) - 10} more" if len(changed) > 10 else "")
        raise UsageError(
            f"output_dir is {str(folder)!r}, whose sweep may grow but not change, and it differs: {shown}. "
            "Put it back, or give another folder."
        )


def build_launcher(sweep: SweepConfig, lock: IO[Any]) -> Launcher:
    """The launcher of a sweep."""
    threads = base_config(sweep).run.threads
    if sweep.launcher == "ray":
        return RayLauncher(sweep.parallel, threads)
    return LocalLauncher(sweep.parallel, threads, [lock.fileno()])


@contextmanager
def only_one_sweep(folder: Path) -> Iterator[IO[Any]]:
    """Hold the lock of a sweep's folder, which its runs inherit: it lasts until the last of them has ended.

    Raises:
        UsageError: where another process holds it.
    """
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"output_dir is {str(folder)!r}, where another sweep is at work, or runs of one that was killed: wait "
                "for them to end, or end them."
            ) from error
        yield lock


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """Let Ctrl-C and SIGTERM set an event in place of ending this process at once."""
    stop = Event()
    handler: Callable[..., None] = lambda *_: stop.set()  # noqa: E731
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


if __name__ == "__main__":
    setup()
