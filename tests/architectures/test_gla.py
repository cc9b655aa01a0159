"""GLA: its decays and their sign."""

import pytest
import torch

from dsf_models import GLAConfig, GLAModel
from tests.contract import VOCAB, fresh, sequences, small_config


def spectrum(model):
    return model.dsf_systems(torch.stack(sequences((11, 11))))[0].eigenvalues().values


@pytest.mark.parametrize("temperature", [1, 4.0, 16])
@torch.no_grad()
def test_decays_are_sigmoids_to_the_power_of_one_over_tau(temperature):
    model = fresh("gla", "default", decay_temperature=temperature).double()
    mixer, hidden = model.model.layers[0].mixer, torch.randn(2, 5, 16).double()
    system = mixer.system(*mixer.project(hidden))
    x = hidden @ mixer.decay_rank_proj.weight.T @ mixer.decay_proj.weight.T + mixer.decay_bias
    expected = torch.sigmoid(x).unflatten(-1, (4, 4)) ** (1 / temperature)
    torch.testing.assert_close(system.transition.values(), expected)
    assert mixer.decay_rank_proj.weight.shape == (model.config.decay_rank, 16)


@torch.no_grad()
def test_memories_start_near_twenty_tokens():
    """(1/2)^{1/16} = 0.958 when the low-rank map is small; 2α - 1 = 0.915 where negative eigenvalues are allowed."""
    for allowed, expected in [(False, 0.5 ** (1 / 16)), (True, 2 * 0.5 ** (1 / 16) - 1)]:
        config = small_config("gla", "default", initializer_range=0.02, allow_negative_eigenvalues=allowed)
        values = spectrum(GLAModel(config))
        torch.testing.assert_close(values, torch.full_like(values, expected), rtol=5e-3, atol=0.0)


@torch.no_grad()
def test_negative_eigenvalues():
    positive = fresh("gla", "default", decay_temperature=1)
    signed = fresh("gla", "default", decay_temperature=1, allow_negative_eigenvalues=True)
    assert signed.state_dict().keys() == positive.state_dict().keys()
    alpha, values = spectrum(positive)[:, :3], spectrum(signed)[:, :3]
    torch.testing.assert_close(values, 2 * alpha - 1, rtol=1e-5, atol=1e-6)
    assert values.min() < -0.1
    assert values.max() > 0.1


def test_gradients_of_negative_decays():
    """λ = 2α - 1 through log |λ| and a sign has the gradient of 2α - 1, even next to λ = 0."""
    config = GLAConfig(
        vocab_size=VOCAB, hidden_size=8, num_heads=1, state_size=3, decay_temperature=2, allow_negative_eigenvalues=True
    )
    mixer = GLAModel(config).layers[0].mixer
    x = torch.tensor([-30.0, -3.0, -1.0986, -0.5, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    found = mixer._decays(x).values()
    expected = 2 * torch.sigmoid(x) ** 0.5 - 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    gradients = (torch.autograd.grad(values.sum(), x)[0] for values in (found, expected))
    torch.testing.assert_close(*gradients)
