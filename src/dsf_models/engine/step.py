"""One step of the recurrence, the form that decoding runs in."""

import torch
from torch import Tensor

from ..system import DSFSystem
from ..transitions import expand_groups

__all__ = ["evaluate_recurrent"]


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
    transition = system.effective_transition()
    steps = zip(_steps(system.B, system), _steps(system.C, system), system.drive().unbind(1), strict=True)
    raw = []
    for time, (b_bhn, c_bhn, drive_bhp) in enumerate(steps):
        moved = transition.step(state, time, in_place=overwrite_state)
        # A state is large: what nobody else holds is added to where it lies.
        add = moved.addcmul if moved is state and not overwrite_state else moved.addcmul_
        state = add(b_bhn[..., None], drive_bhp[..., None, :])
        raw.append((c_bhn[..., None, :] @ state).squeeze(-2))
    return system.read(raw[0][:, None] if len(raw) == 1 else torch.stack(raw, dim=1)), state


def _steps(factor: Tensor, system: DSFSystem) -> tuple[Tensor, ...]:
    """Return the factor of every step, (b|1, h|1, n): a single group broadcasts, more are repeated."""
    if factor.shape[2] > 1:
        factor = expand_groups(factor, system.num_heads)
    return factor.unbind(1) * (system.length // factor.shape[1])
