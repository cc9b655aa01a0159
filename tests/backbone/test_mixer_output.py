"""From the core's output to the residual stream: gate, output norm and projection, in the order that a mixer names."""

import pytest
import torch
import torch.nn.functional as F

from tests.contract import fresh


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("gate", ["none", "silu", "gelu"])
@pytest.mark.parametrize("output_norm", ["none", "rmsnorm"])
@torch.no_grad()
def test_gate_norm_and_projection(monkeypatch, norm_before_gate, n_groups, gate, output_norm):
    model = fresh("ssd", "default", gate=gate, output_norm=output_norm, n_groups=n_groups).double()
    mixer = model.model.layers[0].mixer
    monkeypatch.setattr(type(mixer), "norm_before_gate", norm_before_gate)
    y, hidden = torch.randn(2, 5, mixer.inner_size).double(), torch.randn(2, 5, model.config.hidden_size).double()

    def normed(x):
        if output_norm == "none":
            return x
        mixer.output_norm.weight.copy_(torch.linspace(0.5, 2, mixer.inner_size))
        groups = x.unflatten(-1, (n_groups, -1))
        scale = (groups.square().mean(-1, keepdim=True) + model.config.norm_eps).rsqrt()
        return (groups * scale).flatten(-2) * mixer.output_norm.weight

    def gated(x):
        return x if gate == "none" else x * {"silu": F.silu, "gelu": F.gelu}[gate](hidden @ mixer.gate_proj.weight.T)

    expected = gated(normed(y)) if norm_before_gate else normed(gated(y))
    torch.testing.assert_close(mixer.finish(y, hidden), expected @ mixer.out_proj.weight.T, rtol=1e-12, atol=1e-12)
