"""Where the runs of a sweep are processes: on this machine, or on the machines of a Ray cluster."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from dsf_models.hub.usage import UsageError

_SCRIPT = Path(__file__).resolve().with_name("train.py")
_GRACE = 60.0
"""Seconds that a run has to end after it was told to; its checkpoints are whole whenever it is killed."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def stop(self) -> None:
        """Tell it to end, without waiting."""

    def wait(self) -> None:
        """Wait until it has ended, and make it end where it takes too long."""


class Launcher(Protocol):
    """Starts runs."""

    parallel: int | None
    """Runs at a time; None leaves it to the launcher's own queue."""

    def start(self, config: Path, log: Path) -> Job:
        """Start the run of a configuration, or take it up where it was interrupted; what it prints goes to the log."""


class LocalLauncher:
    """Processes of this machine, each on threads of its own and, where there are any, on a GPU of its own."""

    def __init__(self, parallel: int | None, threads: int, kept_open: Sequence[int] = ()) -> None:
        """Share out the machine.

        Args:
            parallel: runs at a time, or None for as many as fit.
            threads: of each run.
            kept_open: file descriptors that the runs inherit.

        Raises:
            UsageError: for more runs than there are GPUs, or more threads than there are cores.
        """
        devices = visible_gpus(os.environ)
        self.parallel = fitting(parallel, threads, usable_cores(), len(devices))
        self._free = devices[: self.parallel]
        self._threads = threads
        self._kept_open = tuple(kept_open)

    def start(self, config: Path, log: Path) -> Job:
        device = self._free.pop(0) if self._free else None
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command(config),
                env=os.environ | run_environment(self._threads, device),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the sweep alone, which then tells each run once.
                start_new_session=True,
                pass_fds=self._kept_open,
            )
        return _LocalJob(process, lambda: self._free.append(device) if device is not None else None)


class _LocalJob:
    def __init__(self, process: subprocess.Popen, give_back: Callable[[], None]) -> None:
        self._process = process
        self._give_back = give_back

    def poll(self) -> int | None:
        running = self._process.returncode is None
        code = self._process.poll()
        if running and code is not None:
            self._give_back()
        return code

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RayLauncher:
    """Tasks of a Ray cluster (RAY_ADDRESS, or one started here), whose machines see code and output under one path."""

    def __init__(self, parallel: int | None, threads: int) -> None:
        """Join the cluster, or start one on this machine.

        Raises:
            UsageError: where ray is not installed, or no cluster answers.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "launcher is 'ray', which is not installed: pip install ray, or use the launcher \"local\"."
            ) from error
        try:
            ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        except ConnectionError as error:
            raise UsageError(
                f"RAY_ADDRESS is {os.environ.get('RAY_ADDRESS')!r}, where no Ray cluster answers: start it with "
                f"`ray start --head`, or unset RAY_ADDRESS. ({error})"
            ) from error
        self.parallel = parallel
        self._ray = ray
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_task_of_ray())
        self._threads = threads

    def start(self, config: Path, log: Path) -> Job:
        stop = log.with_suffix(".stop").absolute()
        stop.unlink(missing_ok=True)
        # Ray itself tells the task its GPU.
        environment = run_environment(self._threads, None)
        words = command(config.absolute())
        reference = self._task.remote(words, environment, str(log.absolute()), str(stop), os.getcwd())
        return _RayJob(self._ray, reference, log, stop)


class _RayJob:
    def __init__(self, ray: Any, reference: Any, log: Path, stop: Path) -> None:
        self._ray = ray
        self._reference = reference
        self._log = log
        self._stop = stop

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            # The machine or the worker was lost, of which the run itself could write nothing.
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(f"{error}\n")
            return 1

    def stop(self) -> None:
        # Ray's own cancellation is a SIGINT, which its workers ignore.
        self._stop.touch()

    def wait(self) -> None:
        self._ray.wait([self._reference], timeout=_GRACE)
        self._stop.unlink()


def _task_of_ray() -> Callable[[list[str], Mapping[str, str], str, str, str], int]:
    """The task of one run, a local function: it travels by value, so that the workers need not import this file."""

    def run(words: list[str], environment: Mapping[str, str], log: str, stop: str, folder: str) -> int:
        import os
        import subprocess

        if os.path.exists(stop):
            return 1
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                words, env=os.environ | environment, cwd=folder, stdout=stream, stderr=subprocess.STDOUT
            )
            told = False
            while process.poll() is None:
                if os.path.exists(stop) and not told:
                    process.terminate()
                    told = True
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        return process.returncode

    return run


def command(config: Path) -> list[str]:
    """Command line of a run: it continues where it was interrupted, and starts where it was never begun."""
    return [sys.executable, str(_SCRIPT), "--config", str(config), "--run.resume", "true"]


def run_environment(threads: int, device: str | None) -> dict[str, str]:
    """Environment variables that keep a run to its threads and to its GPU."""
    pinned = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return pinned if device is None else pinned | {"CUDA_VISIBLE_DEVICES": device}


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    count = torch.cuda.device_count()
    named = environment.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def fitting(parallel: int | None, threads: int, cores: int, gpus: int) -> int:
    """The number of runs at a time.

    Args:
        parallel: as asked for, or None for as many as fit.
        threads: of each run.
        cores: that this process may use.
        gpus: that this process may use.

    Raises:
        UsageError: where that many do not fit.
    """
    if parallel is None:
        return gpus or max(1, cores // threads)
    if gpus and parallel > gpus:
        raise UsageError(f"parallel is {parallel}, but there are {gpus} GPUs: use at most {gpus}, or null.")
    if parallel * threads > cores:
        raise UsageError(
            f"parallel is {parallel} and run.threads {threads}, which need {parallel * threads} cores of {cores}: "
            f"use parallel {max(1, cores // threads)}, or fewer threads."
        )
    return parallel
