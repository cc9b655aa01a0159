"""Operations of fla-core and mamba-ssm, in pure torch and with their signatures, for machines without a GPU.

Each checks what the real one asks of its arguments, and runs the recurrence that the package documents, in float64.
"""

import torch
from torch import Tensor

FLA_STATE = torch.float32


def run_fla(step, q, k, v, state):
    """Run S_i = step(S_{i-1}, i), o_i = S_i^T q_i over the time of (b, t, h, ·)."""
    outputs = []
    for time in range(q.shape[1]):
        state = step(state, time)
        outputs.append((q[:, time, :, None].double() @ state).squeeze(-2))
    return torch.stack(outputs, dim=1).to(v.dtype), state.to(FLA_STATE)


def check_fla(q, k, v, scale, initial_state, output_final_state, tile=16):
    assert q.shape == k.shape
    assert q.shape[:3] == v.shape[:3]
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype != torch.float64
    assert scale == 1.0
    assert output_final_state is True
    assert initial_state.shape == (q.shape[0], *q.shape[2:], v.shape[3])
    assert initial_state.dtype == FLA_STATE
    assert all(width % tile == 0 for width in (q.shape[3], v.shape[3]))


def check_gate(gate, shape):
    assert gate.shape == shape
    assert gate.dtype == torch.float32
    assert gate.isfinite().all()


def outer(k, v, time):
    return k[:, time, :, :, None].double() * v[:, time, :, None].double()


def simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
    """chunk_simple_gla, fused_recurrent_simple_gla: g (b, t, h)."""
    check_fla(q, k, v, scale, initial_state, output_final_state)
    assert g_gamma is None
    if g is None:
        g = torch.zeros(q.shape[:3])
    check_gate(g, q.shape[:3])

    def step(state, time):
        return state * g[:, time, :, None, None].double().exp() + outer(k, v, time)

    return run_fla(step, q, k, v, initial_state.double())


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    """chunk_gla: g (b, t, h, n)."""
    check_fla(q, k, v, scale, initial_state, output_final_state)
    check_gate(g, q.shape)

    def step(state, time):
        return state * g[:, time, :, :, None].double().exp() + outer(k, v, time)

    return run_fla(step, q, k, v, initial_state.double())


def fused_recurrent_gla(q, k, v, gk=None, gv=None, scale=None, initial_state=None, output_final_state=False):
    """fused_recurrent_gla, which calls the gates of key features gk."""
    assert gv is None
    return chunk_gla(q, k, v, gk, scale, initial_state, output_final_state)


def gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    """chunk_gated_delta_rule, fused_recurrent_gated_delta_rule: g and β (b, t, h)."""
    check_fla(q, k, v, scale, initial_state, output_final_state)
    check_gate(g, q.shape[:3])
    check_gate(beta, q.shape[:3])

    def step(state, time):
        state = state * g[:, time, :, None, None].double().exp()
        found = k[:, time, :, None].double() @ state
        update = beta[:, time, :, None, None].double() * (v[:, time, :, None].double() - found)
        return state + k[:, time, :, :, None].double() * update

    return run_fla(step, q, k, v, initial_state.double())


def hgrn(x, g, initial_state=None, output_final_state=False):
    """fused_recurrent_hgrn: one state per channel, x and g (b, t, w); nobody may ask for its gradient."""
    assert not torch.is_grad_enabled()
    assert output_final_state is True
    assert x.dtype == initial_state.dtype == torch.float32
    assert initial_state.shape == x[:, 0].shape
    check_gate(g, x.shape)
    state, outputs = initial_state.double(), []
    for time in range(x.shape[1]):
        state = g[:, time].double().exp() * state + x[:, time].double()
        outputs.append(state)
    return torch.stack(outputs, dim=1).float(), state.float()


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """selective_scan_fn: u and Δ (b, w, t), A (w, n), B and C (b, g, n, t); the state begins at 0."""
    batch, width, length = u.shape
    assert u.dtype == delta.dtype == A.dtype == B.dtype == C.dtype == torch.float32
    assert delta.shape == u.shape
    assert A.shape == (width, B.shape[2])
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    B, C = (x.double().repeat_interleave(width // x.shape[1], dim=1) for x in (B, C))
    state, outputs = torch.zeros(batch, width, A.shape[1], dtype=torch.float64), []
    for time in range(length):
        step = delta[:, :, time, None].double()
        # As the kernel does: Δ u in float32.
        driven = (delta[:, :, time] * u[:, :, time]).double()
        state = (step * A.double()).exp() * state + B[..., time] * driven[..., None]
        outputs.append((C[..., time] * state).sum(-1))
    return torch.stack(outputs, dim=-1).float()


STAND_INS = {
    "fla.ops.simple_gla.chunk_simple_gla": simple_gla,
    "fla.ops.simple_gla.fused_recurrent_simple_gla": simple_gla,
    "fla.ops.gla.chunk_gla": chunk_gla,
    "fla.ops.gla.fused_recurrent_gla": fused_recurrent_gla,
    "fla.ops.gated_delta_rule.chunk_gated_delta_rule": gated_delta_rule,
    "fla.ops.gated_delta_rule.fused_recurrent_gated_delta_rule": gated_delta_rule,
    "fla.ops.hgrn.fused_recurrent_hgrn": hgrn,
    "mamba_ssm.ops.selective_scan_interface.selective_scan_fn": selective_scan,
}
"""The stand-in of each operation, by its full name."""
