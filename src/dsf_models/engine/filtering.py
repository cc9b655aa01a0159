"""Two-sided and windowed filters, made of what evaluates a system.

A finite window is a convolution with U + 1 taps, the impulse response of the system, whose state is a delay line of the
last U inputs. The difference of two running sums, C Λ^l B - C Λ^U Λ^{l-U} B, needs the same line and is 0 beyond the
window in exact arithmetic only: at |λ| = 1 its rounding errors add up.

Letters: b batch, t time, h heads, p head width; l lag, U window.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..filters import FilterSystem, mirror
from ..system import DSFSystem, DSFSystemError
from .convolution import causal_convolution, next_window

__all__ = ["evaluate_filter"]

Run = Callable[..., tuple[Tensor, Tensor]]


def evaluate_filter(system: FilterSystem, run: Run, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Evaluate a filter; where it is two-sided, by a pass in each direction.

    Args:
        system: the filter.
        run: evaluates a `DSFSystem`: run(system, state=…) -> (y, state).
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
    y, state = _windowed(system.forward, system.window, run, state)
    if system.backward is not None:
        # The mirrored inputs come one step late, so its lag 0 is lag 1.
        behind, _ = _windowed(system.mirrored(), system.window - 1, run, None)
        y = y + mirror(behind, system.lengths)
    return y, state


def _windowed(system: DSFSystem, window: int, run: Run, line: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve with the first `window` + 1 values of the impulse response; returns y and the next delay line."""
    u = system.u
    lags = window if line is not None else min(window, system.length - 1)
    line = u.new_zeros(u.shape[0], window, *u.shape[2:]) if line is None else line.to(u.dtype)
    inputs = torch.cat([line, u], dim=1).flatten(2)
    taps = _impulse_response(system, lags, run).flip(0).flatten(1)
    y = causal_convolution(inputs[:, window - lags :], taps, None, system.starts).unflatten(2, u.shape[2:])
    padded = system.padded
    y = y if padded is None else y.masked_fill(padded[..., None, None], 0.0)
    following = next_window(inputs, window, system.starts, system.lengths).unflatten(2, u.shape[2:])
    return y, following


def _impulse_response(system: DSFSystem, lags: int, run: Run) -> Tensor:
    """Return K_0 … K_lags of every channel, (lags + 1, h, p)."""
    impulse = F.pad(torch.ones_like(system.u[:1, :1]), (0, 0, 0, 0, 0, lags))
    return run(replace(system, u=impulse, starts=None, lengths=None))[0][0]
