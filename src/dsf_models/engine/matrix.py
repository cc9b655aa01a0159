"""The matrix mode: Φ materialised and applied, quadratic in length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import expand_groups
from .time_invariant import evaluate_toeplitz

__all__ = ["evaluate_matrix"]


def evaluate_matrix(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a system through its weights W_ij = c_i^T Λ_i … Λ_{j+1} b_j, for any structure of Λ.

        S_i^T c_i = Σ_{j<=i} W_ij v_j        v_j = s_j * u_j

    The state comes in and goes out through further steps with Λ = 1: n steps in front write its rows (b = e_a, v = row
    a), n steps behind read them (c = e_a).

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1).

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    if system.input_map is not None:
        return evaluate_toeplitz(system, state)
    batch, length, num_heads, _ = system.u.shape
    n = state.shape[2]
    B_bthn, C_bthn = (expand_groups(x, num_heads).expand(batch, length, -1, -1) for x in (system.B, system.C))
    rows = torch.eye(n, dtype=state.dtype, device=state.device)[:, None].expand(batch, n, num_heads, n)
    B = torch.cat([rows, F.pad(B_bthn, (0, 0, 0, 0, 0, n))], dim=1)
    C = torch.cat([F.pad(C_bthn, (0, 0, 0, 0, n, 0)), rows], dim=1)
    V = torch.cat([state.transpose(1, 2), F.pad(system.drive(), (0, 0, 0, 0, 0, n))], dim=1)
    weights = system.effective_transition().pad(n, n, length).scores(B, C)
    read = _apply(weights, V)
    return system.read(read[:, n : n + length]), read[:, n + length :].transpose(1, 2)


def _apply(weights: Tensor, V: Tensor) -> Tensor:
    """Return Σ_j W_ij v_j: (b, h, 1 or p, i, j), (b, j, h, p) -> (b, i, h, p)."""
    if weights.shape[2] == 1:
        return torch.einsum("bhij,bjhp->bihp", weights[:, :, 0], V)
    return torch.einsum("bhpij,bjhp->bihp", weights, V)
