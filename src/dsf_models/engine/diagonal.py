"""One real λ per state, channel and step: every state is a channel of the elementwise scan.

    S_i[n, p] = λ_i[n, p] S_{i-1}[n, p] + b_i[n] s_i[p] u_i[p]

Letters: b batch, t time, h heads, n states per channel, p head width.
"""

import torch
from torch import Tensor

from ..system import DSFSystem
from .elementwise import scan_channels

__all__ = ["evaluate_diagonal"]

CHUNK = 64
"""Steps whose states are held at a time."""


def evaluate_diagonal(system: DSFSystem, state: Tensor, chunk_size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Evaluate a system with one real λ per state and channel by the elementwise scan, chunk after chunk.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p), in the compute dtype.
        chunk_size: steps of a chunk.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    outputs = []
    for start in range(0, system.length, chunk_size):
        part = system.narrow(start, min(chunk_size, system.length - start))
        inflow = part.inflow()
        decay = part.effective_transition().decay.to(inflow.dtype).expand_as(inflow)
        states, last = scan_channels(inflow.flatten(2), decay.flatten(2), state.flatten(1))
        state = last.view(state.shape)
        outputs.append(part.read(part.outflow(states.view(inflow.shape))))
    return torch.cat(outputs, dim=1), state
