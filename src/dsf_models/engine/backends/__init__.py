"""Which code evaluates a system: the engine's own torch kernels, or the kernels of other packages on a GPU.

Every system can be evaluated by torch. On a CUDA device the "chunked" mode, and the "recurrent" mode of more than one
step, go to fla-core or mamba-ssm where these are installed and support the case; with the extra `[cuda]` fla-core is.
That is backend "auto". A backend that is named instead is the one that runs, or else the reason is raised.

Nothing here is imported before a system lies on such a device.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ...system import DSFSystem
from ...transitions import DSFSystemError
from . import fla, mamba_ssm

__all__ = ["BACKENDS", "BackendChoice", "accelerator", "choose_backend", "run", "set_backend", "use_backend"]

BACKENDS = ("auto", "torch", "fla", "mamba_ssm")
DEVICE_TYPES = ("cuda",)
"""Devices that kernels of other packages run on."""
ACCELERATORS: dict[str, ModuleType] = {"fla": fla, "mamba_ssm": mamba_ssm}
"""The other packages: modules with `op`, `obstacle`, `reservation` and `missing` of (system, mode), of which the last
alone imports the package, and with `evaluate(system, state, mode)`."""

_selected = "auto"


class BackendChoice(NamedTuple):
    """What evaluates a system, and why nothing else does."""

    name: str
    """Name of the backend: "torch", "fla" or "mamba_ssm"."""
    op: str
    """The function that does the work."""
    passed_over: dict[str, str]
    """Why each backend that would have come first does not run: an obstacle, or what speaks against it."""


def set_backend(name: str) -> None:
    """Choose the backend of every evaluation that names none: "auto" (at the start), "torch", "fla" or "mamba_ssm".

    Raises:
        DSFSystemError: an unknown name.
    """
    global _selected
    _selected = _checked_name(name)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block, as `set_backend` does.

    Raises:
        DSFSystemError: an unknown name.
    """
    before = _selected
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def choose_backend(system: DSFSystem, mode: str | None = None, backend: str | None = None) -> BackendChoice:
    """Return what `evaluate` would run at these arguments, and why not the others.

    Args:
        system: the system that would be evaluated.
        mode: mode of evaluation; default "recurrent" for a single token, else "chunked".
        backend: name of a backend; default what `set_backend` or `use_backend` chose.

    Raises:
        DSFSystemError: an unknown name, or a named backend that cannot evaluate the system; the message says why.
    """
    name = _checked_name(backend or _selected)
    mode = mode or ("recurrent" if system.length == 1 else "chunked")
    if name in ACCELERATORS:
        reason = _obstacle(name, system, mode) or ACCELERATORS[name].missing(system, mode)
        if reason is not None:
            raise DSFSystemError(f'backend={name!r} cannot evaluate this system: {reason} Or use backend="torch".')
        return BackendChoice(name, ACCELERATORS[name].op(system, mode), {})
    passed_over = {}
    for other, package in ACCELERATORS.items():
        reason = 'backend="torch" was chosen.' if name == "torch" else _obstacle(other, system, mode)
        reason = reason or _reservation(system, mode) or package.reservation(system, mode)
        reason = reason or package.missing(system, mode)
        if reason is None:
            return BackendChoice(other, package.op(system, mode), passed_over)
        passed_over[other] = reason
    return BackendChoice("torch", f"dsf_models.engine, mode {mode!r}", passed_over)


def accelerator(
    system: DSFSystem, mode: str, backend: str | None, device_type: str, chunk_size: int | None
) -> str | None:
    """Return the package that is to evaluate a system, None for torch; next to nothing where that is clear.

    Args:
        system: the system.
        mode: mode of evaluation.
        backend: name of a backend, None for the selected one.
        device_type: where u lies.
        chunk_size: chunk length asked for, which only torch's kernels take.

    Raises:
        DSFSystemError: an unknown name, or a named backend that cannot evaluate the system or take the chunk size.
    """
    name = backend or _selected
    if name == "torch" or (name == "auto" and device_type not in DEVICE_TYPES):
        return None
    if name == "auto" and (chunk_size is not None or torch.compiler.is_compiling()):
        return None
    return _accelerator(system, mode, name, chunk_size)


@torch.compiler.disable
def run(name: str, system: DSFSystem, state: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Evaluate a system by a package that `accelerator` named."""
    return ACCELERATORS[name].evaluate(system, state, mode)


@torch.compiler.disable
def _accelerator(system: DSFSystem, mode: str, name: str, chunk_size: int | None) -> str | None:
    chosen = choose_backend(system, mode, name).name
    if chosen != "torch" and chunk_size is not None:
        raise DSFSystemError(f'chunk_size={chunk_size}: backend={name!r} has its own; leave it out, or use "torch".')
    return None if chosen == "torch" else chosen


def _checked_name(name: str) -> str:
    if name not in BACKENDS:
        raise DSFSystemError(f"backend={name!r} is unknown: use one of {', '.join(map(repr, BACKENDS))}.")
    return name


def _obstacle(name: str, system: DSFSystem, mode: str) -> str | None:
    """Return why a package cannot evaluate a system at all, with the remedy; None where it can."""
    device, dtype = system.u.device.type, system.u.dtype
    if device not in DEVICE_TYPES:
        return f"u lies on {device!r}: move the model and its inputs to a CUDA device."
    if dtype == torch.float64:
        return "u is float64, which its kernels would compute in float32."
    if system.input_map is not None:
        return "it has input_map and output_map, and its kernels take factors B and C."
    reason = ACCELERATORS[name].obstacle(system, mode)
    if reason is None and any(x.dtype == torch.float64 for x in vars(system.transition).values() if torch.is_tensor(x)):
        return f"Λ is float64, more exact than u's {dtype}, and its kernels would lose that."
    return reason


def _reservation(system: DSFSystem, mode: str) -> str | None:
    """Return why "auto" rather takes torch where any package could evaluate a system."""
    if mode == "recurrent" and system.length == 1:
        return "one token is one step: torch takes it in place, and compiles it into one graph."
    if torch.compiler.is_compiling():
        return "torch.compile sees one graph in torch's kernels: name the backend to break it."
    return None
