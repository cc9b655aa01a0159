"""Two-sided and windowed filters, made of what evaluates a system.

A finite window is a convolution with U + 1 taps, the first values of the system's kernel; its state is a delay line of
the last U inputs. The difference of two running sums, C Λ^l B - C Λ^U Λ^{l-U} B, needs the same line, and is 0 beyond
the window in exact arithmetic only: at |λ| = 1 its rounding errors add up.

Letters: b batch, t time, h heads, p head width; l lag, U window.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..filters import FilterSystem, mirror
from ..system import DSFSystem, DSFSystemError
from .convolution import causal_convolution, dense_causal_convolution, next_window
from .cost import Flops

__all__ = ["evaluate_filter", "filter_flops"]

Run = Callable[..., tuple[Tensor, Tensor]]


def evaluate_filter(system: FilterSystem, run: Run, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Evaluate a filter; where it is two-sided, by a pass in each direction.

    Args:
        system: the filter.
        run: evaluates a `DSFSystem` without a window: run(system, state=…) -> (y, state).
        state: the delay line (b, U, h, p), or without a window the forward system's state; None for zeros.

    Returns:
        y (b, t, h, p), and the state of the forward pass at each row's last real token.

    Raises:
        DSFSystemError: a state was given to a two-sided filter, which has none to go on from, or one of a wrong shape.
    """
    if state is not None and system.backward is not None:
        raise DSFSystemError("state is given, but a two-sided filter needs the whole sequence: leave it out.")
    if system.window is None:
        y, state = run(system.forward, state=state)
        return (y, state) if system.backward is None else (y + mirror(run(system.mirrored())[0], system.lengths), state)
    if state is not None and tuple(state.shape) != system.state_shape:
        raise DSFSystemError(f"state has shape {tuple(state.shape)}; give the delay line {system.state_shape}.")
    y, state = _windowed(system.forward, system.window, state)
    if system.backward is not None:
        # The mirrored inputs come one step late, so its lag 0 is lag 1.
        behind, _ = _windowed(system.mirrored(), system.window - 1, None)
        y = y + mirror(behind, system.lengths)
    return y, state


def _windowed(system: DSFSystem, window: int, line: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve with the first `window` + 1 values of the kernel; returns y and the next delay line (b, U, h, p)."""
    u = system.u
    lags = window if line is not None else min(window, system.length - 1)
    line = u.new_zeros(u.shape[0], window, *u.shape[2:]) if line is None else line.to(u.dtype)
    inputs = torch.cat([line, u], dim=1).flatten(2)
    convolve = causal_convolution if system.input_map is None else dense_causal_convolution
    y = convolve(inputs[:, window - lags :], _taps(system, lags), None, system.starts).unflatten(2, u.shape[2:])
    padded = system.padded
    y = y if padded is None else y.masked_fill(padded[..., None, None], 0.0)
    following = next_window(inputs, window, system.starts, system.lengths).unflatten(2, u.shape[2:])
    return y, following


def _taps(system: DSFSystem, lags: int) -> Tensor:
    """Return K_lags … K_0, one number a channel (lags + 1, d), or matrices (lags + 1, d, d) where channels mix."""
    kernel = system.kernel(lags + 1)[0].to(system.u.dtype)
    if system.input_map is not None:
        return kernel[0].movedim(-1, 0).flip(0)
    kernel = kernel if kernel.ndim == 3 else kernel[:, None].expand(-1, system.head_dim, -1)
    return kernel.flatten(0, 1).T.flip(0)


def filter_flops(system: FilterSystem, length: int, cost: Callable[[DSFSystem, int], Flops]) -> Flops:
    """Return what a filter costs for one sequence of `length` steps.

    The taps of a window, which all sequences of a batch share, count in full, as steps of Λ and products with C.

    Args:
        system: any filter of these sizes.
        length: number of steps; 1 is a step of decoding, behind a full delay line.
        cost: what a `DSFSystem` costs without a window.
    """
    passes = [(system.forward, system.window)]
    if system.backward is not None:
        passes.append((system.backward, None if system.window is None else system.window - 1))
    if system.window is None:
        return sum((cost(one, length) for one, _ in passes), Flops())
    return sum((_window_flops(one, length, window) for one, window in passes), Flops())


def _window_flops(system: DSFSystem, length: int, window: int) -> Flops:
    taps = 1 + (window if length == 1 else min(window, length - 1))
    _, num_heads, n, p = system.state_shape
    if system.input_map is None:
        powers = Flops(matmul=2 * num_heads * n, elementwise=system.transition.flops_per_entry * num_heads * n)
        return (powers + Flops(elementwise=2 * num_heads * p * length)) * taps
    d = system.u.shape[3]
    powers = Flops(matmul=2 * n * d * d, elementwise=system.transition.flops_per_entry * n * d)
    return (powers + Flops(matmul=2 * d * d * length)) * taps
