"""Softmax attention as a system with infinitely many states, and the finite systems that approach it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dsf_models.engine import evaluate
from dsf_models.system import DSFSystemError, SoftmaxSystem
from evaluation.benchmarks.random_systems import relative_error


def draw(batch=2, length=12, heads=4, groups=2, width=3, value_width=5, spread=1.0, **layout):
    """Return a system whose logits are about `spread` large."""
    q = spread * torch.randn(batch, length, heads, width, dtype=torch.float64)
    k = torch.randn(batch, length, groups, width, dtype=torch.float64)
    u = torch.randn(batch, length, groups, value_width, dtype=torch.float64)
    return SoftmaxSystem(q=q, k=k, u=u, scale=width**-0.5, **layout)


def attention_of_torch(system, mask=None):
    q, k, v = (x.transpose(1, 2) for x in (system.q, system.k, system.u))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=system.scale, enable_gqa=True)
    return y.transpose(1, 2)


def apply(phi, system):
    heads = system.q.shape[2] // system.u.shape[2]
    return torch.einsum("bhij,bjhp->bihp", phi, system.u.repeat_interleave(heads, 2))


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (4, 1)])
def test_phi_is_the_attention_of_torch(heads, groups):
    system = draw(heads=heads, groups=groups)
    phi = system.transfer_matrix()
    assert phi.dtype == torch.float64
    assert relative_error(apply(phi, system), attention_of_torch(system)) <= 1e-14
    torch.testing.assert_close(phi.sum(-1), torch.ones_like(phi[..., 0]), rtol=1e-14, atol=0.0)
    assert torch.equal(phi, phi.tril())


def test_documents_and_pads_are_the_attention_of_torch_under_a_mask():
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, [0, 4, 5]] = starts[1, [3]] = True
    lengths = torch.tensor([12, 7])
    system = draw(starts=starts, lengths=lengths)
    document = starts.cumsum(1)
    real = torch.arange(12) < lengths[:, None]
    mask = torch.ones(12, 12, dtype=torch.bool).tril() & (document[:, :, None] == document[:, None, :])
    expected = attention_of_torch(system, (mask & real[:, None, :])[:, None]).masked_fill(~real[..., None, None], 0.0)
    phi = system.transfer_matrix()
    assert relative_error(apply(phi, system), expected) <= 1e-14
    assert not phi[:, :, ~real[1]][1].any()
    assert not phi[1, ..., ~real[1]].any()


def test_a_row_of_pads():
    system = draw(lengths=torch.tensor([0, 12]))
    assert not system.transfer_matrix()[0].any()
    assert system.eigenvalues().values[0].isnan().all()


def test_eigenvalues_are_ratios_of_normalisers():
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 4] = True
    system = draw(starts=starts, lengths=torch.tensor([12, 7]))
    values, realisation = system.eigenvalues()
    assert realisation == "normalised"
    logits = system.scale * torch.einsum("bihm,bjhm->bhij", system.q, system.k.repeat_interleave(2, 2))
    for row, first, end in [(0, 0, 4), (0, 4, 12), (1, 0, 7)]:
        eta = [logits[row, :, i, first : i + 1].exp().sum(-1) for i in range(first, end)]
        for i in range(first + 1, end):
            torch.testing.assert_close(values[row, i - 1], eta[i - 1 - first] / eta[i - first], rtol=1e-12, atol=0.0)
    assert not values[0, 3].any()
    assert values[1, 6:].isnan().all()


def test_zero_logits_give_i_over_i_plus_one():
    system = draw(spread=0.0)
    i = torch.arange(1, 12, dtype=torch.float64)
    torch.testing.assert_close(system.eigenvalues().values, (i / (i + 1))[None, :, None].expand(2, 11, 4))
    assert system.eigenvalues("native").values.eq(1).all()


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits(magnitude):
    system = draw(spread=abs(magnitude))
    system.k.mul_(math.copysign(1.0, magnitude))
    system.q.requires_grad_()
    assert system.logits().abs()[system.logits().isfinite()].max() > 1e4
    phi = system.transfer_matrix()
    assert relative_error(apply(phi, system), attention_of_torch(system)) <= 1e-10
    assert not system.eigenvalues().values.isnan().any()
    phi.square().sum().backward()
    assert system.q.grad.isfinite().all()


def test_gradients_do_not_see_pads():
    system = draw(lengths=torch.tensor([0, 7]))
    for leaf in (system.q, system.k):
        leaf.requires_grad_()
    system.transfer_matrix().square().sum().backward()
    for leaf in (system.q, system.k):
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[0].any()
        assert not leaf.grad[1, 7:].any()


def test_no_finite_state_reproduces_it():
    """The rank of Φ[t:, :t] grows with the sequence: ⌊t/2⌋ in the middle, for generic queries and keys."""
    for length in (8, 12, 16):
        phi = draw(batch=1, length=length, heads=1, groups=1, width=4, spread=3.0).transfer_matrix()[0, 0]
        half = length // 2
        assert torch.linalg.matrix_rank(phi[half:, :half], rtol=1e-13) == half
    assert draw().state_size == math.inf


# ---- truncation ------------------------------------------------------------------------------------------------------


def with_logits_up_to(largest, **sizes):
    system = draw(**sizes)
    logits = system.scale * torch.einsum("bihm,bjhm->bhij", system.q, system.k.repeat_interleave(2, 2))
    return SoftmaxSystem(q=system.q * (largest / logits.abs().max()), k=system.k, u=system.u, scale=system.scale)


def test_truncations_converge_within_the_bound_of_taylor():
    """|s| <= X: the kernel is off by a factor 1 ± ε, ε = e^X X^{P+1} / (P+1)!, and y by 2ε / (1 - ε) max ‖v‖."""
    system = with_logits_up_to(1.0)
    exact = attention_of_torch(system)
    largest = system.u.norm(dim=-1).max()
    errors = []
    for order in range(2, 7):
        truncated = system.truncated(order)
        y, _ = evaluate(truncated)
        error = (y - exact).norm(dim=-1).max()
        epsilon = math.e / math.factorial(order + 1)
        assert error <= 2 * epsilon / (1 - epsilon) * largest
        assert relative_error(apply(truncated.transfer_matrix(), system), y) <= 1e-12
        errors.append(error.item())
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))


def test_the_kernel_of_a_truncation_is_the_taylor_polynomial():
    system = draw()
    for order in range(4):
        truncated = system.truncated(order)
        kernel = torch.einsum("bihn,bjhn->bhij", truncated.C, truncated.B)
        logits = system.scale * torch.einsum("bihm,bjhm->bhij", system.q, system.k.repeat_interleave(2, 2))
        expected = sum(logits**power / math.factorial(power) for power in range(order + 1))
        torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "order"), [(1, 4), (3, 0), (3, 2), (2, 5)])
def test_number_of_features(width, order):
    truncated = draw(width=width).truncated(order)
    features = sum(width**power for power in range(order + 1))
    assert truncated.B.shape[-1] == truncated.C.shape[-1] == features
    assert truncated.state_size == 4 * 5 * features


def test_eigenvalues_of_truncations_converge():
    system = with_logits_up_to(1.0)
    torch.testing.assert_close(
        system.truncated(9).eigenvalues().values, system.eigenvalues().values, rtol=1e-5, atol=0.0
    )


def test_truncations_keep_documents_and_pads():
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[:, 5] = True
    system = draw(spread=0.3, starts=starts, lengths=torch.tensor([12, 7]))
    torch.testing.assert_close(system.truncated(9).transfer_matrix(), system.transfer_matrix(), rtol=0.0, atol=1e-5)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 12, 12)}, ["q (2, 12, 12)", "(batch, time, heads, width)"]),
        ({"q": torch.zeros(2, 11, 4, 3)}, ["q (2, 11, 4, 3)", "k (2, 12, 2, 3)", "share batch, time and width"]),
        ({"q": torch.zeros(2, 12, 4, 2)}, ["q (2, 12, 4, 2)", "width"]),
        ({"q": torch.zeros(2, 12, 3, 3)}, ["2 key heads must divide the 3 query heads"]),
        ({"u": torch.zeros(2, 12, 4, 3)}, ["u (2, 12, 4, 3)", "share batch, time and heads with k (2, 12, 2, 3)"]),
        ({"scale": 0.0}, ["scale=0.0", "not positive"]),
        ({"scale": math.nan}, ["scale=nan", "not positive"]),
        ({"starts": torch.zeros(12, dtype=torch.bool)}, ["starts", "(12,)", "(2, 12)"]),
        ({"lengths": torch.ones(2)}, ["lengths", "torch.float32", "integers (2,)"]),
    ],
)
def test_errors_name_the_field_its_shape_and_the_remedy(change, message):
    system = draw()
    with pytest.raises(DSFSystemError) as error:
        SoftmaxSystem(**({"q": system.q, "k": system.k, "u": system.u, "scale": 0.5} | change))
    for part in message:
        assert part in str(error.value)


def test_what_an_infinite_state_cannot_do():
    system = draw()
    with pytest.raises(DSFSystemError, match=r"infinite state: use truncated\(order\).matrices\(\)"):
        system.matrices()
    with pytest.raises(DSFSystemError, match="order=-1 is negative"):
        system.truncated(-1)
    with pytest.raises(DSFSystemError, match="realisation='papers' is unknown"):
        system.eigenvalues("papers")
