"""S6 and the forms of SSD against their equations, written down once more in loops, and their initial spectra."""

import math

import pytest
import torch
import torch.nn.functional as F

from dsf_models import S6Config, S6Model, SSDConfig, SSDModel
from tests.contract import mixer_calls

SIZES = {"vocab_size": 5, "hidden_size": 6, "num_hidden_layers": 1, "state_size": 3}


def mixed(model):
    """Give a model random weights, and return its mixer with an input and the output, (2, 7, 6) in float64."""
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    ((mixer, args, output),) = mixer_calls(model, input_ids=torch.randint(5, (2, 7)))
    return mixer, args[0], output


def scan(x, decays, gain, b, c, skip):
    """Run h = λ h + s b x, y = c h + D x, channel by channel and state by state; decays (b, t, n, d)."""
    y = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for channel in range(x.shape[2]):
            h = [0.0] * b.shape[2]
            for time in range(x.shape[1]):
                taken_in = gain[row, time, channel] * x[row, time, channel]
                h = [
                    decays[row, time, state, channel] * value + b[row, time, state] * taken_in
                    for state, value in enumerate(h)
                ]
                read = sum(value * c[row, time, state] for state, value in enumerate(h))
                y[row, time, channel] = read + skip[channel] * x[row, time, channel]
    return y


@torch.no_grad()
def test_minimal_s6_is_its_equation():
    mixer, hidden, output = mixed(S6Model(S6Config.minimal(**SIZES, time_step_rank=2)))
    assert mixer.conv is mixer.gate_proj is mixer.output_norm is None
    x = hidden @ mixer.in_proj.weight.T
    low, b, c = (x @ mixer.x_proj.weight.T).split([2, 3, 3], dim=-1)
    delta = F.softplus(low @ mixer.dt_proj.weight.T + mixer.dt_bias)
    decays = torch.exp(-delta[:, :, None] * mixer.A_log.exp())
    y = scan(x, decays, delta, b, c, mixer.D)
    torch.testing.assert_close(output, y @ mixer.out_proj.weight.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["strict", "channel", "constant"])
@torch.no_grad()
def test_minimal_ssd_is_its_equation(form):
    options = {"strict": {}, "channel": {"time_step_bias": "channel"}, "constant": {"decay": "constant"}}[form]
    mixer, hidden, output = mixed(SSDModel(SSDConfig.minimal(**SIZES, **options)))
    assert mixer.dt_bias.shape == ((6,) if form == "channel" else (1,))
    x, b, c, low = (hidden @ mixer.in_proj.weight.T).split([6, 3, 3, 1], dim=-1)
    delta = F.softplus(low + mixer.dt_bias).expand(2, 7, 6)
    log_decays = -F.softplus(mixer.A).expand(2, 7, 6) if form == "constant" else -delta * mixer.A_log.exp()
    y = scan(x, log_decays.exp()[:, :, None].expand(2, 7, 3, 6), delta, b, c, mixer.D.expand(6))
    torch.testing.assert_close(output, y @ mixer.out_proj.weight.T, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_biases_that_agree_make_the_released_form_the_strict_one():
    ids = torch.randint(5, (2, 9))
    strict = SSDModel(SSDConfig(**SIZES, num_heads=2)).double()
    released = SSDModel(SSDConfig(**SIZES, num_heads=2, time_step_bias="channel")).double()
    weights = strict.state_dict()
    weights["layers.0.mixer.dt_bias"] = weights["layers.0.mixer.dt_bias"].repeat_interleave(6)
    released.load_state_dict(weights)
    torch.testing.assert_close(released(ids).last_hidden_state, strict(ids).last_hidden_state, rtol=1e-12, atol=1e-12)
    released.layers[0].mixer.dt_bias[3] += 1.0
    decays = released.dsf_systems(input_ids=ids)[0].eigenvalues().values
    assert decays.shape == (2, 8, 2, 1, 6)
    assert not torch.allclose(decays[..., 3], decays[..., 2])
    assert not torch.allclose(released(ids).last_hidden_state, strict(ids).last_hidden_state)


@torch.no_grad()
def test_initial_spectrum_of_s6():
    config = S6Config(vocab_size=5, hidden_size=64, num_hidden_layers=1, time_step_floor=0.01)
    mixer = S6Model(config).layers[0].mixer
    assert config.time_step_rank == 4
    assert torch.equal(mixer.A_log.exp().round(), torch.arange(1.0, 17)[:, None].expand(16, 128))
    steps = F.softplus(mixer.dt_bias)
    assert 0.01 * (1 - 1e-4) <= steps.min() < 0.0101
    assert 0.08 < steps.max() <= 0.1 * (1 + 1e-4)
    assert 0.4 < mixer.dt_proj.weight.abs().max() <= 0.5
    assert bool((mixer.D == 1).all())


@torch.no_grad()
def test_initial_spectrum_of_constant_decays():
    model = SSDModel(SSDConfig(**SIZES | {"hidden_size": 256}, num_heads=256, decay="constant"))
    decays = model.dsf_systems(input_ids=torch.randint(5, (1, 4)))[0].eigenvalues().values
    assert torch.equal(decays[:, :1].expand_as(decays), decays)
    assert math.exp(-math.log1p(math.exp(-2))) - 1e-6 <= decays.min() < 0.9
    assert 0.999 < decays.max() <= math.exp(-math.log1p(math.exp(-8))) + 1e-6
