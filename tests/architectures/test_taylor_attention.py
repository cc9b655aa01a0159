"""Taylor attention: its features, what happens at odd orders, and how fast it becomes softmax attention."""

import itertools
import math
import warnings

import pytest
import torch

from dsf_models import SoftmaxSystem, TaylorAttentionConfig
from dsf_models.architectures.taylor_attention import TaylorAttentionMixer, symmetric_taylor_features
from dsf_models.system import taylor_features
from tests.contract import assert_close


def vectors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(**fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TaylorAttentionConfig(hidden_size=6, num_heads=2, state_size=3, **fields)
    made = TaylorAttentionMixer(config, layer_idx=0).double()
    torch.nn.init.normal_(made.qkv_proj.weight, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_both_sets_of_features_give_the_truncated_exponential(width, order):
    q, k = vectors(0, 7, width), vectors(1, 7, width)
    logits = q @ k.T
    expected = sum(logits**degree / math.factorial(degree) for degree in range(order + 1))
    for features, count in (
        (symmetric_taylor_features, math.comb(width + order, order)),
        (taylor_features, sum(width**degree for degree in range(order + 1))),
    ):
        assert features(q, order).shape == (7, count)
        assert_close(features(q, order) @ features(k, order).T, expected, 1e-13)


def test_merged_features_are_distinct_monomials():
    """x^α / √α!, each α once: at x = (2, 3, 5) the monomials, which unique factorisation tells apart, are all there."""
    found = symmetric_taylor_features(torch.tensor([2.0, 3.0, 5.0]).double(), 3)
    powers = [(a, b, c) for a in range(4) for b in range(4) for c in range(4) if a + b + c <= 3]
    expected = [
        2**a * 3**b * 5**c / math.sqrt(math.factorial(a) * math.factorial(b) * math.factorial(c)) for a, b, c in powers
    ]
    assert_close(found.sort().values, torch.tensor(sorted(expected), dtype=torch.float64), 1e-14)


@pytest.mark.parametrize("merged", [True, False])
def test_convergence_to_softmax(merged):
    """The output error stays below 2ε / (1 - ε) max ‖v‖, ε = e^X X^(P+1) / (P+1)!, for logits of at most X."""
    hidden = vectors(2, 2, 9, 6)
    errors = []
    for order in (2, 3, 4, 5, 6):
        attention = mixer(order=order, merge_symmetric=merged)
        with torch.no_grad():
            attention.qkv_proj.weight[:12] *= 0.2
            qkv, _ = attention.project(hidden)
            q, k, v = qkv.split([6, 6, 6], dim=-1)
            q, k, v = (x.unflatten(-1, (2, -1)) for x in (q, k, v))
            exact = SoftmaxSystem(q=q, k=k, u=v, scale=3**-0.5)
            bound_on_logits = (exact.scale * torch.einsum("bihm,bjhm->bhij", q, k)).abs().max().item()
            phi = attention.system(qkv, None).transfer_matrix()
            y, y_exact = (torch.einsum("bhij,bjhp->bihp", x, v) for x in (phi, exact.transfer_matrix()))
        errors.append((y - y_exact).norm(dim=-1).max().item())
        eps = math.exp(bound_on_logits) * bound_on_logits ** (order + 1) / math.factorial(order + 1)
        if eps < 1:
            assert errors[-1] <= 2 * eps / (1 - eps) * v.norm(dim=-1).max().item()
        assert_close(phi, exact.truncated(order).transfer_matrix(), 1e-12)
    assert eps < 0.1, "the bound was put to no test"
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_even_orders_are_positive_and_odd_ones_need_not_be():
    hidden = 6 * vectors(3, 1, 40, 6)
    for order in (2, 4):
        attention = mixer(order=order)
        assert bool((attention.system(*attention.project(hidden)).normalizer() > 0).all())
    attention = mixer(order=3)
    assert bool((attention.system(*attention.project(hidden)).normalizer() < 0).any())


def test_odd_orders_warn_once():
    with pytest.warns(UserWarning, match=r"order=3 is odd.*an even order is always positive") as caught:
        TaylorAttentionConfig(order=3)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaylorAttentionConfig(order=4, state_size=8)


def test_state_size_is_that_of_the_features():
    for merged, features in ((True, 10), (False, 13)):
        attention = mixer(merge_symmetric=merged)
        assert attention.config.num_features == features
        system = attention.system(*attention.project(vectors(4, 1, 2, 6)))
        assert system.state_size == 6 * features
        assert system.state_shape == (1, 2, features, 4)
