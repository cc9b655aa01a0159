"""The matrix mode: Φ materialised and applied, quadratic in length."""

import torch
from torch import Tensor

from ..system import DSFSystem, Identity, expand_groups

__all__ = ["evaluate_matrix"]


def evaluate_matrix(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a system through its weights W_ij = c_i^T Λ_i … Λ_{j+1} b_j.

        S_i^T c_i = Σ_{j<=i} W_ij v_j + (Λ_i … Λ_0 S_{-1})^T c_i,   v_j = s_j * u_j

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1).

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    batch, length, num_heads, _ = system.u.shape
    B_bthn, C_bthn = (expand_groups(x, num_heads).expand(batch, length, -1, -1) for x in (system.B, system.C))
    drive, transition = system.drive(), system.effective_transition()
    weights = transition.scores(B_bthn, C_bthn)
    if isinstance(transition, Identity):
        from_start = to_end = torch.ones(1, 1, 1, dtype=state.dtype, device=state.device)
    else:
        products = transition.products(length)
        to_end = products[..., -1, :].to(state.dtype)
        from_start = (products[..., :, 0] * transition.values()[:, :1].transpose(1, 2)).to(state.dtype)
    raw = torch.einsum("bhij,bjhp->bihp", weights, drive)
    raw = raw + torch.einsum("bihn,bhnp->bihp", C_bthn, state) * from_start.transpose(1, 2)[..., None]
    added = torch.einsum("bjhn,bjhp->bhnp", B_bthn * to_end.transpose(1, 2)[..., None], drive)
    return system.read(raw), added + from_start[..., -1, None, None] * state
