"""Both initialisations: the declared one of each source, and that of the DSF paper's released code."""

import math

import pytest
import torch
from torch import nn

from dsf_models import list_architectures
from dsf_models.backbone import DSFMixer, get_architecture
from tests.contract import small_config

EVERY = pytest.mark.parametrize("name", list_architectures())


def released(name, **changes):
    torch.manual_seed(0)
    config = small_config(
        name,
        "default",
        hidden_size=64,
        initializer_range=0.02,
        initialization="as_released",
        channel_mixer="mlp",
        mlp_bias=True,
        use_bias=True,
        **changes,
    )
    return get_architecture(name).model_class(config)


@EVERY
def test_every_projection_is_drawn_anew(name):
    model = released(name)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            into_the_stream = path.endswith(("out_proj", "down_proj"))
            expected = 0.02 / math.sqrt(2 * model.config.num_hidden_layers) if into_the_stream else 0.02
            spread = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=spread), path
            assert not module.bias.any() if module.bias is not None else True, path


@EVERY
def test_what_was_a_bias_starts_at_zero(name):
    mixers = [module for module in released(name).modules() if isinstance(module, DSFMixer)]
    assert mixers
    for mixer in mixers:
        for key in mixer.released_zeros:
            assert not getattr(mixer, key).any(), key


@pytest.mark.parametrize("name", ["s6", "ssd"])
def test_every_released_step_starts_at_softplus_of_zero(name):
    model = released(name)
    system = model.dsf_systems(input_ids=torch.arange(1, 10)[None])[0]
    assert system.input_gain.mean().item() == pytest.approx(math.log(2), abs=0.01)


@EVERY
def test_loaded_weights_are_not_drawn_anew(name, tmp_path):
    model = released(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
