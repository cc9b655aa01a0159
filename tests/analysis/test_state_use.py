"""Normaliser and state: closed forms, and the same numbers from a plain loop."""

import pytest
import torch

from dsf_models import DSFSystem, SoftmaxSystem, engine
from dsf_models.analysis import gain_use, log_normalizer, normalizer_use, state_use
from dsf_models.transitions import Identity, ScalarDecay
from tests.contract import every, padding_mask, place, sequences, shared


def test_equal_weights_grow_by_one():
    """η_i = i + 1, so that log η_i grows with log(i + 1) at slope 1."""
    q = torch.zeros(2, 12, 3, 4)
    softmax = SoftmaxSystem(q=q, k=q, u=q, scale=0.5)
    ones = torch.ones(2, 12, 3, 1)
    linear = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), normalized=True)
    for system in (softmax, linear):
        found = normalizer_use(system)
        torch.testing.assert_close(found.growth, torch.ones(3).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.highest.exp(), torch.full((3,), 12.0).double(), rtol=1e-6, atol=0)
        assert found.not_positive == 0


def test_positions_count_from_the_start_of_each_document():
    ones = torch.ones(1, 12, 1, 1)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, [0, 5]] = True
    packed = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), normalized=True, starts=starts)
    torch.testing.assert_close(normalizer_use(packed).growth, torch.ones(1).double(), rtol=1e-6, atol=0)


def test_a_given_normaliser_and_pads():
    ones = torch.ones(2, 6, 1, 1)
    log_eta = torch.arange(6.0).expand(2, 6)[..., None]
    lengths = torch.tensor([6, 3])
    system = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), log_normalizer=log_eta, lengths=lengths)
    found = normalizer_use(system)
    assert (float(found.lowest), float(found.highest)) == (0, 5)
    assert found.log_eta[1, 3:].isnan().all()
    assert found.not_positive == 0


def test_a_sum_that_is_not_positive_is_counted():
    ones = torch.ones(1, 4, 1, 1)
    weights = torch.tensor([1.0, -3.0, 1.0, 5.0]).view(1, 4, 1, 1)
    system = DSFSystem(u=ones, B=weights, C=ones, transition=Identity(), normalized=True)
    found = normalizer_use(system)
    assert found.not_positive == 2
    assert found.log_eta[0, :, 0].isnan().tolist() == [False, True, True, False]


def test_gains():
    ones = torch.ones(2, 5, 2, 1)
    gain = torch.stack([torch.arange(1.0, 6.0), torch.ones(5)], dim=-1).expand(2, 5, 2)
    system = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), input_gain=gain, lengths=torch.tensor([5, 3]))
    (name, found), *others = gain_use(system).items()
    assert (name, others) == ("input_gain", [])
    assert found.lowest.tolist() == [1, 1]
    assert found.highest.tolist() == [5, 1]
    assert found.growth.tolist() == pytest.approx([1, 0])
    signed = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), output_gain=gain - 2)
    assert gain_use(signed)["output_gain"].growth.isnan().all()
    assert gain_use(None) == {}


def test_orthogonal_inputs_fill_the_state():
    """With one-hot b_i and λ = 0 the state is one direction at a time, and over time all of them alike."""
    eye = torch.eye(4)[None, :, None]
    u = torch.ones(1, 4, 1, 2)
    forget = ScalarDecay(torch.full((1, 1, 1), -1e3))
    found = state_use(DSFSystem(u=u, B=eye, C=eye, transition=forget))
    assert found.rank_over_time.tolist() == pytest.approx([4])
    torch.testing.assert_close(found.rank, torch.ones(1, 4, 1).double())
    torch.testing.assert_close(found.per_state[0, :, 0], 2**0.5 * torch.eye(4).double(), rtol=1e-6, atol=1e-12)
    kept = state_use(DSFSystem(u=torch.eye(4)[None, :, None], B=eye, C=eye, transition=Identity()))
    assert kept.rank[0, :, 0].tolist() == pytest.approx([1, 2, 3, 4])


@every("default", "windowed")
@torch.no_grad()
def test_of_every_architecture(name, case):
    """Norms and ranks against singular values of the states that the reference leaves behind."""
    model, rows, mask = shared(name, case), sequences((7, 5)), padding_mask("right", (7, 5))
    for system in model.dsf_systems(place(rows, mask, 0), attention_mask=mask):
        found = state_use(system)
        if isinstance(found, str):
            assert not isinstance(system, DSFSystem)
            continue
        for row, length in ((0, 7), (1, 5)):
            cut = system.narrow(0, length)
            _, state = engine.evaluate_sequential(cut)
            state = state[row, :, :, : system.head_dim] if system.normalized else state[row]
            singular = torch.linalg.svdvals(state)
            rank = singular.square().sum(-1).square() / singular.pow(4).sum(-1)
            torch.testing.assert_close(found.rank[row, length - 1], rank)
            torch.testing.assert_close(found.per_state[row, length - 1], state.norm(dim=-1))
            torch.testing.assert_close(found.per_channel[row, length - 1], state.norm(dim=-2))
        assert found.rank[1, 5:].isnan().all()
        assert bool((found.rank_over_time >= 1 - 1e-9).all())
        assert (log_normalizer(system) is not None) == system.has_normalizer
