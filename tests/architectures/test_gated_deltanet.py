"""Gated DeltaNet: what its spectrum is, and that it is the mixer that transformers has in Qwen3-Next."""

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from dsf_models import GatedDeltaNetForCausalLM, GatedDeltaNetModel
from tests.contract import VOCAB, error, fresh, mixer_calls, sequences, small_config


def ids():
    return torch.stack(sequences((11, 11)))


@pytest.mark.parametrize("allowed", [False, True])
@torch.no_grad()
def test_spectrum_at_the_start(allowed):
    config = small_config("gated_deltanet", "default", initializer_range=0.02, allow_negative_eigenvalues=allowed)
    values = GatedDeltaNetModel(config).dsf_systems(ids())[0].eigenvalues().values
    alpha, along = values.unbind(-1)
    assert 0.19 < alpha.min() < alpha.max() < 1.0
    torch.testing.assert_close(along, alpha * (0.0 if allowed else 0.5), rtol=0.0, atol=0.1)


@torch.no_grad()
def test_eigenvalues_along_the_key_may_be_negative_only_if_allowed():
    for allowed in (False, True):
        model = fresh("gated_deltanet", "default", allow_negative_eigenvalues=allowed)
        lowest = model.dsf_systems(ids())[0].eigenvalues().values[..., 1].min()
        assert (lowest < -0.05) if allowed else (lowest > 0)


@torch.no_grad()
def test_keys_and_queries_have_norm_one():
    system = fresh("gated_deltanet", "default").double().dsf_systems(ids())[0]
    assert system.B is system.transition.key
    for factor, norm in ((system.B, 1.0), (system.C, system.C.shape[-1] ** -0.5)):
        torch.testing.assert_close(factor.norm(dim=-1), torch.full_like(factor[..., 0], norm), rtol=1e-3, atol=0.0)


def as_in_transformers(mixer):
    """Return transformers' mixer with the weights of ours: its projections are sorted by head, its norm is shared."""
    heads, n, p, width = mixer.num_heads, mixer.state_size, mixer.head_dim, mixer.config.hidden_size
    config = Qwen3NextConfig(
        hidden_size=width,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=n,
        linear_value_head_dim=p,
        linear_conv_kernel_dim=mixer.config.conv_kernel,
        rms_norm_eps=mixer.config.norm_eps,
        num_hidden_layers=1,
    )
    peer = Qwen3NextGatedDeltaNet(config, 0)
    q, k, v = (x.unflatten(0, (heads, -1)) for x in mixer.qkv_proj.weight.split(mixer.split_sizes))
    z = mixer.gate_proj.weight.unflatten(0, (heads, -1))
    rate, share = mixer.rates_proj.weight.split(heads)
    peer.in_proj_qkvz.weight.copy_(torch.cat([q, k, v, z], dim=1).flatten(0, 1))
    peer.in_proj_ba.weight.copy_(torch.stack([share, rate], dim=1).flatten(0, 1))
    peer.conv1d.weight.copy_(mixer.conv.weight)
    peer.norm.weight.copy_(mixer.output_norm.weight[:p])
    for name in ("A_log", "dt_bias"):
        getattr(peer, name).copy_(getattr(mixer, name))
    peer.out_proj.weight.copy_(mixer.out_proj.weight)
    return peer


@torch.no_grad()
def test_the_mixer_equals_transformers():
    config = small_config("gated_deltanet", "default", vocab_size=VOCAB, expand=2, num_hidden_layers=1)
    model = GatedDeltaNetForCausalLM(config).eval()
    mixer = model.model.layers[0].mixer
    mixer.output_norm.weight.copy_(torch.linspace(0.5, 2, mixer.head_dim).repeat(mixer.num_heads))
    ((_, arguments, output),) = mixer_calls(model, input_ids=torch.stack(sequences((70, 70))))
    assert error(output, as_in_transformers(mixer)(arguments[0])) <= 1e-5
