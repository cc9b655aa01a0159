"""Evaluates a DSF system: a sequential reference, and a fast kernel for each structure of Λ.

`evaluate(system, mode, state)` is the whole interface; state is an argument and a result. Modes, all equal to the
float64 sequential reference:

* "recurrent": token by token, the form of decoding;
* "chunked": matrix products inside chunks, linear in length, the form of training and prefill;
* "matrix": Φ materialised, quadratic in length, the form of theory;
* "convolution": fast Fourier transforms, for time-invariant systems alone.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..filters import FilterSystem
from ..system import DSFSystem
from ..transitions import (
    DPLR,
    DeltaRule,
    Diagonal,
    DSFSystemError,
    ElementwiseDecay,
    FactoredDecay,
    Identity,
    KeyDiagonal,
    Rotation,
    ScalarDecay,
    Transition,
)
from .backends import BackendChoice, accelerator, choose_backend, run, set_backend, use_backend
from .convolution import causal_convolution, next_window
from .cost import Flops, recurrent_flops, scan_flops
from .delta_rule import delta_rule_flops, evaluate_delta_rule
from .diagonal import evaluate_diagonal
from .dplr import chunked_dplr_flops, evaluate_chunked_dplr
from .elementwise import evaluate_elementwise
from .exporting import evaluate_scan, leaves_length_open, scan_steps
from .factored import evaluate_factored
from .filtering import evaluate_filter, filter_flops
from .key_diagonal import evaluate_key_diagonal, key_diagonal_flops
from .matrix import evaluate_matrix
from .reference import evaluate_sequential, sequential_states
from .rotation import evaluate_rotation, rotation_flops
from .scalar import chunked_flops, evaluate_chunked
from .step import evaluate_recurrent
from .time_invariant import evaluate_convolution

__all__ = [
    "MODES",
    "BackendChoice",
    "Flops",
    "causal_convolution",
    "choose_backend",
    "compute_dtype",
    "evaluate",
    "evaluate_sequential",
    "full_precision",
    "initial_state",
    "kernel_flops",
    "modes_of",
    "next_window",
    "scan_steps",
    "sequential_states",
    "set_backend",
    "use_backend",
]

System = TypeVar("System", DSFSystem, FilterSystem)

MODES = ("recurrent", "chunked", "matrix")
"""The modes that take every system; see `modes_of`."""

CHUNKED_KERNELS = {
    Identity: evaluate_chunked,
    ScalarDecay: evaluate_chunked,
    ElementwiseDecay: evaluate_elementwise,
    Diagonal: evaluate_diagonal,
    FactoredDecay: evaluate_factored,
    KeyDiagonal: evaluate_key_diagonal,
    DeltaRule: evaluate_delta_rule,
    DPLR: evaluate_chunked_dplr,
    Rotation: evaluate_rotation,
}
"""The chunked kernel of each structure of Λ."""
CHUNKED_KERNELS_OF_MAPS = {Rotation: evaluate_rotation}
"""The chunked kernels that take dense maps in place of B and C."""


def modes_of(system: DSFSystem) -> tuple[str, ...]:
    """Return the modes that take a system: `MODES`, and "convolution" where it is time-invariant."""
    return (*MODES, "convolution") if system.time_invariant else MODES


CHUNKED_COSTS = {
    Identity: chunked_flops,
    ScalarDecay: chunked_flops,
    KeyDiagonal: key_diagonal_flops,
    DeltaRule: delta_rule_flops,
    DPLR: chunked_dplr_flops,
    Rotation: rotation_flops,
}
"""What the chunked kernel costs where it is made of matrix products; others walk step by step."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that states are carried in: float32 for half precisions and float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def initial_state(system: DSFSystem) -> Tensor:
    """Return the zero state of a system: (b, h, n, p), or (b, h, n, p + 1) with the normaliser's column."""
    return torch.zeros(system.state_shape, dtype=compute_dtype(system.u.dtype), device=system.u.device)


def evaluate(
    system: DSFSystem | FilterSystem,
    mode: str | None = None,
    state: Tensor | None = None,
    chunk_size: int | None = None,
    overwrite_state: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate a DSF system.

        h_i = Λ_i h_{i-1} + B_i u_i        y_i = C_i h_i + D_i u_i

    Args:
        system: one realisation at given inputs; or a filter made of one, whose passes run in the mode.
        mode: "recurrent", "chunked", "matrix", or "convolution" for a time-invariant system; default "recurrent" for a
            single token, else "chunked".
        state: initial head states, (b, h, n, p), or (b, h, n, p + 1) for a normalised system, or (b, 1, N, 1) for one
            with maps; the delay line of a windowed filter, (b, U, h, p); None for zero.
        chunk_size: chunk length of the chunked mode; default the kernel's own.
        overwrite_state: whether the new state may take the given one's memory (decoding does; never where gradients
            flow).
        backend: "auto", "torch", "fla" or "mamba_ssm"; default what `set_backend` or `use_backend` chose, "auto" at the
            start. `choose_backend` says what runs and why.

    Returns:
        y (b, t, h, p) in u's dtype, and the state at each row's last real token, at least float32. Gradients flow
        through both and through the initial state.

    Raises:
        DSFSystemError: unknown mode or backend, a backend that cannot evaluate the system, a chunk size below 1 or one
            for a backend that has its own, a state of the wrong shape, or mode "convolution" for a system that depends
            on time.
    """
    with full_precision(system.u.device.type):
        if isinstance(system, FilterSystem):
            one_pass = functools.partial(evaluate, mode=mode, chunk_size=chunk_size, backend=backend)
            y, state = evaluate_filter(_in_compute_dtype(system), one_pass, state)
        else:
            y, state = _evaluate_system(system, mode, state, chunk_size, overwrite_state, backend)
    return y if y.dtype == system.u.dtype else y.to(system.u.dtype), state


def _evaluate_system(
    system: DSFSystem,
    mode: str | None,
    state: Tensor | None,
    chunk_size: int | None,
    overwrite_state: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    if mode is None and chunk_size is None and leaves_length_open(system):
        work = _in_compute_dtype(system)
        return evaluate_scan(work, _checked_state(work, state, work.u.dtype))
    mode = mode or ("recurrent" if system.length == 1 else "chunked")
    known = (*MODES, "convolution")
    if mode not in known:
        raise DSFSystemError(f"mode={mode!r} is unknown: use one of {', '.join(map(repr, known))}.")
    if chunk_size is not None and chunk_size < 1:
        raise DSFSystemError(f"chunk_size={chunk_size} is below 1: give the number of steps in a chunk.")
    accelerated = accelerator(system, mode, backend, system.u.device.type, chunk_size)
    if accelerated is not None:
        return run(accelerated, system, _checked_state(system, state, compute_dtype(system.u.dtype)), mode)
    work = _in_compute_dtype(system)
    state = _checked_state(work, state, work.u.dtype)
    if mode == "recurrent":
        return evaluate_recurrent(work, state, overwrite_state and not torch.is_grad_enabled())
    if mode == "matrix":
        return evaluate_matrix(work, state)
    if mode == "convolution":
        return evaluate_convolution(work, state)
    kernel = _chunked_kernel(work)
    return kernel(work, state) if chunk_size is None else kernel(work, state, chunk_size)


def _in_compute_dtype(system: System) -> System:
    """Return the system in at least float32.

    One in float32 is taken as it is: its decays may be float64, as those of `rescale` are, and stay exact.
    """
    return system if system.u.dtype == torch.float32 else system.to(compute_dtype(system.u.dtype))


def kernel_flops(system: DSFSystem | FilterSystem, length: int) -> Flops:
    """Return what `evaluate` costs for one sequence of `length` steps, in the mode that it takes by itself.

    Args:
        system: any system with these sizes and this structure of Λ; its values and its length do not matter.
        length: number of steps; 1 is a step of decoding.
    """
    if isinstance(system, FilterSystem):
        return filter_flops(system, length, kernel_flops)
    cost = recurrent_flops if length == 1 else CHUNKED_COSTS.get(type(system.transition), scan_flops)
    return cost(system, length)


def _chunked_kernel(system: DSFSystem) -> Callable[..., tuple[Tensor, Tensor]]:
    dense = system.input_map is not None
    kernels: dict[type[Transition], Callable] = CHUNKED_KERNELS_OF_MAPS if dense else CHUNKED_KERNELS
    kernel = kernels.get(type(system.transition))
    if kernel is None:
        what = f"structure {system.transition.name!r}" + (" with input_map and output_map" if dense else "")
        raise DSFSystemError(
            f'mode="chunked" has no kernel for Λ of {what}: write one in engine/, or use mode="matrix".'
        )
    return kernel


def _checked_state(system: DSFSystem, state: Tensor | None, dtype: torch.dtype) -> Tensor:
    if state is None:
        return initial_state(system)
    if tuple(state.shape) != system.state_shape:
        raise DSFSystemError(
            f"state has shape {tuple(state.shape)}; give {system.state_shape}: (b, h, n, p), p + 1 with a normaliser."
        )
    return state.to(dtype)


def full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Switch autocast off: states and running decays are never computed in half precision."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
