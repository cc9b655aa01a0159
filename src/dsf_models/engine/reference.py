"""The sequential reference: the equation, one step at a time, in float64. Every kernel is tested against it."""

import torch
from torch import Tensor

from ..system import DSFSystem

__all__ = ["evaluate_sequential", "sequential_states"]


def evaluate_sequential(system: DSFSystem, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system step by step in float64, for any structure of Λ.

        S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

    Args:
        system: the system, in any dtype.
        state: S_{-1}, (b, h, n, p), or (b, h, n, p + 1) with the normaliser's column; None for zero.

    Returns:
        y (b, t, h, p) and the state at each row's last real token, both in float64; gradients flow to the inputs.
    """
    states = sequential_states(system, state)
    system = system.to(torch.float64)
    return system.read(system.outflow(states)), states[:, -1]


def sequential_states(system: DSFSystem, state: Tensor | None = None) -> Tensor:
    """Return the states S_0 … S_{t-1}, one step at a time in float64.

    Args:
        system: the system, in any dtype.
        state: S_{-1}, as in `evaluate_sequential`; None for zero.

    Returns:
        (b, t, h, n, p), p + 1 with the normaliser's column; behind a row's last real token its state stays as it is.
    """
    system = system.to(torch.float64)
    state = torch.zeros(system.state_shape, dtype=torch.float64, device=system.u.device) if state is None else state
    state = state.double()
    padded = system.padded
    states = []
    for time, added in enumerate(system.inflow().unbind(1)):
        decayed = system.transition.step(state, time)
        if system.starts is not None:
            decayed = decayed.masked_fill(system.starts[:, time, None, None, None], 0.0)
        moved = decayed + added
        state = moved if padded is None else torch.where(padded[:, time, None, None, None], state, moved)
        states.append(state)
    return torch.stack(states, dim=1)
