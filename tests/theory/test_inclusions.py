"""Which architectures contain which, with weights that show it: statement T8, on the mixers themselves.

Source: Sieber et al. 2024 (arXiv 2405.15731); the derivations are this project's own.
"""

import math

import pytest
import torch

from dsf_models.backbone import get_architecture
from evaluation.benchmarks.random_systems import relative_error

FLOAT64 = torch.float64
WIDTH, STATES, LENGTH = 6, 3, 10


def mixer_of(name, **fields):
    """Return a bare mixer of one head in float64, every parameter random."""
    architecture = get_architecture(name)
    make = getattr(architecture.config_class, "minimal", architecture.config_class)
    mixer = architecture.mixer_class(make(**{"hidden_size": WIDTH, "num_heads": 1, **fields}), 0).double()
    for parameter in mixer.parameters():
        parameter.data.normal_()
    return mixer


def tokens():
    return torch.randn(2, LENGTH, WIDTH, dtype=FLOAT64)


def system_at(mixer, hidden):
    return mixer.system(*mixer.project(hidden))


def phi_at(mixer, hidden):
    """Return Φ with a dimension for the channels of a head, (b, h, p, t, t)."""
    phi = system_at(mixer, hidden).transfer_matrix()
    return phi if phi.ndim == 5 else phi[:, :, None].expand(-1, -1, WIDTH, -1, -1)


def parts_of_ssd(mixer):
    """Return the projections to x, B, C and Δ."""
    return mixer.in_proj.weight.split([WIDTH, STATES, STATES, 1])


@torch.no_grad()
def test_t8_ssd_without_decay_is_unnormalised_linear_attention():
    """T8: Σ_j q_i^T k_j v_j = SSD with a -> 0 and Δ constant = normalized attention with W_η = 0."""
    ssd, attention, hidden = (
        mixer_of("ssd", state_size=STATES),
        mixer_of("normalized_attention", state_size=STATES),
        tokens(),
    )
    x, B, C, step = parts_of_ssd(ssd)
    step.zero_()
    ssd.dt_bias.fill_(math.log(math.e - 1))  # Δ = 1
    ssd.D.zero_()
    attention.qkv_proj.weight.copy_(torch.cat([C, B, x]))
    attention.eta_proj.weight.zero_()
    attention.eta_proj.bias.zero_()
    q, k = hidden @ C.T, hidden @ B.T
    expected = (q @ k.mT).tril()[:, None, None].expand(-1, -1, WIDTH, -1, -1)
    assert relative_error(phi_at(attention, hidden), expected) <= 1e-13
    for a, at_most in ((0.0, 1e-13), (1e-6, 1e-4), (1e-3, 1e-1)):
        ssd.A_log.fill_(math.log(a) if a else -1e4)
        error = relative_error(phi_at(ssd, hidden), expected)
        assert a / 100 <= error <= at_most if a else error <= at_most
    assert torch.equal(system_at(ssd, hidden).u, system_at(attention, hidden).u)


@torch.no_grad()
def test_t8_ssd_is_s6_with_shared_steps():
    """T8: SSD = S6 with A = a · 1 and Δ shared by the channels. S6 contains more: its channels may differ in Λ."""
    ssd = mixer_of("ssd", state_size=STATES)
    s6, hidden = mixer_of("s6", state_size=STATES, time_step_rank=1), tokens()
    x, B, C, step = parts_of_ssd(ssd)
    x.copy_(torch.eye(WIDTH))
    s6.in_proj.weight.copy_(torch.eye(WIDTH))
    s6.x_proj.weight.copy_(torch.cat([step, B, C]))
    s6.dt_proj.weight.fill_(1.0)
    for mine, shared in ((s6.dt_bias, ssd.dt_bias), (s6.A_log, ssd.A_log), (s6.D, ssd.D)):
        mine.copy_(shared.expand_as(mine))
    expected = phi_at(ssd, hidden)
    assert relative_error(phi_at(s6, hidden), expected) <= 1e-13
    s6.A_log[:, 1] += 1.0
    further = phi_at(s6, hidden)
    assert relative_error(further[:, :, 0], expected[:, :, 0]) <= 1e-13
    assert relative_error(further[:, :, 1], expected[:, :, 1]) > 1e-3


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0])
@torch.no_grad()
def test_t8_s6_and_qlstm_share_transitions_but_not_inputs(a):
    """T8: S6 with n = 1 has the transition of the reversed qLSTM, exp(-a softplus(f)) = σ(-f)^a.

    Neither contains the other: S6's Δ_i stands in Λ_i and B_i alike, so that λ_i fixes the input gain -log λ_i / a;
    qLSTM's input gate is free of its λ_i, and lies below 1.
    """
    s6, qlstm = mixer_of("s6", state_size=1, time_step_rank=WIDTH), mixer_of("qlstm", reversed_sigmoid=True)
    hidden = tokens()
    s6.in_proj.weight.copy_(torch.eye(WIDTH))
    s6.A_log.fill_(math.log(a))
    qlstm.alpha.fill_(a)
    qlstm.gates_proj.weight[:WIDTH] = s6.dt_proj.weight @ s6.x_proj.weight[:WIDTH]
    qlstm.gates_proj.bias[:WIDTH] = s6.dt_bias
    first, second = system_at(s6, hidden), system_at(qlstm, hidden)
    decay = first.eigenvalues().values.flatten(2)
    assert relative_error(second.eigenvalues().values.flatten(2), decay) <= 1e-13
    gain = first.input_gain[:, 1:].flatten(2)
    assert relative_error(gain, -decay.log() / a) <= 1e-12
    assert float(gain.max()) > 1
    qlstm.gates_proj.weight[WIDTH : 2 * WIDTH] *= 2
    third = system_at(qlstm, hidden)
    assert torch.equal(third.eigenvalues().values, second.eigenvalues().values)
    assert not torch.equal(third.input_gain, second.input_gain)
    assert float(third.input_gain.max()) < 1


@torch.no_grad()
def test_t8_time_invariant_systems_are_special_time_varying_ones():
    """T8: W_Δ = 0 makes Λ of S6 constant, as in S4D-Real; only with b and c constant too it is time-invariant."""
    s6, hidden = mixer_of("s6", state_size=STATES, time_step_rank=1), tokens()
    s6.in_proj.weight.copy_(torch.eye(WIDTH))
    s6.dt_proj.weight.zero_()
    s6.A_log.copy_(torch.arange(1, STATES + 1).log()[:, None].expand_as(s6.A_log))
    values = system_at(s6, hidden).eigenvalues().values
    torch.testing.assert_close(values, values[:1, :1].expand_as(values), rtol=1e-14, atol=0.0)
    phi = phi_at(s6, hidden)
    assert relative_error(phi[..., 1:, 1:], phi[..., :-1, :-1]) > 1e-2
    # One channel of the input is constant, and b and c see nothing else.
    hidden[..., 0] = 1.0
    s6.x_proj.weight[:, 1:] = 0.0
    phi = phi_at(s6, hidden)
    assert relative_error(phi[..., 1:, 1:], phi[..., :-1, :-1]) <= 1e-13
    step = torch.nn.functional.softplus(s6.dt_bias)
    b, c = s6.x_proj.weight[1 : 1 + STATES, 0], s6.x_proj.weight[1 + STATES :, 0]
    lags = torch.arange(LENGTH)[:, None, None]
    kernel = (step * (b * c)[:, None] * (-lags * step * s6.A_log.exp()).exp()).sum(1)
    kernel[0] += s6.D
    assert relative_error(phi[0, 0, :, :, 0], kernel.T) <= 1e-12
