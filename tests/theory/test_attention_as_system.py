"""Attention in the Dynamical Systems Framework: separable attention is a system of N = nd states, softmax the limit.

Statements T1 to T4, each a test. Source: Sieber et al. 2024 (arXiv 2405.15731).
"""

import math

import pytest
import torch

from dsf_models.engine import MODES, evaluate
from dsf_models.system import DSFSystem, Identity, SoftmaxSystem
from evaluation.benchmarks.random_systems import relative_error

FLOAT64 = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=FLOAT64)


def attention(weights, values):
    """Return Σ_{j<=i} w_ij v_j / Σ_{j<=i} w_ij, weights (h, t, t), values (t, h, p) -> (t, h, p): the parallel form."""
    weights = weights.tril()
    return torch.einsum("hij,jhp->ihp", weights / weights.sum(-1, keepdim=True), values)


def softmax_system(q, k, v, scale):
    return SoftmaxSystem(q=q[None], k=k[None], u=v[None], scale=scale)


# ---- T1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "heads", "width", "n"), [(9, 1, 3, 4), (12, 2, 3, 4), (7, 3, 2, 5), (16, 4, 1, 1)])
def test_t1_separable_attention_is_a_system_of_dimension_nd(length, heads, width, n):
    """T1: y_i = Σ_j φ(q_i)^T ψ(k_j) v_j / η_i is the system Λ_i = (η_{i-1} / η_i) I, B_i = I ⊗ ψ(k_i) W_V / η_i.

    C_i = I ⊗ φ(q_i)^T and D = 0, with N = n d / s states for s heads of d / s channels and n features each. The
    parallel form, the dense recurrence, Φ u, and the engine in each mode agree to 1e-12.
    """
    d = heads * width
    u, W_V = normal(length, d), normal(d, d)
    phi, psi = normal(length, heads, n).exp(), normal(length, heads, n).exp()
    values = (u @ W_V.T).view(length, heads, width)
    expected = attention(torch.einsum("ihn,jhn->hij", phi, psi), values)

    eta = torch.einsum("ihn,ihn->ih", phi, psi.cumsum(0))
    h, outputs, blocks = torch.zeros(d * n, dtype=FLOAT64), [], []
    eye = torch.eye(width, dtype=FLOAT64)
    for i in range(length):
        decay = (eta[i - 1] / eta[i] if i else torch.zeros(heads, dtype=FLOAT64)).repeat_interleave(width * n)
        B = torch.block_diag(*(torch.kron(eye, psi[i, head][:, None]) / eta[i, head] for head in range(heads))) @ W_V
        C = torch.block_diag(*(torch.kron(eye, phi[i, head][None]) for head in range(heads)))
        h = decay * h + B @ u[i]
        outputs.append(C @ h)
        blocks.append((torch.diag(decay), B, C))
    assert h.shape == (d * n,)
    assert relative_error(torch.stack(outputs), expected.flatten(1)) <= 1e-12
    assert relative_error(_dense_phi(blocks) @ u.flatten(), expected.flatten()) <= 1e-12

    system = DSFSystem(u=values[None], B=psi[None], C=phi[None], transition=Identity(), normalized=True)
    assert system.state_size == n * d
    for mode in MODES:
        assert relative_error(evaluate(system, mode=mode)[0][0], expected) <= 1e-12
    torch.testing.assert_close(system.eigenvalues().values[0], eta[:-1] / eta[1:], rtol=1e-12, atol=0.0)


def _dense_phi(blocks):
    """Return Φ (t d, t d): C_i Λ_i … Λ_{j+1} B_j in block row i and block column j <= i."""
    rows = []
    for i, (_, B_i, C_i) in enumerate(blocks):
        row, product = [torch.zeros_like(C_i @ B_i)] * len(blocks), C_i
        for j in range(i, -1, -1):
            row[j] = product @ blocks[j][1]
            product = product @ blocks[j][0]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


# ---- T2 -------------------------------------------------------------------------------------------------------------


def test_t2_softmax_is_separable_attention_with_infinitely_many_states():
    """T2: with φ = ψ = [1, x, x⊗x/√2!, …] of queries and keys scaled by m^(-1/4), φ(q)^T ψ(k) -> exp(q^T k / √m).

    The partial sums are those of Σ_p s^p / p!, and 30 of its terms give softmax attention to machine precision.
    """
    m, length = 2, 10
    q, k, v = normal(length, 1, m), normal(length, 1, m), normal(length, 1, 3)
    system = softmax_system(q, k, v, m**-0.5)
    s = torch.einsum("ihm,jhm->hij", q, k) / math.sqrt(m)
    partial = torch.zeros_like(s)
    for order in range(12):
        partial = partial + s**order / math.factorial(order)
        truncated = system.truncated(order)
        kernel = torch.einsum("ihn,jhn->hij", truncated.C[0], truncated.B[0])
        assert relative_error(kernel, partial) <= 1e-13
        eta = torch.einsum("ihn,ihn->ih", truncated.C[0], truncated.B[0].cumsum(0))
        assert relative_error(truncated.normalizer()[0], eta) <= 1e-12
    assert float(s.abs().max()) < 5
    one = softmax_system(*(x[:, :, :1] for x in (q, k)), v, 1.0)
    exact = attention((q[..., 0].T[:, :, None] * k[..., 0].T[:, None]).exp(), v)
    assert relative_error(evaluate(one.truncated(30))[0][0], exact) <= 1e-12


# ---- T3 -------------------------------------------------------------------------------------------------------------

T3_TABLE = {2: (0.453, 1.2e-2), 3: (0.113, 3.4e-3), 4: (0.0227, 6.6e-4), 5: (3.8e-3, 1.1e-4), 6: (5.4e-4, 1.6e-5)}
"""Order P: ε for logits up to 1, and the output error that was measured for one draw of queries and keys."""


@pytest.mark.parametrize("order", T3_TABLE)
def test_t3_truncation_error_bound(order):
    """T3: if |s_ij| <= X, Taylor's P-th polynomial is off by a relative ε <= e^X X^{P+1} / (P+1)! at most.

    If ε < 1, ‖ŷ_i - y_i‖ <= 2ε / (1 - ε) max ‖v_j‖. X = 1: ε is as in the table; the output errors of a random draw
    stay below the bound and within a factor 4 of the table's.
    """
    epsilon = math.e / math.factorial(order + 1)
    assert epsilon == pytest.approx(T3_TABLE[order][0], rel=0.02)
    errors = []
    for _ in range(5):
        q, k, v = normal(24, 1, 4), normal(24, 1, 4), normal(24, 1, 4)
        s = torch.einsum("ihm,jhm->hij", q, k)
        scale = 1 / float(s.abs().max())
        system = softmax_system(q, k, v, scale)
        truncated = system.truncated(order)
        kernel, exact = torch.einsum("ihn,jhn->hij", truncated.C[0], truncated.B[0]), (s * scale).exp()
        assert float(((kernel - exact) / exact).abs().max()) <= epsilon
        error = (evaluate(truncated)[0][0] - attention(exact, v)).norm(dim=-1).max() / v.norm(dim=-1).max()
        assert float(error) <= 2 * epsilon / (1 - epsilon)
        errors.append(float(error))
    assert T3_TABLE[order][1] / 4 <= sum(errors) / len(errors) <= 4 * T3_TABLE[order][1]


@pytest.mark.parametrize(("m", "order"), [(2, 3), (3, 2), (4, 3), (3, 4)])
def test_t3_number_of_states(m, order):
    """T3: order P needs n = (m^{P+1} - 1) / (m - 1) states; merging equal monomials leaves C(m + P, P) of them.

    That is the rank of the features: fewer would not do, more are not needed.
    """
    x = normal(1, 400, 1, m)
    truncated = SoftmaxSystem(q=x, k=x, u=x, scale=1.0).truncated(order)
    features = truncated.B[0, :, 0]
    assert features.shape[1] == (m ** (order + 1) - 1) // (m - 1)
    assert int(torch.linalg.matrix_rank(features)) == math.comb(m + order, order)


def test_t3_parity_of_the_order():
    """T3: odd orders can give negative weights (T_3 reaches -60 on [-8, 8]); even ones are strictly positive."""
    s = torch.linspace(-8, 8, 4001, dtype=FLOAT64)

    def polynomial(order):
        return sum(s**degree / math.factorial(degree) for degree in range(order + 1))

    assert float(polynomial(3).min()) == pytest.approx(-60, abs=0.5)
    for order in range(1, 12):
        assert bool((polynomial(order) > 0).all()) == (order % 2 == 0)
    # The same through a system: one token whose only logit is -8.
    one = torch.ones(1, 1, 1, dtype=FLOAT64)
    system = softmax_system(one, -8 * one, one, 1.0)
    assert float(system.truncated(3).normalizer()) == pytest.approx(-60, abs=0.5)
    assert float(system.truncated(4).normalizer()) > 0


def test_t3_large_logits_need_more():
    """T3: at logits up to X = 5.7 even P = 8, with 495 merged states for m = 4, errs by 7 percent and more.

    It does where all logits of a row are negative: there the small weights are differences of large terms.
    """
    assert math.comb(4 + 8, 8) == 495
    s, v = -5.7 * torch.rand(1, 64, 64, dtype=FLOAT64), normal(64, 1, 4)
    partial = sum(s**degree / math.factorial(degree) for degree in range(9))
    error = (attention(partial, v) - attention(s.exp(), v)).norm(dim=-1).max() / v.norm(dim=-1).max()
    assert float(error) > 7e-2


# ---- T4 -------------------------------------------------------------------------------------------------------------


def largest_rank(phi):
    """Return max_t rank Φ[t:, :t]: the states that any realisation needs per channel."""
    return max(int(torch.linalg.matrix_rank(phi[t:, :t], rtol=1e-14)) for t in range(1, phi.shape[0]))


@pytest.mark.parametrize("m", [2, 4])
def test_t4_no_finite_state_reproduces_softmax(m):
    """T4: max_t rank Φ[t:, :t] = ⌊L/2⌋ for softmax at generic q, k, so n >= ⌊L/2⌋; separable attention has rank <= n.

    L = 40: 20 for softmax with m = 2 and m = 4; exactly m for separable attention with m features.
    """
    length = 40
    q, k, v = 2 * normal(length, 1, m), 2 * normal(length, 1, m), normal(length, 1, 1)
    assert largest_rank(softmax_system(q, k, v, 1.0).transfer_matrix()[0, 0]) == length // 2
    separable = DSFSystem(u=v[None], B=k.exp()[None], C=q.exp()[None], transition=Identity(), normalized=True)
    assert largest_rank(separable.transfer_matrix()[0, 0]) == m
