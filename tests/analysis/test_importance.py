"""Importance of tokens: a classifier whose importances are known in closed form, and real classifiers."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dsf_models.analysis import importance as analysis
from tests.contract import REPRESENTATIVES, VOCAB, fresh

MASK = 4
LENGTH = 10


class Additive(nn.Module):
    """Two classes whose log odds are a sum of weights, one for each token at each position; masks weigh nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.randn(LENGTH, MASK + 1, generator=torch.Generator().manual_seed(0)).double()
        self.weights[:, MASK] = 0

    def odds(self, input_ids: Tensor) -> Tensor:
        return self.weights.expand(len(input_ids), -1, -1).gather(2, input_ids[..., None]).squeeze(-1)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        odds = self.odds(input_ids).sum(1)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(odds), odds], 1))


@pytest.fixture
def model() -> Additive:
    return Additive()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(MASK, (13, LENGTH), generator=generator), torch.randint(2, (13,), generator=generator)


def test_importance_is_the_loss_of_probability(model: Additive, inputs: tuple[Tensor, Tensor]) -> None:
    ids, labels = inputs
    odds = model.odds(ids)
    sign = 2.0 * labels[:, None] - 1
    whole = odds.sum(1, keepdim=True)
    expected = torch.sigmoid(sign * whole) - torch.sigmoid(sign * (whole - odds))
    for batch_size in (256, 5):
        found = analysis.token_importance(model, ids, labels, MASK, batch_size)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_own_and_greedy_orders_of_an_additive_model_are_those_of_its_weights(
    model: Additive, inputs: tuple[Tensor, Tensor]
) -> None:
    ids, labels = inputs
    expected = ((2.0 * labels[:, None] - 1) * model.odds(ids)).argsort(1, descending=True)
    assert analysis.importance_order(analysis.token_importance(model, ids, labels, MASK)).equal(expected)
    assert analysis.greedy_order(model, ids, labels, MASK, 4).equal(expected[:, :4])


def test_a_curve_masks_the_first_tokens_of_the_order(model: Additive, inputs: tuple[Tensor, Tensor]) -> None:
    ids, labels = inputs
    order = analysis.random_order(ids.float(), torch.Generator().manual_seed(2))
    counts = [0, 3, LENGTH]
    curve = analysis.masking_curve(model, ids, labels, order, counts, MASK)
    for row, count in zip(curve, counts, strict=True):
        masked = ids.clone()
        for i in range(len(ids)):
            masked[i, order[i, :count]] = MASK
        torch.testing.assert_close(row, analysis.class_probability(model, masked, labels))
    torch.testing.assert_close(curve[2], torch.full((13,), 0.5))
    with pytest.raises(ValueError, match="counts"):
        analysis.masking_curve(model, ids, labels, order, [LENGTH + 1], MASK)


def test_orders_of_others_and_of_all(inputs: tuple[Tensor, Tensor]) -> None:
    importance = torch.randn(13, LENGTH, generator=torch.Generator().manual_seed(3))
    own = analysis.importance_order(importance)
    for seed in range(20):
        other = analysis.other_order(importance, torch.Generator().manual_seed(seed))
        assert not (other == own).all(1).any()
        assert sorted(map(tuple, other.tolist())) == sorted(map(tuple, own.tolist()))
    everyone = analysis.global_order(importance)
    assert everyone.shape == own.shape
    assert everyone.unique(dim=0).tolist() == [importance.mean(0).argsort(descending=True).tolist()]
    random = analysis.random_order(importance, torch.Generator().manual_seed(0))
    assert random.sort(1).values.equal(torch.arange(LENGTH).expand(13, -1))
    with pytest.raises(ValueError, match="at least two"):
        analysis.other_order(importance[:1], torch.Generator())


def test_the_kept_fraction_is_that_before_the_first_fall() -> None:
    # The second input falls below 0.9 of its start and rises again: it has fallen.
    curve = torch.tensor([[1.0, 1.0, 0.5], [0.95, 0.8, 0.5], [0.91, 0.95, 0.5], [0.2, 0.9, 0.5]])
    found = analysis.kept_fraction(curve, [0, 2, 4, 10], 10)
    assert found.tolist() == pytest.approx([0.6, 1.0, 0.0])
    with pytest.raises(ValueError, match="increase from 0"):
        analysis.kept_fraction(curve, [1, 2, 4, 10], 10)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_real_classifiers(name: str) -> None:
    model = fresh(name, head="sequence_classification")
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(1, VOCAB, (3, 6), generator=generator), torch.randint(2, (3,), generator=generator)
    found = analysis.token_importance(model, ids, labels, mask_token_id=0)
    order = analysis.importance_order(found)
    curve = analysis.masking_curve(model, ids, labels, order, [0, 1], mask_token_id=0)
    torch.testing.assert_close(curve[0] - curve[1], found.max(1).values)
