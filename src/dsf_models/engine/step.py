"""One step of the recurrence, the form that decoding runs in."""

import torch
from torch import Tensor

from ..system import DSFSystem

__all__ = ["evaluate_recurrent"]


def evaluate_recurrent(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a system by its recurrence, carrying the state from token to token.

        S_i = Λ_i(S_{i-1}) + b_i (s_i * u_i)^T        y_i = g_i * (S_i^T c_i) + D * u_i

    Args:
        system: the system; its time dimension is usually 1.
        state: S_{-1}, (b, h, n, p or p + 1), in the compute dtype.

    Returns:
        y (b, t, h, p) and the state after the last real token.
    """
    transition = system.effective_transition()
    raw = []
    for time, drive_bhp in enumerate(system.drive().unbind(1)):
        b_bhn, c_bhn = _factor(system.B, time, system.num_heads), _factor(system.C, time, system.num_heads)
        state = torch.addcmul(transition.step(state, time), b_bhn[..., None], drive_bhp[..., None, :])
        raw.append((c_bhn[..., None, :] @ state).squeeze(-2))
    return system.read(raw[0][:, None] if len(raw) == 1 else torch.stack(raw, dim=1)), state


def _factor(factor: Tensor, time: int, num_heads: int) -> Tensor:
    """Return the factor of one step for every head, (b|1, h|1, n): a single group broadcasts, more are repeated."""
    step = factor[:, time if factor.shape[1] > 1 else 0]
    groups = step.shape[1]
    return step if groups in (1, num_heads) else step.repeat_interleave(num_heads // groups, dim=1)
