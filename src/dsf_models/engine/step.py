"""One step of the recurrence, the form that decoding runs in."""

import torch
from torch import Tensor

from ..system import DSFSystem, expand_groups

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
    num_heads = system.num_heads
    transition = system.effective_transition()
    raw = []
    B, C = expand_groups(system.B, num_heads), expand_groups(system.C, num_heads)
    for time, drive_bhp in enumerate(system.drive().unbind(1)):
        b_bhn, c_bhn = B[:, time % B.shape[1]], C[:, time % C.shape[1]]
        state = torch.addcmul(transition.step(state, time), b_bhn[..., :, None], drive_bhp[..., None, :])
        raw.append((c_bhn[..., None, :] @ state).squeeze(-2))
    return system.read(torch.stack(raw, dim=1)), state
