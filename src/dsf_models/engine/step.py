"""One step of the recurrence, the form that decoding runs in."""

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import Transition, expand_groups

__all__ = ["evaluate_recurrent", "exact_transition"]


def evaluate_recurrent(system: DSFSystem, state: Tensor, overwrite_state: bool = False) -> tuple[Tensor, Tensor]:
    """Evaluate a system by its recurrence, carrying the state from token to token.

        S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

    Args:
        system: the system; its time dimension is usually 1.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.
        overwrite_state: whether the new state may take the old one's memory, where no gradient needs it.

    Returns:
        y (b, t, h, p) and the state after the last real token.
    """
    if system.input_map is not None:
        return _evaluate_maps(system, state, overwrite_state)
    transition, length = exact_transition(system), system.length
    if length == 1:
        return _evaluate_token(system, transition, state, overwrite_state)
    columns = _each(_by_head(system.B, system).permute(0, 2, 3, 1), 3, length)
    rows = _each(_by_head(system.C, system).transpose(1, 2), 2, length)
    inputs = _each(system.drive().transpose(1, 2), 2, length)
    raw = []
    for time, (b_bhn1, c_bh1n, v_bh1p) in enumerate(zip(columns, rows, inputs, strict=True)):
        moved = transition.step(state, time, in_place=overwrite_state)
        # A state is large: what nobody else holds is added to where it lies.
        add = moved.addcmul if moved is state and not overwrite_state else moved.addcmul_
        state = add(b_bhn1, v_bh1p)
        raw.append(c_bh1n @ state)
    return system.read(torch.cat(raw, dim=2).transpose(1, 2)), state


def _evaluate_token(
    system: DSFSystem, transition: Transition, state: Tensor, overwrite_state: bool
) -> tuple[Tensor, Tensor]:
    """Do the same for one token, without the loop: decoding counts microseconds."""
    moved = transition.step(state, 0, in_place=overwrite_state)
    add = moved.addcmul if moved is state and not overwrite_state else moved.addcmul_
    state = add(_by_head(system.B, system).permute(0, 2, 3, 1), system.drive().transpose(1, 2))
    raw_bh1p = _by_head(system.C, system).transpose(1, 2) @ state
    return system.read(raw_bh1p.transpose(1, 2)), state


def _evaluate_maps(system: DSFSystem, state: Tensor, overwrite_state: bool) -> tuple[Tensor, Tensor]:
    """Do the same with dense B and C: h_i = Λ_i h_{i-1} + input_map u_i, y_i = output_map h_i + D * u_i."""
    transition = exact_transition(system)
    states = []
    for time, added in enumerate(system.inflow().unbind(1)):
        state = transition.step(state, time, in_place=overwrite_state)
        state = state.add_(added) if overwrite_state else state + added
        states.append(state.clone() if overwrite_state and system.length > 1 else state)
    return system.read(system.outflow(torch.stack(states, dim=1))), state


def exact_transition(system: DSFSystem) -> Transition:
    """Return Λ, in float64 where it is constant and applied again and again: its gradient is a sum over all steps."""
    transition = system.effective_transition()
    constant = system.length > 1 and system.transition.time_invariant
    return transition.to(torch.float64) if constant else transition


def _by_head(factor: Tensor, system: DSFSystem) -> Tensor:
    """Return a factor that broadcasts over heads, (b|1, t|1, h|1, n): a single group does, more are repeated."""
    return factor if factor.shape[2] == 1 else expand_groups(factor, system.num_heads)


def _each(x: Tensor, dim: int, length: int) -> tuple[Tensor, ...]:
    """Return the slices of the time dimension, kept with size 1; what does not depend on time is every slice."""
    return (x,) * length if x.shape[dim] == 1 else x.split(1, dim)
