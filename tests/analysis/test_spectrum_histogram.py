"""The histogram of |λ|: each value in one bin, and known spectra where they belong."""

import pytest
import torch

from dsf_models import LinearAttentionConfig, SoftmaxAttentionConfig, SSDConfig
from dsf_models.analysis import BINS, RADII, initial_spectrum
from tests.contract import every, fresh, sequences, small_config

SIZES = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "state_size": 4}


def test_every_magnitude_lies_in_exactly_one_bin():
    edges = [0.0, 0.1, 0.5, 0.9, 1.0, 10.0, 100.0]
    just_above_one = torch.nextafter(torch.tensor(1.0).double(), torch.tensor(2.0).double())
    for value, name in zip(edges, [*BINS[:5], "[10, 100)", "[100, ∞)"], strict=True):
        found = RADII.count(torch.tensor([value], dtype=torch.float64))
        assert found.sum() == 1
        assert BINS[int(found.argmax())] == name
    for value, name in ((float(just_above_one), "(1, 10)"), (1 - 1e-12, "[0.9, 1)"), (float("inf"), "[100, ∞)")):
        assert BINS[int(RADII.count(torch.tensor([value], dtype=torch.float64)).argmax())] == name


def test_pads_are_left_out():
    found = RADII.count(torch.tensor([[0.2, float("nan")], [0.95, 0.95]]))
    assert found.tolist() == [0, 1, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("config_class", [SoftmaxAttentionConfig, LinearAttentionConfig])
def test_attention_starts_near_full_memory(config_class):
    """With queries and keys near 0, λ_i = i / (i + 1): below 0.9 for i = 1 … 8, then above; i = 9 is on the edge."""
    config = config_class(**SIZES, initializer_range=1e-6)
    found = initial_spectrum(config, length=101)
    assert found.realisations == ["normalised"] * 2
    expected = torch.tensor([0, 0, 0.08, 0.92, 0, 0, 0, 0], dtype=torch.float64)
    assert float((found.fractions - expected).abs().max()) <= 0.01 + 1e-12


def test_ssd_starts_within_its_intended_spectrum():
    """Δ in [0.001, 0.1] and a in [1, 16]: λ in [exp(-1.6), exp(-0.001)], where the input moves Δ little."""
    found = initial_spectrum(SSDConfig(**SIZES, initializer_range=1e-6), length=10)
    assert found.realisations == ["native"] * 2
    assert float(found.mean[1:4].sum()) == pytest.approx(1)


@every("default", "full")
def test_fractions_sum_to_one(name, case):
    config = small_config(name, case)
    found = initial_spectrum(config, length=9)
    layers = [layer for layer, realisation in enumerate(found.realisations) if realisation]
    sums = found.fractions[layers].sum(-1)
    assert torch.allclose(sums[~sums.isnan()], torch.ones(1).double())
    assert torch.equal(found.fractions.isnan(), initial_spectrum(config, length=9).fractions.isnan())


def test_the_random_state_and_the_model_are_left_as_they_were():
    model = fresh("ssd").train()
    before = torch.get_rng_state()
    first = initial_spectrum(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.fractions, initial_spectrum(model).fractions)
    ids = sequences((9,))[0][None]
    assert not torch.equal(first.fractions, initial_spectrum(model, ids).fractions)
    assert not torch.equal(first.fractions, initial_spectrum(model, seed=1).fractions)


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match=r"length=1: .* at least 2"):
        initial_spectrum(SSDConfig(**SIZES), length=1)
