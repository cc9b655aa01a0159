"""Without residual stream and norms, a model is the plain composition FNN ∘ SSM ∘ FNN ∘ SSM ∘ FNN ∘ Emb."""

import pytest
import torch

from dsf_models.backbone import TokenLayout
from tests.contract import assert_close, fresh, sequences

PLAIN = {"residual": False, "norm": "none", "channel_mixer": "mlp", "mlp_bias": True, "hidden_act": "relu"}


def network(x, channel_mixer):
    """Apply the ReLU network of a channel mixer, layer by layer."""
    layers = [channel_mixer.up_proj, *channel_mixer.hidden_projs]
    for layer in layers:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    return x @ channel_mixer.down_proj.weight.T + channel_mixer.down_proj.bias, len(layers)


@pytest.mark.parametrize("depths", [[1, 3, 2], [0, 3, 2], [1, 0, 2], [1, 3, 0], [2, 2, 2]], ids=str)
@torch.no_grad()
def test_the_model_is_the_composition_of_its_parts(depths):
    """FNN3 ∘ SSM2 ∘ FNN2 ∘ SSM1 ∘ FNN1 ∘ Emb, of the depths that channel_mixer_depth gives; 0 leaves one out."""
    model = fresh("ssd", "bare", "model", **PLAIN, pre_channel_mixer=True, channel_mixer_depth=depths).double()
    ids = torch.stack(sequences((7, 7)))
    first, second = model.layers
    networks = [model.input_mixer and model.input_mixer.channel_mixer, first.channel_mixer, second.channel_mixer]
    x, found = model.embed_tokens(ids), []
    for mixer, channel_mixer in zip((None, first.mixer, second.mixer), networks, strict=True):
        x = x if mixer is None else mixer(x, TokenLayout(None))[0]
        depth = 0
        if channel_mixer is not None:
            x, depth = network(x, channel_mixer)
        found.append(depth)
    assert found == depths
    assert_close(model(ids).last_hidden_state, x, 1e-12)


@torch.no_grad()
def test_the_input_mixer_joins_the_residual_stream():
    """With residual=True the first channel mixer is a branch like every other: x + FNN(norm(x))."""
    model = fresh("ssd", "bare", "model", channel_mixer="swiglu", pre_channel_mixer=True).double()
    x = model.embed_tokens(torch.stack(sequences((7, 7))))
    expected = x + model.input_mixer.channel_mixer(model.input_mixer.norm(x))
    assert_close(model.input_mixer(x), expected, 1e-12)
    assert_close(model(inputs_embeds=x).last_hidden_state, model.norm(_blocks(model, expected)), 1e-12)


def _blocks(model, x):
    for block in model.layers:
        x = block(x, TokenLayout(None))
    return x
