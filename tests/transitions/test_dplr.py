"""DPLR Λ: Woodbury's form against dense linear algebra, HiPPO-LegS, and eigenvalues only where they mean something."""

import math

import pytest
import torch

from dsf_models.system import DSFSystem, DSFSystemError
from dsf_models.transitions import DPLR, bilinear_dplr, hippo_legs, hippo_legs_modes
from evaluation.benchmarks.random_systems import Case

DOUBLE = torch.float64


def random_continuous(heads=3, modes=4, seed=0):
    """Return poles, P, B (h, m, 2) and steps (h,) of stable continuous systems."""
    generator = torch.Generator().manual_seed(seed)
    poles, P, B = torch.randn(3, heads, modes, 2, generator=generator, dtype=DOUBLE).unbind(0)
    poles = torch.stack([-poles[..., 0].abs() - 1e-4, 10 * poles[..., 1]], dim=-1)
    return poles, P, B, torch.logspace(-3, -1, heads, dtype=DOUBLE)


def legs(state_size, step, dtype=DOUBLE):
    """Return HiPPO-LegS, its parameters rounded to a dtype, discretised by Δ = step, one head, and its B̄."""
    frequencies, P = hippo_legs_modes(state_size)
    poles = torch.stack([torch.full_like(P, -0.5), frequencies], dim=-1)[None]
    pairs = torch.stack([P, torch.zeros_like(P)], dim=-1)[None]
    parameters = (poles, pairs, math.sqrt(2) * pairs, torch.tensor([step], dtype=DOUBLE))
    return bilinear_dplr(*(parameter.to(dtype) for parameter in parameters))


def with_conjugates(pairs):
    """Return complex numbers followed by their conjugates, (h, m, 2) -> (h, 2m)."""
    half = torch.view_as_complex(pairs)
    return torch.cat([half, half.conj()], dim=-1)


def real_parts(z):
    """Return (Re z_0, Im z_0, Re z_1, …) of the first half of conjugate-symmetric vectors (…, 2m)."""
    return torch.view_as_real(z[..., : z.shape[-1] // 2].contiguous()).flatten(-2)


# ---- the discretisation ---------------------------------------------------------------------------------------------


def test_woodbury_is_the_dense_bilinear_rule_of_the_complex_system():
    """Λ and B̄ of real pairs act like (I - Δ/2 A)^{-1} (I + Δ/2 A) on the modes and their conjugates, to 1e-12."""
    poles, P, B, step = random_continuous()
    transition, B_hn = bilinear_dplr(poles, P, B, step)
    p, b = with_conjugates(P), with_conjugates(B)
    A = torch.diag_embed(with_conjugates(poles)) - p[..., :, None] * p.conj()[..., None, :]
    eye, half = torch.eye(A.shape[-1]), step[:, None, None] / 2
    dense = torch.linalg.solve(eye - half * A, eye + half * A)
    torch.testing.assert_close(
        B_hn, real_parts(torch.linalg.solve(eye - half * A, step[:, None] * b)), rtol=0, atol=1e-12
    )
    x = torch.randn(3, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    moved = real_parts((dense @ with_conjugates(x.unflatten(-1, (-1, 2)))[..., None]).squeeze(-1))
    torch.testing.assert_close((transition.dense() @ x[..., None]).squeeze(-1), moved, rtol=0, atol=1e-12)
    stepped = transition.step(x[None, ..., None], 0).squeeze(-1)[0]
    torch.testing.assert_close(stepped, moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_stable_poles_make_a_contraction(seed):
    poles, P, B, step = random_continuous(seed=seed)
    transition, _ = bilinear_dplr(poles, P, B, step)
    assert torch.linalg.matrix_norm(transition.dense(), 2).max() < 1


def test_gradients_of_the_discretisation():
    inputs = [x.requires_grad_() for x in random_continuous(heads=2, modes=2)]

    def function(*values):
        transition, B_hn = bilinear_dplr(*values)
        return transition.diagonal, transition.left, transition.right, B_hn

    assert torch.autograd.gradcheck(function, inputs)


def test_a_step_may_overwrite_its_state():
    case = Case(structure="dplr")
    transition, state = case.system(case.tensors()).transition, case.tensors()["state"]
    expected = transition.step(state.clone(), 0)
    moved = transition.step(state, 0, in_place=True)
    assert moved is state
    assert torch.equal(state, expected)


@pytest.mark.parametrize("length", [1, 2, 11])
def test_the_orbit_of_a_state_is_its_steps(length):
    transition, B_hn = legs(16, 0.05)
    state, expected = B_hn[None, ..., None], []
    moved = state
    for _ in range(length):
        expected.append(moved)
        moved = transition.step(moved, 0)
    torch.testing.assert_close(transition.orbit(state, length), torch.stack(expected, dim=1), rtol=0, atol=1e-13)


# ---- HiPPO-LegS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 8])
def test_legs_is_triangular_with_eigenvalues_minus_one_to_minus_n(n):
    A, _ = hippo_legs(n)
    assert not A.triu(1).any()
    assert torch.equal(A.diagonal(), -torch.arange(1.0, n + 1, dtype=DOUBLE))
    assert A[n - 1, 0].item() == pytest.approx(-math.sqrt(2 * n - 1))


@pytest.mark.parametrize("n", [2, 8, 64, 256])
def test_normal_part_of_legs_has_the_real_part_minus_one_half(n):
    A, P = hippo_legs(n)
    normal = A + torch.outer(P, P) + 0.5 * torch.eye(n)
    assert (normal + normal.mT).abs().max() <= 1e-12 * normal.abs().max()
    frequencies, _ = hippo_legs_modes(n)
    assert frequencies.min() > 0
    eigenvalues = torch.linalg.eigvals(normal)
    torch.testing.assert_close(eigenvalues.imag.sort().values[n // 2 :], frequencies, rtol=1e-10, atol=1e-10)
    # Their components carry all of P: the modes and their conjugates are an orthonormal basis.
    assert 2 * hippo_legs_modes(n)[1].square().sum().item() == pytest.approx(P.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 4, 8, 12])
def test_modes_and_rank_one_term_recover_the_eigenvalues_of_legs(n):
    """Through the bilinear rule: λ = (1 - Δk/2) / (1 + Δk/2) for k = 1 … n, as far as cond(V) lets them be computed."""
    step = 0.1
    transition, _ = legs(n, step)
    k = torch.arange(1.0, n + 1, dtype=DOUBLE)
    expected = ((1 - step * k / 2) / (1 + step * k / 2)).flip(0)
    values = transition.eigenvalues(1, 1, 1)[0, 0, 0]
    tolerance = 1e-15 * transition.eigenvector_condition().item()
    assert values.imag.abs().max() <= tolerance
    torch.testing.assert_close(values.real.sort().values, expected, rtol=0, atol=tolerance)


def test_continuous_eigenvalues_are_recovered():
    """-1 … -n from the eigenvalues of diag(a) - p p^H over the complex modes and their conjugates."""
    frequencies, P = hippo_legs_modes(8)
    a = torch.cat([torch.complex(torch.full_like(P, -0.5), sign * frequencies) for sign in (1, -1)])
    p = torch.cat([P, P])
    eigenvalues = torch.linalg.eigvals(torch.diag(a) - torch.outer(p, p))
    torch.testing.assert_close(
        eigenvalues.real.sort().values, -torch.arange(8.0, 0, -1, dtype=DOUBLE), rtol=0, atol=1e-9
    )
    assert eigenvalues.imag.abs().max() < 1e-9


def test_conditioning_of_legs():
    """cond(V) is 8e10 at n = 16, and beyond float64 at n = 32."""
    assert 7e10 < legs(16, 0.05)[0].eigenvector_condition().item() < 9e10
    assert legs(8, 0.05)[0].eigenvector_condition().item() < 1e5
    assert legs(32, 0.05)[0].eigenvector_condition().item() > 1e14


@pytest.mark.parametrize(
    ("n", "dtype"), [(10, torch.float32), (64, torch.float32), (32, DOUBLE), (64, DOUBLE)], ids=str
)
def test_meaningless_eigenvalues_are_refused(n, dtype):
    transition, B_hn = legs(n, 0.05, dtype)
    factor = B_hn[None, None]
    system = DSFSystem(u=torch.ones(1, 3, 1, 1, dtype=DOUBLE), B=factor, C=factor, transition=transition)
    with pytest.raises(DSFSystemError, match=rf"{n} states mean nothing: cond\(V\) = .*{dtype}.*matrices\(\)"):
        system.eigenvalues()
    assert system.matrices().Lambda.shape == (1, 3, n, n)
    assert torch.equal(system.matrices().Lambda[0, 1], transition.dense()[0])


@pytest.mark.parametrize(("n", "moved"), [(8, 1e-3), (16, 0.1), (64, 0.5)])
def test_rounding_the_parameters_moves_the_eigenvalues_of_legs(n, moved):
    """What the refusal is for: below 1e-3 where they are given, by 0.1 and 0.5 where they are not."""
    step = 0.1
    values = legs(n, step, torch.float32)[0]._diagonalised()[0][0]
    k = torch.arange(n, 0, -1, dtype=DOUBLE)
    error = (values[values.real.argsort()] - (1 - step * k / 2) / (1 + step * k / 2)).abs().max()
    assert error < moved if n == 8 else error > moved


def test_defective_matrices_are_refused():
    """A Jordan block [[1/2, -1], [0, 1/2]] has one eigenvector."""
    diagonal = torch.tensor([[[0.5, 0.0]]], dtype=DOUBLE)
    jordan = DPLR(diagonal, torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double())
    with pytest.raises(DSFSystemError, match=r"cond\(V\)"):
        jordan.eigenvalues(1, 1, 1)


# ---- documents and pads in it ---------------------------------------------------------------------------------------


def test_eigenvalues_and_blocks_with_documents_and_pads():
    case = Case(structure="dplr", starts=(3,), lengths=(11, 8))
    system = case.system(case.tensors())
    native = system.transition.eigenvalues(2, 11, 4)
    values = system.eigenvalues().values
    assert values.shape == (2, 10, 4, 4)
    assert values[0, 2].eq(0).all()
    assert values[1, 7:].isnan().all()
    assert torch.equal(values[1, :3], native[1, 1:4])
    Lambda = system.effective_transition().blocks(2, 11, 4, 4, 2)
    assert not Lambda[0, 3].any()
    assert Lambda[1, 8:].eq(torch.eye(4, dtype=DOUBLE)).all()
    assert torch.equal(Lambda[0, 4, :, 0], system.transition.dense())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagonal": (4, 3, 2)}, ["diagonal", "(4, 3, 2)", "(4, 2, 2)"]),
        ({"left": (4, 3)}, ["left", "(4, 3)", "(4, 4)"]),
        ({"right": (1, 4)}, ["right", "(1, 4)", "(4, 4)"]),
    ],
)
def test_errors_name_the_field_its_shape_and_the_remedy(changes, message):
    case = Case(structure="dplr")
    tensors = case.tensors() | {name: torch.zeros(shape, dtype=DOUBLE) for name, shape in changes.items()}
    with pytest.raises(DSFSystemError) as error:
        case.system(tensors)
    assert all(part in str(error.value) for part in message)


def test_an_odd_number_of_states_is_refused():
    case = Case(structure="dplr")
    tensors = case.tensors()
    tensors |= {name: tensors[name][..., :3] for name in ("B", "C")}
    with pytest.raises(DSFSystemError, match=r"B has 3 states per channel.*even number"):
        case.system(tensors)
