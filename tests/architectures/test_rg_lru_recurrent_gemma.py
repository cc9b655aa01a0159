"""RG-LRU is the recurrent block of transformers' RecurrentGemma, weight for weight."""

import pytest
import torch
from transformers import DynamicCache, RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

from dsf_models import RGLRUConfig, engine
from dsf_models.architectures.rg_lru import RGLRUMixer, _BoundedSqrt
from dsf_models.backbone import TokenLayout
from tests.contract import assert_close, assert_gradients_close, fresh, sequences

WIDTH, HEADS, PREFILL, LENGTH = 16, 4, 9, 14
NAMES = {
    "linear_x": "in_proj",
    "linear_y": "gate_proj",
    "linear_out": "out_proj",
    "conv_1d": "conv",
    "rg_lru.": "",
}


def renamed(name):
    """Return our name of a parameter of theirs."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture
def blocks():
    """Return their block and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = RecurrentGemmaRecurrentBlock(
        RecurrentGemmaConfig(hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=HEADS, num_hidden_layers=1), 0
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = RGLRUMixer(RGLRUConfig(hidden_size=WIDTH, num_heads=HEADS, num_hidden_layers=1), 0)
    ours.load_state_dict({renamed(name): value for name, value in theirs.state_dict().items()})
    return theirs, ours


def hidden_states():
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def positions(start, stop):
    return torch.arange(start, stop)[None].expand(2, -1)


def test_outputs_and_gradients(blocks):
    theirs, ours = blocks
    x = hidden_states()
    expected, _ = theirs(x, positions(0, LENGTH), None, use_cache=False)
    found, _ = ours(x, TokenLayout(positions(0, LENGTH)))
    assert_close(found, expected, 1e-5)
    weight = torch.randn_like(expected)
    for module, y in ((theirs, expected), (ours, found)):
        (y * weight).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
    assert_gradients_close(
        {name: parameter.grad for name, parameter in ours.named_parameters()},
        {renamed(name): parameter.grad for name, parameter in theirs.named_parameters()},
        1e-5,
    )


@torch.no_grad()
def test_prefill_and_decoding(blocks):
    theirs, ours = blocks
    x, cache = hidden_states(), DynamicCache(config=ours.config)
    for start, stop in [(0, PREFILL), *((time, time + 1) for time in range(PREFILL, LENGTH))]:
        expected, _ = theirs(x[:, start:stop], positions(start, stop), None, use_cache=True)
        found, _ = ours(x[:, start:stop], TokenLayout(positions(start, stop)), cache)
        assert_close(found, expected, 1e-5, f"tokens {start} to {stop}")


@torch.no_grad()
def test_documents_start_anew(blocks):
    """Where a position is 0, λ is 0 and the input is not scaled by √(1 - λ²)."""
    theirs, ours = blocks
    x = hidden_states()
    places = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)])[None].expand(2, -1)
    expected = theirs.rg_lru(x, places)
    y, _ = engine.evaluate(ours.system(x, places == 0))
    assert_close(y.flatten(2), expected, 1e-5)
    unreset, _ = engine.evaluate(ours.system(x, positions(0, LENGTH) == 0))
    assert not torch.allclose(unreset.flatten(2)[:, 5:], expected[:, 5:], atol=1e-2)


@torch.no_grad()
def test_only_the_first_token_of_a_sequence_is_a_first_token():
    """A cached segment goes on: its first token is scaled like any other."""
    model = fresh("rg_lru", "bare").double()
    ids = torch.stack(sequences((10, 10)))
    (mixer, *_), system = [block.mixer for block in model.model.layers], model.dsf_systems(ids)[0]
    decay = system.transition.decay
    assert not decay[:, 0].any()
    assert bool((decay[:, 1:] > 0).all())
    x = system.u
    gate = (torch.einsum("bthp,hpq->bthq", x, mixer.input_gate_weight) + mixer.input_gate_bias).sigmoid()
    torch.testing.assert_close(system.input_gain, (1 - decay**2).sqrt() * gate, rtol=1e-9, atol=0.0)
    cache = DynamicCache(config=model.config)
    model(ids[:, :4], past_key_values=cache, use_cache=True)
    later = model(ids[:, 4:], past_key_values=cache, use_cache=True).logits
    assert_close(later, model(ids, use_cache=False).logits[:, 4:], 1e-12)
    anew = model(ids[:, 4:], use_cache=False).logits
    assert not torch.allclose(anew, later, atol=1e-3)


@torch.no_grad()
def test_half_precision_keeps_decays_near_one(blocks):
    _, ours = blocks
    ours.recurrent_param.data.fill_(-9.0)
    half = RGLRUMixer(ours.config, 0)
    half.load_state_dict(ours.state_dict())
    half = half.bfloat16()
    for name in half.transition_parameters:
        getattr(half, name).data = getattr(ours, name).data
    x = hidden_states().bfloat16()
    first = positions(0, LENGTH) == 0
    decay = half.system(x, first).transition.decay
    assert decay.dtype == torch.float32
    assert_close(1 - decay[:, 1:], 1 - ours.system(x.float(), first).transition.decay[:, 1:], 0.02)


def test_the_roots_slope_is_bounded(blocks):
    """At λ = 1 the derivative of √(1 - λ²) is infinite; training goes on with a large one."""
    _, ours = blocks
    ours.recurrent_param.data.fill_(-40.0)
    y, _ = ours(hidden_states(), TokenLayout(positions(0, LENGTH)))
    y.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in ours.parameters())
    x = torch.tensor([0.0, 1e-8, 0.25], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(_BoundedSqrt.apply(x).sum(), x)
    torch.testing.assert_close(slope, torch.tensor([1000.0, 1000.0, 1.0], dtype=torch.float64))


@torch.no_grad()
def test_radius_at_initialisation():
    torch.manual_seed(0)
    mixer = RGLRUMixer(RGLRUConfig(hidden_size=4096, num_heads=64), 0)
    mixer.init_parameters()
    squared = (-2 * torch.nn.functional.softplus(mixer.recurrent_param)).exp()
    low, high = 0.9**2, 0.999**2
    assert low - 1e-5 <= squared.min() < low + 0.01
    assert high - 0.01 < squared.max() <= high + 1e-5
    assert abs(squared.mean() - (low + high) / 2) < 0.005
    assert abs(mixer.recurrent_gate_weight.std() - 0.125) < 0.002
    assert not mixer.input_gate_bias.any()
