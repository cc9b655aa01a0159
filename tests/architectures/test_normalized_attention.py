"""Normalized attention: every normaliser's λ and Φ in closed form, its range, and the starts of its offsets."""

import pytest
import torch
import torch.nn.functional as F

from dsf_models import NormalizedAttentionConfig
from dsf_models.architectures.normalized_attention import LOG_NORMALIZERS, NormalizedAttentionMixer
from tests.contract import assert_close

NORMALIZERS = {
    "exp": torch.exp,
    "softplus": lambda x: torch.log1p(x.exp()),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "exp_exp": lambda x: x.exp().exp(),
    "exp_softplus": lambda x: 1 + x.exp(),
    "exp_sigmoid": lambda x: (1 / (1 + (-x).exp())).exp(),
    "exp_elu": lambda x: torch.where(x > 0, x, x.expm1()).exp(),
}
every_normalizer = pytest.mark.parametrize("name", NORMALIZERS)


def mixer(dtype=torch.float64, **fields):
    config = NormalizedAttentionConfig(hidden_size=6, num_heads=2, state_size=5, **fields)
    made = NormalizedAttentionMixer(config, layer_idx=0).to(dtype)
    made.init_parameters()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for projection in (made.qkv_proj, made.eta_proj):
            projection.weight.copy_(torch.randn(projection.weight.shape, generator=generator))
        made.eta_proj.bias.copy_(torch.randn(2, generator=generator))
    return made


def hidden(length=9, dtype=torch.float64):
    return torch.randn(2, length, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def system_of(made, u):
    conv_in, rest = made.project(u)
    return made.system(conv_in, rest)


def test_the_table_is_complete():
    assert LOG_NORMALIZERS.keys() == NORMALIZERS.keys()


@every_normalizer
@torch.no_grad()
def test_weights_and_eigenvalues_in_closed_form(name):
    for features, scaled in (("identity", False), ("elu+1", True)):
        made, u = mixer(normalizer=name, feature_map=features, scale_keys=scaled), hidden()
        system = system_of(made, u)
        eta = NORMALIZERS[name](u @ made.eta_proj.weight.T + made.eta_proj.bias)
        q, k = (x.unflatten(-1, (2, 5)) for x in (u @ made.qkv_proj.weight[:20].T).chunk(2, dim=-1))
        if features == "elu+1":
            q, k = F.elu(q) + 1, (F.elu(k) + 1) / 5**0.5
        expected = torch.einsum("bihn,bjhn->bhij", q, k).tril() / eta.transpose(1, 2)[..., None]
        assert_close(system.transfer_matrix(), expected, 1e-12)
        assert_close(system.normalizer(), eta, 1e-12)
        spectrum = system.eigenvalues()
        assert spectrum.realisation == "normalised"
        assert_close(spectrum.values, eta[:, :-1] / eta[:, 1:], 1e-12)
        assert bool((system.eigenvalues("native").values == 1).all())


@torch.no_grad()
def test_eigenvalues_where_the_normaliser_itself_has_no_number():
    """λ comes from differences of log η: neither η nor 1 / η need exist."""
    made = mixer(normalizer="exp")
    made.eta_proj.bias.fill_(-2000.0)
    system = system_of(made, hidden())
    x = hidden() @ made.eta_proj.weight.T
    assert bool((system.normalizer() == 0).all())
    assert_close(system.eigenvalues().values, (x[:, :-1] - x[:, 1:]).exp(), 1e-10)


@every_normalizer
def test_log_normalizers_over_the_whole_range(name):
    """Exact in float64 where η is a number, the limit elsewhere; float32 follows, gradients included."""
    x = torch.linspace(-30, 3, 67, dtype=torch.float64)
    assert_close(LOG_NORMALIZERS[name](x), NORMALIZERS[name](x).log(), 1e-13)
    limits = {"exp": -300.0, "softplus": -300.0, "sigmoid": -300.0, "exp_elu": -1.0}
    extremes = torch.tensor([-300.0, 300.0], requires_grad=True)
    low, high = LOG_NORMALIZERS[name](extremes)
    assert abs(low.item() - limits.get(name, 0.0)) <= 1e-4
    (gain,) = torch.autograd.grad((-high).exp() + low, extremes)
    assert bool(gain.isfinite().all())
    assert bool(high.isfinite())
    values = torch.linspace(-60, 60, 121, dtype=torch.float64)
    single = LOG_NORMALIZERS[name](values.float()).double()
    assert bool(((single - LOG_NORMALIZERS[name](values)).abs() <= 1e-5 * (1 + single.abs())).all())


def test_offsets_start_where_they_should():
    def offsets(kind, heads):
        config = NormalizedAttentionConfig(hidden_size=12, num_heads=heads, offset=kind)
        made = NormalizedAttentionMixer(config, layer_idx=0)
        made.init_parameters()
        assert made.transition_parameters == ("offset",)
        return made.offset.detach()

    assert_close(offsets("exp", 6), torch.tensor([4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), 1e-7)
    assert offsets("exp", 1).tolist() == [4.0]
    assert offsets("uniform", 1).tolist() == [11.0]
    stretched = offsets("uniform", 3)
    assert (stretched[0].item(), stretched[2].item()) == (8.0, 14.0)
    low, middle, high = torch.tensor([0.02, 0.06, 0.1]).double().expm1().log().tolist()
    assert abs(stretched[1].item() - (8 + 6 * (middle - low) / (high - low))) <= 1e-5
    assert NormalizedAttentionMixer(NormalizedAttentionConfig(), layer_idx=0).offset is None


@torch.no_grad()
def test_an_offset_adds_to_the_pre_activation():
    plain, shifted = mixer(normalizer="exp"), mixer(normalizer="exp", offset="exp")
    eta, eta_shifted = (system_of(made, hidden()).log_normalizer for made in (plain, shifted))
    assert_close(eta_shifted - eta, torch.tensor([4.0, 9.0]).double().expand_as(eta), 1e-7)


@torch.no_grad()
def test_what_the_convolution_sees():
    for channels, width in (("qkv", 26), ("qk", 20)):
        made = mixer(conv_kernel=3, conv_channels=channels)
        conv_in, (log_eta, v) = made.project(hidden())
        assert conv_in.shape[-1] == width == made.conv_width(made.config)
        assert log_eta.shape == (2, 9, 2)
        assert (v is None) == (channels == "qkv")
