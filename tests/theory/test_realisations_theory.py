"""What of a system belongs to its realisation and what to its input-output map: statements T5, T12, T13 and T14.

Source: Sieber et al. 2024 (arXiv 2405.15731); the derivations are this project's own.
"""

import pytest
import torch

from dsf_models.engine import MODES, evaluate
from dsf_models.system import DSFSystem, Identity, ScalarDecay, SystemMatrices
from dsf_models.transitions import DPLR
from evaluation.benchmarks.random_systems import Case, relative_error
from tests.contract import fresh, sequences

FLOAT64 = torch.float64
LENGTH = 12


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=FLOAT64)


def block_phi(matrices):
    """Return Φ_ij = C_i Λ_i … Λ_{j+1} B_j, and C_i B_i + D_i on the diagonal, of one row: (t, t, d, d)."""
    Lambda, B, C, D = (matrix[0] for matrix in matrices)
    length, d = D.shape[:2]
    phi = torch.zeros(length, length, d, d, dtype=FLOAT64)
    for j in range(length):
        carried = B[j]
        phi[j, j] = C[j] @ carried + D[j]
        for i in range(j + 1, length):
            carried = Lambda[i] @ carried
            phi[i, j] = C[i] @ carried
    return phi


def toeplitz_defect(phi):
    """Return the largest difference of Φ_{i+1,j+1} and Φ_ij, relative to the largest entry."""
    return ((phi[1:, 1:] - phi[:-1, :-1]).abs().max() / phi.abs().max()).item()


def in_basis(matrices, T):
    """Return (T_i Λ_i T_{i-1}^{-1}, T_i B_i, C_i T_i^{-1}, D_i) for T_{-1} … T_{t-1}, (t + 1, N, N)."""
    now, inverse = T[1:], torch.linalg.inv(T)
    return SystemMatrices(now @ matrices.Lambda @ inverse[:-1], now @ matrices.B, matrices.C @ inverse[1:], matrices.D)


def constant_system():
    """Return one row of a time-invariant DPLR system of three channels with four states each."""
    return (
        case := Case(structure="dplr", batch=1, length=LENGTH, heads=3, groups_B=3, groups_C=3, width=1, D=1)
    ).system(case.tensors() | {"u": normal(1, LENGTH, 3, 1)})


# ---- T5 -------------------------------------------------------------------------------------------------------------


def with_more_states(system, extra):
    """Return the system with `extra` states a channel at which B and C are 0, and whatever Λ there."""
    pad = torch.nn.functional.pad
    transition = system.transition
    if isinstance(transition, DPLR):
        # They hear the other states, but nobody hears them.
        diagonal = torch.cat([transition.diagonal, 0.3 * normal(len(transition.left), extra // 2, 2)], dim=1)
        left = torch.cat([transition.left, normal(len(transition.left), extra)], dim=1)
        transition = DPLR(diagonal, left, pad(transition.right, (0, extra)))
    return DSFSystem(
        u=system.u, B=pad(system.B, (0, extra)), C=pad(system.C, (0, extra)), transition=transition, D=system.D
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("structure", ["scalar", "dplr"])
def test_t5_more_states_reproduce_fewer(structure, mode):
    """T5: a system with n' > n states per channel reproduces any with n: pad B and C with zeros.

    So capacity never falls with n.
    """
    case = Case(structure=structure, states=4, D=1)
    system = case.system(case.tensors())
    larger = with_more_states(system, 6)
    assert larger.state_size == system.state_size * 10 // 4
    y, _ = evaluate(larger, mode)
    assert relative_error(y, evaluate(system, mode)[0]) <= 1e-13
    assert relative_error(larger.transfer_matrix(), system.transfer_matrix()) <= 1e-13


@pytest.mark.parametrize("structure", ["scalar", "dplr"])
def test_t5_fewer_states_do_not_reproduce_more(structure):
    """T5, strictly: Φ[t:, :t] of n states per channel has rank <= n, and n for generic ones, so that n - 1 fail."""
    case = Case(structure=structure, batch=1, length=16, heads=1, groups_B=1, groups_C=1, states=4, width=1)
    phi = case.system(case.tensors()).transfer_matrix()[0, 0]
    ranks = [int(torch.linalg.matrix_rank(phi[t:, :t], rtol=1e-12)) for t in range(1, 16)]
    assert max(ranks) == 4


# ---- T12 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_t12_heads_divide_the_state_and_multiply_the_eigenvalues(heads):
    """T12: with s heads of key width n/s and value width d/s, N = nd/s, and Λ_i has s distinct eigenvalues a step."""
    width, keys = 8, 16
    model = fresh("linear_attention", "bare", num_heads=heads, hidden_size=width, state_size=keys // heads).double()
    system = model.dsf_systems(sequences((6,))[0][None])[0]
    assert system.state_size == keys * width // heads
    values = system.eigenvalues()
    assert values.realisation == "normalised"
    assert values.values.shape == (1, 5, heads)
    Lambda = system.matrices().Lambda
    assert Lambda.shape[-2:] == (keys * width // heads,) * 2
    # The dense matrices stand in the gauge Λ = 1; T_i = 1/η_i a head is the papers' realisation.
    eta = torch.nn.functional.pad(system.normalizer(), (0, 0, 1, 0), value=1.0)
    T = torch.diag_embed((1 / eta).repeat_interleave(keys * width // heads**2, dim=-1))[0]
    normalised = in_basis(system.matrices(), T).Lambda[0, 1:]
    for time in range(5):
        distinct = normalised[time].diagonal().unique_consecutive()
        distinct = distinct[torch.cat([torch.ones(1, dtype=torch.bool), distinct.diff().abs() > 1e-12])]
        torch.testing.assert_close(distinct, values.values[0, time], rtol=1e-12, atol=0)
        assert len(values.values[0, time].unique()) == heads


# ---- T13 ------------------------------------------------------------------------------------------------------------


def test_t13_constant_systems_have_a_toeplitz_phi():
    """T13, =>: constant (Λ, B, C, D) make Φ block Toeplitz with the kernel C Λ^t B, plus D at t = 0."""
    system = constant_system()
    matrices = system.matrices()
    phi = block_phi(matrices)
    assert toeplitz_defect(phi) <= 1e-14
    Lambda, B, C, D = (matrix[0, 0] for matrix in matrices)
    for time in range(LENGTH):
        kernel = C @ torch.linalg.matrix_power(Lambda, time) @ B + (D if time == 0 else 0)
        torch.testing.assert_close(phi[time, 0], kernel, rtol=0, atol=1e-12)
    torch.testing.assert_close(phi.diagonal(dim1=2, dim2=3), system.transfer_matrix()[0].permute(1, 2, 0))


def test_t13_a_step_that_differs_spoils_it():
    """T13, contraposition: one Λ_i that differs from the others, and Φ is not Toeplitz."""
    log_decay = torch.full((1, LENGTH, 1), -0.1, dtype=FLOAT64)
    B, C, u = normal(1, 1, 1, 3), normal(1, 1, 1, 3), normal(1, LENGTH, 1, 1)
    assert toeplitz_defect(DSFSystem(u=u, B=B, C=C, transition=ScalarDecay(log_decay)).transfer_matrix()[0, 0]) <= 1e-14
    log_decay[0, 5] = -0.2
    assert toeplitz_defect(DSFSystem(u=u, B=B, C=C, transition=ScalarDecay(log_decay)).transfer_matrix()[0, 0]) > 1e-2


def ho_kalman(phi, state_size):
    """Return a constant realisation (Λ, B, C) from a block-Toeplitz Φ, by its Hankel matrix K_{i+j+1}."""
    d, rows = phi.shape[2], (len(phi) - 1) // 2
    kernel = phi[:, 0]
    hankel, shifted = (
        torch.stack([torch.stack([kernel[i + j + s] for j in range(rows)]) for i in range(rows)]) for s in (1, 2)
    )
    hankel, shifted = (x.transpose(1, 2).reshape(rows * d, rows * d) for x in (hankel, shifted))
    U, S, Vh = torch.linalg.svd(hankel)
    assert S[state_size:].max() <= 1e-9 * S[0]
    root = S[:state_size].sqrt()
    observe, reach = U[:, :state_size] * root, root[:, None] * Vh[:state_size]
    Lambda = (U[:, :state_size] / root).mT @ shifted @ (Vh[:state_size] / root[:, None]).mT
    return Lambda, reach[:, :d], observe[:d]


def test_t13_a_toeplitz_phi_has_a_constant_realisation():
    """T13, <=: a block-Toeplitz Φ of finite rank is that of a constant system, found by Ho and Kalman's algorithm.

    The realisation that Φ came in may vary with time all the same: here a random basis a step. What is found has the
    eigenvalues of the constant system that was hidden by it: those of a minimal constant realisation belong to Φ.
    """
    system = (
        case := Case(structure="dplr", batch=1, length=LENGTH, heads=1, groups_B=1, groups_C=1, width=1, states=4)
    ).system(case.tensors())
    T = normal(LENGTH + 1, 4, 4) + 3 * torch.eye(4)
    varying = in_basis(system.matrices(), T)
    assert (varying.Lambda[0, 1] - varying.Lambda[0, 2]).abs().max() > 0.1
    phi = block_phi(varying)
    assert toeplitz_defect(phi) <= 1e-11
    Lambda, B, C = ho_kalman(phi, 4)
    for time in range(LENGTH - 1):
        power = torch.linalg.matrix_power(Lambda, time)
        torch.testing.assert_close(C @ power @ B, phi[time + 1, 0], rtol=0, atol=1e-8)
    found, hidden = torch.linalg.eigvals(Lambda), system.transition.eigenvalues(1, 1, 1).flatten()
    distance = (found[:, None] - hidden).abs()
    assert max(distance.min(0).values.max(), distance.min(1).values.max()) <= 1e-6


# ---- T14 ------------------------------------------------------------------------------------------------------------


def test_t14_eigenvalues_change_with_the_basis_and_phi_does_not():
    """T14: any invertible T_i give (T_i Λ_i T_{i-1}^{-1}, T_i B_i, C_i T_i^{-1}) the same Φ, with other eigenvalues."""
    case = Case(batch=1, heads=2, groups_B=1, groups_C=2, D=1, output_gain=3)
    matrices = case.system(case.tensors()).matrices()
    T = normal(case.length + 1, 12, 12) + 4 * torch.eye(12)
    moved = in_basis(matrices, T)
    assert relative_error(block_phi(moved), block_phi(matrices)) <= 1e-11
    before, after = (torch.linalg.eigvals(x.Lambda[0, 1:]).abs().sort(-1).values for x in (matrices, moved))
    assert ((after - before).abs().amax(-1) > 0.1).all()


def test_t14_attention_may_have_any_eigenvalues():
    """T14 for attention: λ_i = η_{i-1} / η_i in one gauge, 1 in another, and what one likes in a third; one Φ."""
    B, C = torch.rand(2, 1, LENGTH, 1, 3, dtype=FLOAT64) + 0.5
    system = DSFSystem(u=normal(1, LENGTH, 1, 2), B=B, C=C, transition=Identity(), normalized=True)
    phi, eta = system.transfer_matrix(), system.normalizer()
    papers = DSFSystem(
        u=system.u,
        B=B / eta[..., None],
        C=C,
        transition=ScalarDecay(torch.nn.functional.pad(eta, (0, 0, 1, 0), value=1.0).log().diff(dim=1).neg()),
    )
    assert relative_error(papers.transfer_matrix(), phi) <= 1e-13
    torch.testing.assert_close(papers.eigenvalues().values, system.eigenvalues().values)
    assert system.eigenvalues("native").values.eq(1).all()
    wanted = torch.rand(1, LENGTH, 1, dtype=FLOAT64) + 0.01
    gauge = torch.nn.functional.pad(wanted.cumprod(1), (0, 0, 1, 0), value=1.0)
    rescaled = system.rescale(gauge)
    torch.testing.assert_close(rescaled.eigenvalues("native").values, wanted[:, 1:])
    assert relative_error(rescaled.transfer_matrix(), phi) <= 1e-13


def test_t14_a_constant_basis_keeps_constant_eigenvalues():
    """T14, what is left: among constant realisations a change of basis is a similarity, and λ and Φ both stay."""
    system = constant_system()
    matrices = system.matrices()
    T = (normal(12, 12) + 4 * torch.eye(12)).expand(LENGTH + 1, -1, -1)
    moved = in_basis(matrices, T)
    assert relative_error(block_phi(moved), block_phi(matrices)) <= 1e-11
    before, after = (torch.linalg.eigvals(x.Lambda[0, 0]) for x in (matrices, moved))
    assert (before[:, None] - after).abs().min(1).values.max() <= 1e-9
