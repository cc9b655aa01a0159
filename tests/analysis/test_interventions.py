"""Interventions: nothing changes where they change nothing, what they promise holds, and they leave no trace."""

import pytest
import torch

from dsf_models import NotADynamicalSystemError
from dsf_models.analysis import (
    clamp_eigenvalues,
    freeze_eigenvalues,
    interventions,
    magnitude,
    map_eigenvalues,
    replace_transition,
    spectrum,
    without_normalizer,
)
from dsf_models.analysis.interventions import clamped
from dsf_models.filters import FilterSystem
from dsf_models.system import DSFSystem, DSFSystemError
from dsf_models.transitions import DPLR, Identity, ScalarDecay
from tests.contract import every, fresh, generate, logits_in_segments, sequences, shared

IDS = torch.stack(sequences((12, 12)))
FORMS = every("default", "windowed", "channel")


def changeable(model):
    """The layers whose eigenvalues can be replaced, and those without any Λ to change."""
    mixers = [block.token_mixer for block in model.base_model.layers]
    fixed = [layer for layer, mixer in enumerate(mixers) if mixer.no_interventions is not None]
    systems = [firsts(system) for system in model.dsf_systems(IDS)]
    layers = [i for i, one in enumerate(systems) if i not in fixed and not isinstance(one.transition, DPLR)]
    return layers, fixed


def firsts(system):
    return system.forward if isinstance(system, FilterSystem) else system


@FORMS
@torch.no_grad()
def test_identity_changes_nothing(name, case):
    model = shared(name, case)
    layers, fixed = changeable(model)
    before = model(IDS).logits
    with map_eigenvalues(model, lambda values: values.clone(), layers=layers):
        assert torch.equal(model(IDS).logits, before)
    with clamp_eigenvalues(model, 1e9, layers=layers):
        assert torch.equal(model(IDS).logits, before)
    with replace_transition(model, lambda transition: transition, layers=[i for i in range(2) if i not in fixed]):
        assert torch.equal(model(IDS).logits, before)


@every("default")
@torch.no_grad()
def test_a_round_trip_of_the_eigenvalues_costs_rounding_alone(name, case):
    """Where one λ changes all are written anew, here by as good as nothing, in single precision too."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = shared(name, case, dtype)
        layers, _ = changeable(model)
        before = model(IDS).logits
        with map_eigenvalues(model, lambda values: values * (1 - 1e-13), layers=layers):
            torch.testing.assert_close(model(IDS).logits, before, rtol=tolerance, atol=tolerance)


@FORMS
@torch.no_grad()
def test_clamped_to_zero_no_memory_is_left(name, case):
    model = shared(name, case)
    layers, _ = changeable(model)
    with clamp_eigenvalues(model, 0.0, layers=layers):
        systems = model.dsf_systems(IDS)
        for layer in layers:
            phi = magnitude(systems[layer].transfer_matrix())
            assert float((phi - torch.diag_embed(phi.diagonal(dim1=-2, dim2=-1))).abs().max()) <= 1e-250


@FORMS
@torch.no_grad()
def test_clamped_eigenvalues_are_within_the_bound_in_every_way_of_evaluation(name, case):
    model = shared(name, case)
    layers, _ = changeable(model)
    with clamp_eigenvalues(model, 0.3, layers=layers):
        systems = model.dsf_systems(IDS)
        for layer in layers:
            system = firsts(systems[layer])
            values = system.transition.eigenvalues(*system.u.shape[:3]).abs()
            assert float(values.max()) <= 0.3 * (1 + 1e-12)
        whole = model(IDS, use_cache=False).logits
        torch.testing.assert_close(logits_in_segments(model, IDS, [5, 6]), whole, rtol=1e-9, atol=1e-9)


@every("default")
@torch.no_grad()
def test_frozen_eigenvalues_are_their_mean_and_constant(name, case):
    model = shared(name, case)
    layers, _ = changeable(model)
    before = model.dsf_systems(IDS)
    with freeze_eigenvalues(model, IDS, layers=layers):
        other = torch.stack(sequences((9, 9), seed=5))
        for layer, system in enumerate(model.dsf_systems(other)):
            if layer not in layers:
                continue
            # The first layer alone sees the inputs that it saw before.
            system = firsts(system)
            values = system.transition.eigenvalues(*system.u.shape[:3])
            assert float((values - values[:1, :1]).abs().max()) <= 1e-12
            if layer == layers[0] == 0:
                first = firsts(before[0])
                mean = first.transition.eigenvalues(*first.u.shape[:3])[:, 1:].mean((0, 1))
                torch.testing.assert_close(values[0, 0], mean, rtol=1e-10, atol=1e-12)
        assert torch.equal(generate(model, other), generate(model, other, use_cache=False))


@every("default")
@torch.no_grad()
def test_heads_that_were_not_chosen_stay_as_they_are(name, case):
    model = shared(name, case)
    layers, _ = changeable(model)
    before = model.dsf_systems(IDS)
    if not layers or firsts(before[layers[0]]).num_heads == 1:
        return
    layer = layers[0]
    with clamp_eigenvalues(model, 0.1, layers=[layer], heads=[1]):
        after = model.dsf_systems(IDS)
    difference = (after[layer].transfer_matrix() - before[layer].transfer_matrix()).abs()
    by_head = difference.flatten(2).amax((0, 2))
    assert float(by_head[1]) > 1e-6
    assert float(torch.cat([by_head[:1], by_head[2:]]).max()) <= 1e-12


@every("default")
@torch.no_grad()
def test_without_normaliser(name, case):
    model = shared(name, case)
    systems = model.dsf_systems(IDS)
    chosen = [i for i, one in enumerate(systems) if isinstance(one, DSFSystem) and one.has_normalizer]
    if not chosen:
        with pytest.raises((DSFSystemError, NotADynamicalSystemError)), without_normalizer(model):
            pass
        return
    layer = chosen[0]
    with without_normalizer(model, layers=[layer]):
        bare = model.dsf_systems(IDS)[layer]
        changed = model(IDS).logits
    assert not bare.has_normalizer
    eta = systems[layer].normalizer().transpose(1, 2)
    torch.testing.assert_close(bare.transfer_matrix(), systems[layer].transfer_matrix() * eta[..., None])
    assert float((changed - model(IDS).logits).abs().max()) > 1e-3


@torch.no_grad()
def test_single_heads_of_a_normaliser():
    model = shared("normalized_attention", "default")
    before = model.dsf_systems(IDS)[0]
    with without_normalizer(model, layers=[0], heads=[2]):
        after = model.dsf_systems(IDS)[0]
    assert not after.log_normalizer[..., 2].any()
    assert torch.equal(after.log_normalizer[..., :2], before.log_normalizer[..., :2])
    with (
        pytest.raises(ValueError, match=r"heads=\[0\]: .* leave heads out"),
        without_normalizer(shared("linear_attention", "default"), heads=[0]),
    ):
        pass


@torch.no_grad()
def test_nothing_is_left_behind_whatever_happens():
    model = fresh("ssd").double()
    before = model(IDS).logits
    with pytest.raises(IndexError), clamp_eigenvalues(model, 0.1):
        model(torch.full((1, 3), 10**6))  # no such token
    assert torch.equal(model(IDS).logits, before)
    assert all(block.token_mixer.intervention is None for block in model.model.layers)


@torch.no_grad()
def test_one_inside_another():
    model = shared("ssd", "default")
    with map_eigenvalues(model, lambda values: 2 * values), clamp_eigenvalues(model, 0.5):
        values = model.dsf_systems(IDS)[0].eigenvalues().values
    alone = model.dsf_systems(IDS)[0].eigenvalues().values
    torch.testing.assert_close(values, (2 * alone).clamp(max=0.5))


@torch.no_grad()
def test_any_structure_and_any_system_may_be_put_in():
    model = shared("ssd", "bare")
    with replace_transition(model, lambda transition: Identity()):
        assert all(isinstance(system.transition, Identity) for system in model.dsf_systems(IDS))
    mixer = model.model.layers[0].token_mixer
    with interventions({mixer: lambda system: system.narrow(0, system.length)}):
        assert model.dsf_systems(IDS)[0].length == 12
    with replace_transition(model, lambda transition: ScalarDecay(torch.zeros(1, 1, 4), -torch.ones(1, 1, 4))):
        assert float(model.dsf_systems(IDS)[1].eigenvalues().values.max()) == -1


def test_gradients_flow_through_a_changed_model():
    model = fresh("s6").double()
    with clamp_eigenvalues(model, 0.5):
        model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstm", {}, "layer=0: an LSTM has no Λ"),
        ("softmax_attention", {}, "layer=0: softmax attention has an infinite state"),
        ("s4", {}, "layer=0: Λ of structure 'dplr' is not diagonal"),
        ("ssd", {"layers": [2]}, "layer=2: the model has 2 layers"),
        ("ssd", {"heads": [9]}, "head=9: layer 0 has 4 heads"),
        ("ssd", {"bound": -1}, "bound=-1: give the largest"),
    ],
)
def test_what_has_no_meaning_is_refused_in_words(name, options, message):
    model = shared(name, "default")
    with (
        pytest.raises((ValueError, NotADynamicalSystemError), match=message),
        clamp_eigenvalues(model, **{"bound": 0.5} | options),
    ):
        pass
    assert all(block.token_mixer.intervention is None for block in model.model.layers)


@torch.no_grad()
def test_a_hybrid_is_changed_where_it_can_be():
    model = shared("hybrid", "bare")
    with pytest.raises(NotADynamicalSystemError, match=r"layer=1: .*layers=\[…\]"), clamp_eigenvalues(model, 0.5):
        pass
    with clamp_eigenvalues(model, 0.5, layers=[0]):
        assert float(model.dsf_systems(IDS)[0].eigenvalues().values.max()) <= 0.5 + 1e-12


def test_a_clamp_has_finite_gradients_next_to_zero():
    values = torch.tensor([0.0, 1e-300, 1e-3, 0.5, 0.9, -2.0], dtype=torch.float64, requires_grad=True)
    found = clamped(values, 0.5)
    found.sum().backward()
    assert found.tolist() == [0.0, 1e-300, 1e-3, 0.5, 0.5, -0.5]
    assert values.grad.tolist()[:3] == [1.0, 1.0, 1.0]
    assert bool(values.grad.isfinite().all())
    with pytest.raises(ValueError, match="finite"), clamp_eigenvalues(shared("ssd", "default"), float("inf")):
        pass


def test_a_mean_takes_two_tokens_and_heads_that_there_are():
    with pytest.raises(ValueError, match="length=1"), freeze_eigenvalues(shared("ssd", "default"), IDS[:, :1]):
        pass
    with (
        pytest.raises(ValueError, match="head=99"),
        freeze_eigenvalues(shared("linear_attention", "default"), IDS, heads=[99]),
    ):
        pass


def test_every_module_returns_to_the_mode_it_was_in():
    model = fresh("ssd").train()
    frozen = model.base_model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    with freeze_eigenvalues(model, IDS):
        pass
    with pytest.raises(IndexError):
        spectrum(model, IDS + 10_000)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.training
    assert not frozen.training
