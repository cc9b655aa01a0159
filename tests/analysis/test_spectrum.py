"""Spectra of any model: pads and first tokens aside, phases in full, error bars, before and after training."""

import math

import pytest
import torch

from dsf_models import DSFSystem, LRUConfig, SoftmaxSystem, SSDConfig
from dsf_models.analysis import (
    FOLLOW_UP_RADII,
    PHASES,
    RADII,
    compare_spectra,
    initial_spectrum,
    spectrum,
)
from dsf_models.analysis.spectrum import _histogram, _phases
from dsf_models.transitions import Rotation, ScalarDecay
from tests.contract import PAD, every, fresh, packed, padding_mask, place, sequences, shared


def of_scalars(*rows):
    """A system with λ_0 = 1 and then the given λ, row by row."""
    values = torch.tensor([[1.0, *row] for row in rows], dtype=torch.float64)[..., None]
    ones = torch.ones(*values.shape[:2], 1, 1, dtype=torch.float64)
    return DSFSystem(u=ones, B=ones, C=ones, transition=ScalarDecay(values.abs().log(), values.sign()))


def test_zero_logits_give_i_over_i_plus_one():
    q = torch.zeros(1, 30, 2, 4)
    found = _histogram([SoftmaxSystem(q=q, k=torch.randn(1, 30, 2, 4), u=torch.randn(1, 30, 2, 3), scale=0.5)], RADII)
    exact = torch.arange(1, 30).double()
    exact = exact / (exact + 1)
    assert float(found.mean_magnitude[0, 0]) == pytest.approx(float(exact.mean()), rel=1e-14)
    below = (exact < 0.9 - 1e-9).sum() / 29
    # 9 / 10 is on an edge.
    assert float(found.fractions[0, 1, :3].sum()) == pytest.approx(float(below), abs=1.01 / 29)
    assert found.realisations == ["normalised"]


def test_one_has_a_bin_of_its_own_but_in_the_follow_ups():
    values = torch.tensor([1.0, 0.1, 0.5, 0.9, 10.0, 100.0, math.nan], dtype=torch.float64)
    assert RADII.count(values).tolist() == [0, 1, 1, 1, 1, 0, 1, 1]
    assert FOLLOW_UP_RADII.count(values).tolist() == [0, 1, 1, 1, 1, 1, 1]
    for bins in (RADII, FOLLOW_UP_RADII, PHASES):
        assert len(bins.names) == len(bins.edges) + 1


def test_negative_phases_count():
    """A pair of conjugates has two phases, and a negative λ is at 180 degrees."""
    angle = torch.tensor([[math.radians(30.0), math.radians(120.0)]])
    one = torch.ones(1, 1, 1, 4)
    pairs = DSFSystem(u=torch.ones(1, 3, 1, 1), B=one, C=one, transition=Rotation(torch.zeros(1, 2), angle))
    assert _histogram([pairs], RADII).phase_fractions[0, 0].tolist() == [0, 0, 0.5, 0, 0.5]
    signed = _histogram([of_scalars([-0.5, 0.5, 0.5, -0.2])], RADII)
    assert signed.phase_fractions[0, 0].tolist() == [0.5, 0, 0, 0, 0.5]
    degrees = _phases(torch.tensor([-1j, 1j, 0j, complex(math.nan, math.nan)], dtype=torch.complex128))
    assert degrees[:3].tolist() == [90, 90, 0]
    assert degrees[3].isnan()


def test_error_bars_are_those_over_rows():
    found = _histogram([of_scalars([0.2, 0.2, 0.95, 0.95], [0.2, 0.95, 0.95, 0.95])], RADII)
    assert found.by_row[0, 0, :, 1].tolist() == [0.5, 0.25]
    assert found.fractions[0, 0, 1] == pytest.approx(0.375)
    assert float(found.deviation[0, 0, 1]) == pytest.approx(float(torch.tensor([0.5, 0.25]).std()))
    assert found.mean_magnitude[0, 0] == pytest.approx((3 * 0.2 + 5 * 0.95) / 8)
    assert _histogram([of_scalars([0.2, 0.3])], RADII).deviation.isnan().all()


@every("default")
@torch.no_grad()
def test_pads_and_documents_change_nothing(name, case):
    model = shared(name, case)
    rows = sequences()
    alone = [spectrum(model, row[None]) for row in rows]
    if not any(alone[0].realisations):
        return
    magnitudes = torch.stack([one.magnitudes[..., 0] for one in alone], dim=-1)
    mask = padding_mask("interior")
    padded = spectrum(model, place(rows, mask, PAD), attention_mask=mask)
    torch.testing.assert_close(padded.magnitudes, magnitudes, rtol=1e-9, atol=1e-9, equal_nan=True)
    numbers = torch.stack([one.counts[:, :, 0].sum(-1) for one in alone], dim=-1)
    assert torch.equal(padded.counts.sum(-1).nan_to_num(), numbers.nan_to_num())
    together = spectrum(model, **packed(rows)["seq_idx"])
    weighted = sum(one.mean_magnitude * one.counts.sum((2, 3)) for one in alone) / numbers.sum(-1)
    torch.testing.assert_close(together.mean_magnitude, weighted, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(together.counts.sum((2, 3)).nan_to_num(), numbers.sum(-1).nan_to_num())


@every("full")
def test_percentages_sum_to_one(name, case):
    found = spectrum(shared(name, case), torch.stack(sequences((9, 9))), bins=FOLLOW_UP_RADII)
    for shares in (found.fractions, found.phase_fractions, found.by_row):
        sums = shares.sum(-1)
        torch.testing.assert_close(sums[~sums.isnan()], torch.ones_like(sums[~sums.isnan()]))
    for layer, reason in enumerate(found.reasons):
        assert bool(found.fractions[layer].isnan().all()) == (reason is not None)


def test_initial_beside_trained():
    model, ids = fresh("ssd"), sequences((20,))[0][None]
    comparison = compare_spectra(model, ids, seed=3)
    assert torch.equal(comparison.initial.counts, initial_spectrum(model.config, ids, seed=3).counts)
    assert torch.equal(comparison.now.counts, spectrum(model, ids).counts)
    assert torch.equal(comparison.change, comparison.now.fractions - comparison.initial.fractions)
    assert bool((comparison.change != 0).any())


def test_the_intended_ring_of_the_lru():
    config = LRUConfig(vocab_size=41, hidden_size=16, num_hidden_layers=1, state_size=64, r_min=0.9, r_max=0.99)
    found = initial_spectrum(config, length=4)
    assert float(found.fractions[0, 0, 3]) == 1
    assert float(found.phase_fractions.sum()) == pytest.approx(1)


def test_declared_and_released_starts_of_ssd():
    """As released, Δ = softplus(0) and a = 1: λ = 1 / 2; declared, memories of ten tokens and more."""
    sizes = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "state_size": 4}
    released = initial_spectrum(SSDConfig(**sizes, initialization="as_released", initializer_range=1e-6), length=8)
    assert float(released.mean_magnitude.mean()) < float(
        initial_spectrum(SSDConfig(**sizes, initializer_range=1e-6), length=8).mean_magnitude.mean()
    )
