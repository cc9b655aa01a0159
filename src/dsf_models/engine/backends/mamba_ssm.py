"""Systems with Λ = exp(-Δ A) in the terms of mamba-ssm's selective scan.

    S_i = exp(Δ_i A') S_{i-1} + Δ_i b_i u_i^T        o_i = S_i^T c_i        A' = -A

The scan begins with an empty state and gives no gradient to its last one. Therefore n steps in front of a sequence
write its initial state, row by row, and n steps behind it read the last one: Δ is tiny in the first, so that nothing
fades while Δ u is the row, and 0 in the others. Δ_i multiplies the input as well as -A, so that a document's start,
where Λ is 0, is a step of huge Δ whose input is made smaller by as much. Powers of 2 keep both exact.

Letters: b batch, t time, h heads, n states per channel, p head width, w channels (heads · head width), g groups.

Source: mamba-ssm (github.com/state-spaces/mamba), whose kernel this is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...system import DSFSystem
from ...transitions import FactoredDecay, expand_groups
from . import imports

__all__ = ["evaluate", "missing", "obstacle", "op", "reservation"]

OP = "mamba_ssm.ops.selective_scan_interface.selective_scan_fn"
MOST_STATES = 256
"""Most states per channel of the kernel."""
WRITING, FORGETTING = 2.0**-60, 2.0**40
"""Δ of a step that writes a row of the state, and of a document's start: no rate A between 1e-10 and 1e10 makes the
first one fade or lets the second one remember."""


def op(system: DSFSystem, mode: str) -> str:
    """Return the full name of the operation that evaluates a system without obstacle."""
    return OP


def obstacle(system: DSFSystem, mode: str) -> str | None:
    """Return why mamba-ssm cannot evaluate a system, with the remedy; None where it can."""
    transition = system.transition
    if not isinstance(transition, FactoredDecay):
        return f"mamba-ssm has no operation for Λ of structure {transition.name!r}."
    if mode != "chunked":
        return f'mamba-ssm has no operation for mode={mode!r}: use mode="chunked".'
    if system.input_gain is not transition.delta:
        return (
            "its scan multiplies inputs by the Δ of Λ: build the system with input_gain and transition.delta the same "
            "tensor."
        )
    if system.B.shape[-1] > MOST_STATES:
        return f"its scan takes at most {MOST_STATES} states per channel, and B has {system.B.shape[-1]}."
    return None


def reservation(system: DSFSystem, mode: str) -> str | None:
    """Return None: nothing speaks against the scan where it is possible; it computes in float32."""
    return None


def missing(system: DSFSystem, mode: str) -> str | None:
    """Return why mamba-ssm cannot be imported, with the remedy; None where it can."""
    error = imports.missing(OP)
    return f"mamba-ssm does not import ({error}): pip install mamba-ssm." if error else None


def evaluate(system: DSFSystem, state: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Evaluate a system by mamba-ssm in float32.

    Args:
        system: a system without obstacle.
        state: S_{-1}, (b, h, n, p), in float32.
        mode: "chunked".

    Returns:
        y (b, t, h, p) in u's dtype, and the state at each row's last real token in float32.
    """
    wide, n = system.to(torch.float32), state.shape[2]
    delta, u = _steps(wide)
    rows = torch.eye(n, device=state.device)[None, :, None].expand(state.shape[0], -1, 1, -1)
    B, C = (_by_group(x, wide) for x in (wide.B, wide.C))
    rows = rows.expand(-1, -1, B.shape[2], -1)
    u = torch.cat([state.transpose(1, 2) / WRITING, F.pad(u, (0, 0, 0, 0, 0, n))], dim=1)
    delta = torch.cat([torch.full_like(state.transpose(1, 2), WRITING), F.pad(delta, (0, 0, 0, 0, 0, n))], dim=1)
    B = torch.cat([rows, F.pad(B, (0, 0, 0, 0, 0, n))], dim=1)
    C = torch.cat([F.pad(C, (0, 0, 0, 0, n, 0)), rows], dim=1)
    rate = wide.transition.rate.expand(state.shape[1:]).transpose(1, 2).flatten(0, 1)
    out = imports.load(OP)(_time_last(u), _time_last(delta), -rate, B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1))
    read = out.unflatten(1, wide.u.shape[2:]).movedim(-1, 1)
    raw, last = read[:, n : n + system.length], read[:, n + system.length :]
    return wide.read(raw).to(system.u.dtype), last.transpose(1, 2)


def _steps(system: DSFSystem) -> tuple[Tensor, Tensor]:
    """Return Δ and u (b, t, h, p) with document starts and pads written into them."""
    u, delta = system.u, system.transition.delta.expand_as(system.u)
    if system.starts is not None:
        starts = system.starts[..., None, None]
        u = torch.where(starts, u * (delta / FORGETTING), u)
        delta = delta.masked_fill(starts, FORGETTING)
    if system.lengths is not None:
        padded = system.padded[..., None, None]
        u, delta = u.masked_fill(padded, 0.0), delta.masked_fill(padded, 0.0)
    return delta, u


def _by_group(factor: Tensor, system: DSFSystem) -> Tensor:
    """Give every row and step its own factor, B and C as many groups: (b|1, t|1, g, n) -> (b, t, g, n)."""
    factor = factor.expand(system.u.shape[0], system.length, -1, -1)
    same = system.B.shape[2] == system.C.shape[2]
    return factor if same else expand_groups(factor, system.num_heads)


def _time_last(x: Tensor) -> Tensor:
    """Return channels first and time last: (b, t, h, p) -> (b, w, t)."""
    return x.flatten(2).transpose(1, 2)
