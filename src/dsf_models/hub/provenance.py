"""Where a result comes from: library versions, the commit of this code, the hardware and the thread counts."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = (
    "dsf-models",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "numpy",
)


def environment_facts() -> dict[str, Any]:
    """Everything that a reader needs in order to judge or to repeat a result.

    Returns:
        A JSON-serialisable dictionary with the keys `versions`, `commit`, `uncommitted_changes`, `hardware` and
        `threads`.
    """
    commit = git_commit()
    return {
        "versions": library_versions(),
        "commit": commit,
        "uncommitted_changes": None if commit is None else has_uncommitted_changes(),
        "hardware": hardware(),
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
    }


def library_versions() -> dict[str, str]:
    """Installed versions of Python and of the libraries that decide a result; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # The installed metadata of torch drops the build ("+cpu", "+cu126"), which decides the numerics.
    versions["torch"] = torch.__version__
    return versions


def git_commit() -> str | None:
    """Hash of the commit that this package was imported from, or None where it is not under version control."""
    here = Path(__file__).resolve()
    # A package installed into an environment that lies inside some other repository must not claim its commit.
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git("rev-parse", "HEAD")


def has_uncommitted_changes() -> bool:
    """Whether this package's repository holds changed or new files that its commit does not."""
    return bool(_git("status", "--porcelain"))


def hardware() -> dict[str, Any]:
    """Processor and accelerators of this machine."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cores": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(*arguments: str) -> str | None:
    # Optional locks are off so that looking never disturbs a git command that somebody else is running.
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
