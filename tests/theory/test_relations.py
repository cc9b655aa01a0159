"""How the architectures contain each other, and where they do not: statements T6, T7, T8, T10 and T11.

Source: Sieber et al. 2024 (arXiv 2405.15731); the derivations are this project's own.
"""

import math

import pytest
import torch

from dsf_models.engine import evaluate
from dsf_models.system import DSFSystem, Identity, ScalarDecay, SoftmaxSystem
from evaluation.benchmarks.random_systems import relative_error
from tests.contract import fresh

FLOAT64 = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=FLOAT64)


def features(x):
    """Return ELU + 1, linear attention's feature map."""
    return torch.nn.functional.elu(x) + 1


def ssd(u, b, c, delta, a):
    """Return the strict SSD system: Λ_i = exp(-a Δ_i), B_i = Δ_i ⊗ b_i, C_i = I ⊗ c_i^T; delta (b, t, h)."""
    return DSFSystem(u=u, B=b, C=c, transition=ScalarDecay(-a * delta), input_gain=delta)


# ---- T6 -------------------------------------------------------------------------------------------------------------


def lambert_w(x):
    """Return W_0(x) for x >= 0, the w with w e^w = x, by Newton's iteration from above."""
    w = math.log1p(x)
    for _ in range(30):
        w -= (w - x * math.exp(-w)) / (1 + w)
    return w


def coupled_steps(first, a, length):
    """Return the only Δ that make SSD linear attention: Δ_i = W_0(a Δ_{i-1}) / a."""
    steps = [first]
    while len(steps) < length:
        steps.append(lambert_w(a * steps[-1]) / a)
    return torch.tensor(steps, dtype=FLOAT64)


@pytest.mark.parametrize("a", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("first", [0.01, 0.7])
def test_t6_ssd_is_linear_attention_iff_its_steps_are_lamberts(first, a):
    """T6: SSD = linear attention with the same maps iff Δ_i = 1/η_i and exp(-a Δ_i) = η_{i-1} / η_i for all i.

    Both together say Δ_i exp(a Δ_i) = Δ_{i-1}, so Δ_i = W_0(a Δ_{i-1}) / a: a sequence fixed by its first term, with
    1/Δ_i = a i + O(log i), that selects nothing. Then Φ agrees to 1e-14, and a generic Δ gives another Φ.
    """
    length, n = 24, 4
    delta = coupled_steps(first, a, length)
    torch.testing.assert_close(delta[1:] * (a * delta[1:]).exp(), delta[:-1], rtol=1e-14, atol=0.0)
    u, psi, q = normal(1, length, 1, 3), features(normal(1, length, 1, n)), features(normal(1, length, 1, n))
    # Queries of the length that makes linear attention's own normaliser 1/Δ_i.
    eta = (q * psi.cumsum(1)).sum(-1, keepdim=True)
    phi = q / (eta * delta[None, :, None, None])
    attention = DSFSystem(u=u, B=psi, C=phi, transition=Identity(), normalized=True)
    torch.testing.assert_close(attention.normalizer()[0, :, 0], 1 / delta, rtol=1e-13, atol=0.0)
    same = ssd(u, psi, phi, delta[None, :, None], a)
    assert relative_error(same.transfer_matrix(), attention.transfer_matrix()) <= 1e-14
    torch.testing.assert_close(
        same.eigenvalues().values, attention.eigenvalues("normalised").values, rtol=1e-13, atol=0.0
    )
    generic = ssd(u, psi, phi, (delta * (1 + 0.1 * torch.rand(length)))[None, :, None], a)
    assert relative_error(generic.transfer_matrix(), attention.transfer_matrix()) > 1e-3


def test_t6_the_coupled_steps_are_harmonic():
    """T6: 1/Δ_i = a i - (a/2) log i + O(1), since x = 1/Δ obeys x_i - x_{i-1} = a - a^2 / (2 x_i) + …"""
    for a in (0.5, 2.0):
        inverse = 1 / coupled_steps(1.0, a, 20001)
        excess = [float(inverse[i]) - a * i for i in (20, 200, 2000, 20000)]
        assert all(abs(value) < a * math.log(i) + 2 for value, i in zip(excess, (20, 200, 2000, 20000), strict=True))
        assert excess[3] - excess[2] == pytest.approx(-a / 2 * math.log(10), rel=0.01)


# ---- T7 -------------------------------------------------------------------------------------------------------------


def cumulative(decay, delta, b):
    """Return η_i = 1 / Π_{k<=i} λ_k and ψ_j = Δ_j b_j η_j, the maps that make SSD separable attention."""
    eta = 1 / decay.cumprod(1)
    return eta, (delta * eta)[..., None] * b


def test_t7_ssd_is_separable_attention_with_cumulative_maps():
    """T7: SSD with λ_i > 0 is separable attention with η_i = Π_{k<=i} 1/λ_k, ψ_j = Δ_j b_j η_j and φ = c, exactly.

    But η and ψ depend on the whole past, and blow up: in float64 Φ agrees while ψ reaches 1e15 within 24 steps.
    """
    length = 24
    decay = torch.linspace(0.1, 0.3, length, dtype=FLOAT64)[None, :, None]
    delta, u = -decay.log(), normal(1, length, 1, 2)
    b, c = normal(1, length, 1, 3), normal(1, length, 1, 3)
    expected = ssd(u, b, c, delta, 1.0).transfer_matrix()
    eta, psi = cumulative(decay, delta, b)
    separable = DSFSystem(u=u, B=psi, C=c, transition=Identity(), output_gain=1 / eta)
    assert relative_error(separable.transfer_matrix(), expected) <= 1e-13
    torch.testing.assert_close(eta[:, :-1] / eta[:, 1:], decay[:, 1:], rtol=1e-13, atol=0.0)
    assert float(psi.abs().max()) > 1e15


def test_t7_the_reparametrisation_is_useless_in_float32():
    """T7: over 200 steps of λ = 0.5 the cumulative maps overflow float32, while SSD itself stays exact."""
    length = 200
    decay = torch.full((1, length, 1), 0.5)
    delta, u, b, c = -decay.log(), *(torch.randn(1, length, 1, 3) for _ in range(3))
    system = ssd(u, b, c, delta, 1.0)
    expected, _ = evaluate(system.to(FLOAT64), mode="matrix")
    assert relative_error(evaluate(system)[0], expected) <= 1e-6
    eta, psi = cumulative(decay, delta, b)
    y, _ = evaluate(DSFSystem(u=u, B=psi, C=c, transition=Identity(), output_gain=1 / eta))
    assert not bool(y.isfinite().all())


def test_t7_the_normaliser_of_linear_attention_looks_at_the_whole_past():
    """T7: η_i of linear attention depends on every earlier key, Λ_i of SSD on u_i alone: no token-local map joins them.

    A change of the first token changes every later λ_i of linear attention, and none of SSD.
    """
    for name, changes in (("linear_attention", True), ("ssd", False)):
        model = fresh(name, "bare", "model").double()
        ids = torch.randint(1, 41, (1, 12))
        other = ids.clone()
        other[0, 0] = 1 + ids[0, 0] % 40
        # Only the first layer's input is the token alone.
        one, two = (model.dsf_systems(x)[0].eigenvalues().values for x in (ids, other))
        assert bool((one != two)[:, 1:].all()) is changes
        assert bool((one == two)[:, 1:].all()) is not changes


# ---- T10 ------------------------------------------------------------------------------------------------------------


def test_t10_rows_of_attention_sum_to_one():
    """T10a: Σ_j Φ_ij = 1 for softmax and linear attention, and not for SSD."""
    ids = torch.randint(1, 41, (2, 12))
    for name, is_normalised in (("softmax_attention", True), ("linear_attention", True), ("ssd", False)):
        model = fresh(name, "bare", "model").double()
        for layer in range(2):
            sums = model.transfer_matrix(layer, ids).sum(-1)
            assert bool(((sums - 1).abs() < 1e-12).all()) is is_normalised


def test_t10_attention_never_forgets():
    """T10b: λ_i = η_{i-1} / η_i telescopes, so Φ_ij = φ(q_i)^T ψ(k_j) / η_i: η rescales row i and weighs no past.

    Where queries and keys are all equal, a token of attention counts the same at every distance; one of SSD decays by
    Π λ, a genuine loss.
    """
    length, n = 16, 3
    u, q, k = normal(1, length, 1, 2), features(normal(1, 1, 1, n)), features(normal(1, 1, 1, n))
    attention = DSFSystem(u=u, B=k, C=q, transition=Identity(), normalized=True)
    values = attention.eigenvalues("normalised").values[0, :, 0]
    eta = attention.normalizer()[0, :, 0]
    products = torch.cat([values.flip(0).cumprod(0).flip(0), torch.ones(1)])
    torch.testing.assert_close(products, eta / eta[-1], rtol=1e-13, atol=0.0)
    phi = attention.transfer_matrix()[0, 0]
    torch.testing.assert_close(phi * eta[:, None], ((q * k).sum() * torch.ones_like(phi)).tril())
    delta = torch.full((1, length, 1), 0.4, dtype=FLOAT64)
    forgetting = ssd(u, k, q, delta, 1.0).transfer_matrix()[0, 0, -1]
    torch.testing.assert_close(forgetting[1:] / forgetting[:-1], torch.full((length - 1,), math.exp(0.4)).double())


# ---- T11 ------------------------------------------------------------------------------------------------------------


def test_t11_eigenvalues_of_attention_exceed_one():
    """T11: λ_i = η_{i-1} / η_i exceeds 1 for softmax and linear attention, since η_i depends on q_i.

    About 43 % do for linear attention at independent Gaussian q, k (L = 64, m = 8). Outputs stay within the values'
    range all the same. Zero logits give λ_i = i / (i + 1).
    """
    rows, length, m = 40, 64, 8
    q, k, v = (normal(rows, length, 1, m) for _ in range(3))
    linear = DSFSystem(u=v, B=features(k), C=features(q), transition=Identity(), normalized=True)
    softmax = SoftmaxSystem(q=q, k=k, u=v, scale=m**-0.5)
    share = (linear.eigenvalues().values > 1).double().mean()
    assert float(share) == pytest.approx(0.43, abs=0.02)
    assert 0.2 < float((softmax.eigenvalues().values > 1).double().mean()) < 0.6
    for system in (linear, softmax):
        y = torch.einsum("bhij,bjhp->bihp", system.transfer_matrix(), v)
        assert bool((y <= v.cummax(1).values + 1e-12).all())
        assert bool((y >= v.cummin(1).values - 1e-12).all())
    i = torch.arange(1, length, dtype=FLOAT64)
    flat = SoftmaxSystem(q=torch.zeros_like(q), k=k, u=v, scale=1.0)
    torch.testing.assert_close(flat.eigenvalues().values[0, :, 0], i / (i + 1), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("name", ["ssd", "s6", "qlstm", "rg_lru", "s4", "s4d", "s5", "lru"])
@torch.no_grad()
def test_t11_eigenvalues_of_the_others_never_exceed_one(name):
    """T11: |λ| < 1 always for S6, SSD, qLSTM and RG-LRU, and by their parametrisation for S4, S4D, S5 and LRU."""
    model, ids = fresh(name, "full", "model").double(), torch.randint(1, 41, (2, 12))
    for system in model.dsf_systems(ids):
        assert bool((system.eigenvalues().values.abs() < 1).all())
    for parameter in model.parameters():
        parameter.mul_(3.0)
    # Larger weights come nearer to 1 than float64 can tell.
    for system in model.dsf_systems(ids):
        assert bool((system.eigenvalues().values.abs() <= 1).all())
