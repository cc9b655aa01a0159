"""S4: its equations in complex numbers, its start, and what its configuration refuses."""

import math

import pytest
import torch

from dsf_models import S4Config, S4Model
from dsf_models.engine import evaluate
from dsf_models.system import DSFSystemError
from tests.contract import fresh, sequences

SMALL = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 8}


def test_the_system_is_the_papers_in_complex_numbers():
    """Each channel: A = diag(a) - p p^H over modes and conjugates, discretised densely, y = 2 Re(c^T x) + D u."""
    model = fresh("s4", "bare", "model", state_size=6).double()
    mixer = model.layers[0].mixer
    (system, *_) = model.dsf_systems(sequences((20,))[0][None])
    y, _ = evaluate(system, "chunked")
    with torch.no_grad():
        a = torch.complex(mixer.A_re.clamp(max=-1e-4), mixer.A_im)
        p, b, c = (torch.view_as_complex(x.contiguous()) for x in (mixer.P, mixer.B, mixer.C))
        a, p, b = (torch.cat([x, x.conj()], dim=-1) for x in (a, p, b))
        step = mixer.log_dt.exp()[:, None]
        A = torch.diag_embed(a) - p[..., :, None] * p.conj()[..., None, :]
        eye = torch.eye(6)
        inverse = torch.linalg.inv(eye - step[..., None] / 2 * A)
        transition, drive = inverse @ (eye + step[..., None] / 2 * A), (inverse @ (step * b)[..., None]).squeeze(-1)
        x, u = torch.zeros_like(b), system.u[0, :, :, 0]
        for time in range(20):
            x = (transition @ x[..., None]).squeeze(-1) + drive * u[time][:, None]
            expected = 2 * (c * x[:, :3]).sum(-1).real + mixer.D * u[time]
            torch.testing.assert_close(y[0, time, :, 0], expected, rtol=1e-11, atol=1e-11)


def test_start():
    """Re a = -1/2 exactly, b = √2 p, Δ log-uniform, c of variance 1, D = 1."""
    mixer = S4Model(S4Config(**SMALL | {"hidden_size": 128, "state_size": 32})).layers[0].mixer
    assert mixer.A_re.eq(-0.5).all()
    assert (mixer.A_im.diff(dim=1) > 0).all()
    torch.testing.assert_close(mixer.B, math.sqrt(2) * mixer.P)
    step = mixer.log_dt.exp()
    assert step.min() >= 0.001
    assert step.max() <= 0.1
    assert step.median().item() == pytest.approx(0.01, rel=0.8)
    assert mixer.C.square().sum(-1).mean().item() == pytest.approx(1.0, rel=0.1)
    assert mixer.D.eq(1).all()


def test_spectrum_at_the_start():
    """λ = (1 - Δk/2) / (1 + Δk/2) for k = 1 … n; every |λ| < 1."""
    model = S4Model(S4Config(**SMALL))
    mixer = model.layers[0].mixer
    (system,) = model.dsf_systems(sequences((3,))[0][None])
    values = system.eigenvalues().values[0, 0]
    assert (values.abs() < 1).all()
    step, k = mixer.log_dt.double().exp()[:, None], torch.arange(8, 0, -1).double()
    expected = (1 - step * k / 2) / (1 + step * k / 2)
    # Parameters rounded to float32 move them, as far as cond(V) lets them.
    torch.testing.assert_close(values.real.sort(dim=-1).values, expected.detach(), rtol=0, atol=1e-3)


def test_the_default_number_of_states_has_no_computable_spectrum():
    model = S4Model(S4Config(**SMALL | {"state_size": 64}))
    (system,) = model.dsf_systems(sequences((3,))[0][None])
    with pytest.raises(DSFSystemError, match="64 states mean nothing"):
        system.eigenvalues()


def test_poles_that_training_pushes_over_the_axis_are_clipped():
    model = S4Model(S4Config(**SMALL))
    with torch.no_grad():
        model.layers[0].mixer.A_re.fill_(0.3)
    (system,) = model.dsf_systems(sequences((3,))[0][None])
    assert torch.linalg.matrix_norm(system.transition.dense(), 2).max() < 1


def test_an_odd_number_of_states_is_refused():
    with pytest.raises(ValueError, match=r"state_size=5.*even"):
        S4Config(**SMALL | {"state_size": 5})
