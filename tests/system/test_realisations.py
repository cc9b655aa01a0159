"""One Φ, many realisations: dense matrices, changes of basis and the eigenvalues that belong to each."""

import math

import pytest
import torch

from dsf_models.engine import MODES, evaluate, evaluate_sequential
from dsf_models.system import DSFSystem, DSFSystemError, Identity, ScalarDecay, rescale_state
from evaluation.benchmarks.random_systems import Case, relative_error
from tests.engine.random_systems import random_case


def dense_recurrence(matrices, u):
    """Run h_i = Λ_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i on the dense matrices, u (b, t, d) -> (b, t, d)."""
    h = torch.zeros(u.shape[0], matrices.Lambda.shape[-1], dtype=u.dtype)
    outputs = []
    for time in range(u.shape[1]):
        Lambda, B, C, D = (matrix[:, time] for matrix in matrices)
        h = (Lambda @ h[..., None] + B @ u[:, time, :, None]).squeeze(-1)
        outputs.append((C @ h[..., None] + D @ u[:, time, :, None]).squeeze(-1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("seed", range(40))
def test_dense_matrices_are_the_equation(seed):
    system = (case := random_case(seed, state=False, length=9)).system(case.tensors())
    matrices = system.matrices()
    state_size, inner = system.state_size, case.heads * case.width
    assert state_size == case.states * (1 if case.maps else inner)
    assert [tuple(matrix.shape[2:]) for matrix in matrices] == [
        (state_size, state_size),
        (state_size, inner),
        (inner, state_size),
        (inner, inner),
    ]
    y, _ = evaluate_sequential(system)
    assert relative_error(dense_recurrence(matrices, system.u.flatten(2)), y.flatten(2)) <= 1e-12


def test_states_are_ordered_by_head_channel_and_feature():
    """B_i = I ⊗ b_i and C_i = I ⊗ c_i^T in each head: state e·n + a belongs to channel e, feature a."""
    case = Case(batch=1, length=2, signed=True)
    system = case.system(case.tensors())
    Lambda, B, C, D = (matrix[0, 1] for matrix in system.matrices())
    eye = torch.eye(case.width, dtype=torch.float64)
    b, c = system.B[0, 1].repeat_interleave(2, 0), system.C[0, 1].repeat_interleave(2, 0)
    decay = system.transition.values()[0, 1].repeat_interleave(case.width * case.states)
    assert torch.equal(B, torch.block_diag(*(torch.kron(eye, b[head][:, None]) for head in range(4))))
    assert torch.equal(C, torch.block_diag(*(torch.kron(eye, c[head][None]) for head in range(4))))
    assert torch.equal(Lambda, torch.diag(decay))
    assert not D.any()


def gauge(case, dtype=torch.float64):
    T = torch.randn(case.batch, case.length + 1, case.heads, dtype=torch.float64).exp()
    return T.to(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(25))
def test_a_change_of_basis_changes_no_output(seed, mode):
    case = random_case(seed, structure="scalar", maps=False)
    tensors = case.tensors()
    system, T = case.system(tensors), gauge(case)
    rescaled = system.rescale(T)
    state = tensors.get("state")
    y, last = evaluate_sequential(system, state)
    y_rescaled, last_rescaled = evaluate(rescaled, mode, None if state is None else rescale_state(state, T), 4)
    assert relative_error(y_rescaled, y) <= 1e-11
    assert relative_error(rescaled.transfer_matrix(), system.transfer_matrix()) <= 1e-12
    # The last state is that of the last real token, T_{l-1} S.
    lengths = torch.tensor(case.lengths or [case.length] * case.batch)
    T_last = T[torch.arange(case.batch), lengths][:, :, None, None]
    assert relative_error(last_rescaled, T_last * last) <= 1e-11


def test_a_change_of_basis_changes_the_eigenvalues():
    case = Case(batch=1)
    system, T = case.system(case.tensors()), gauge(case)
    values, rescaled = system.eigenvalues().values, system.rescale(T).eigenvalues()
    torch.testing.assert_close(rescaled.values, T[:, 2:] / T[:, 1:-1] * values)
    assert rescaled.realisation == "native"
    assert (rescaled.values > 1).any()


def test_there_and_back_again():
    case = Case(signed=True)
    system, T = case.system(case.tensors()), gauge(case)
    back = system.rescale(T).rescale(1 / T)
    for name in ("B", "C"):
        expected = getattr(system, name).repeat_interleave(2, dim=2)
        torch.testing.assert_close(getattr(back, name), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(back.transition.log_decay, system.transition.log_decay, rtol=1e-12, atol=1e-12)
    assert torch.equal(back.transition.sign, system.transition.sign)


def test_any_decay_is_attention_in_its_own_gauge():
    """T_i = Π_{k<=i} 1/λ_k makes Λ = 1: SSD is separable attention, with weights that no token knows by itself."""
    case = Case(batch=1)
    system = case.system(case.tensors())
    T = torch.nn.functional.pad(-system.transition.log_decay.cumsum(1), (0, 0, 1, 0)).exp()
    rescaled = system.rescale(T)
    torch.testing.assert_close(rescaled.eigenvalues().values, torch.ones(1, 10, 4).double(), rtol=1e-12, atol=0.0)
    attention = DSFSystem(u=rescaled.u, B=rescaled.B, C=rescaled.C, transition=Identity())
    torch.testing.assert_close(attention.transfer_matrix(), system.transfer_matrix(), rtol=1e-11, atol=1e-11)


def test_a_gauge_of_half_precision_systems():
    case = Case(batch=1)
    system, T = case.system(case.tensors(torch.bfloat16)), gauge(case, torch.bfloat16)
    y, _ = evaluate(system.to(torch.float64))
    assert relative_error(evaluate(system.rescale(T))[0], y) <= 3e-2


# ---- eigenvalues -----------------------------------------------------------------------------------------------------


def test_native_eigenvalues_are_the_decays():
    case = Case(signed=True, starts=(3,), lengths=(11, 6), broadcasts=("decay batch",))
    system = case.system(case.tensors())
    values, realisation = system.eigenvalues()
    assert realisation == "native"
    assert values.dtype == torch.float64
    expected = system.transition.values().expand(2, 11, 4).clone()
    expected[0, 3] = expected[1, 4] = 0.0
    expected[1, 6:] = math.nan
    torch.testing.assert_close(values, expected[:, 1:], equal_nan=True)


def test_native_eigenvalues_of_attention_are_one():
    case = Case(decay=None, normalized=True, starts=(3,))
    values, realisation = case.system(case.tensors()).eigenvalues("native")
    assert realisation == "native"
    assert torch.equal(values[0, :, 0], torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1, 1]).double())


def test_equal_weights_give_i_over_i_plus_one():
    """The eigenvalue of step i is λ_i, i = 1 … t-1: step 0 has none."""
    ones = torch.ones(2, 12, 3, 1)
    values, realisation = DSFSystem(u=ones, B=ones, C=ones, transition=Identity(), normalized=True).eigenvalues()
    i = torch.arange(1, 12, dtype=torch.float64)
    assert realisation == "normalised"
    torch.testing.assert_close(values, (i / (i + 1))[None, :, None].expand(2, 11, 3), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("decay", [None, "benign"])
def test_normalised_eigenvalues_telescope(decay):
    """λ_{j+1} … λ_i = η_j / η_i times the decay itself: a normaliser rescales rows of Φ and forgets nothing."""
    case = Case(decay=decay, normalized=True, input_gain=3)
    system = case.system(case.tensors())
    eta, values = system.normalizer(), system.eigenvalues().values
    native = system.eigenvalues("native").values
    for j, i in [(0, 1), (0, 10), (3, 8)]:
        expected = eta[:, j] / eta[:, i] * native[:, j:i].prod(1)
        torch.testing.assert_close(values[:, j:i].prod(1), expected, rtol=1e-12, atol=0.0)


def test_normalised_eigenvalues_may_exceed_one():
    """η_i sees the past through the query of step i, so it need not grow."""
    case = Case(decay=None, normalized=True, length=60)
    values = case.system(case.tensors()).eigenvalues().values
    assert values.max() > 1
    assert values.min() > 0


def test_the_normaliser_inside_the_transition_is_the_same_map():
    """The papers' form: Λ_i = η_{i-1}/η_i, B_i = ψ_i/η_i, C_i = φ_i, without a normaliser at the read-out."""
    case = Case(batch=1, decay=None, normalized=True, state=False)
    system = case.system(case.tensors())
    eta = system.normalizer()
    inside = DSFSystem(
        u=system.u,
        B=system.B,
        C=system.C,
        transition=ScalarDecay(torch.nn.functional.pad(eta[:, :-1] / eta[:, 1:], (0, 0, 1, 0)).log()),
        input_gain=1 / eta,
    )
    torch.testing.assert_close(inside.transfer_matrix(), system.transfer_matrix(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inside.eigenvalues().values, system.eigenvalues().values, rtol=1e-12, atol=0.0)


def test_heads_have_one_eigenvalue_each():
    case = Case(heads=6, groups_B=3, groups_C=3, width=5, decay_per_head=False, broadcasts=("decay time",))
    system = case.system(case.tensors())
    assert system.eigenvalues().values.shape == (2, 10, 6)
    assert system.state_size == 6 * 5 * 3


@pytest.mark.parametrize("lengths", [None, (0, 1)])
def test_a_single_step_has_no_eigenvalue(lengths):
    case = Case(length=1, lengths=lengths)
    assert case.system(case.tensors()).eigenvalues().values.shape == (2, 0, 4)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "message"),
    [
        (torch.ones(2, 11, 4), ["T has shape (2, 11, 4)", "(2, 12, 4)"]),
        (torch.ones(1, 12, 4), ["T has shape (1, 12, 4)", "(2, 12, 4)"]),
        (torch.zeros(2, 12, 4), ["T", "not positive"]),
        (-torch.ones(2, 12, 4), ["T", "not positive"]),
        (torch.full((2, 12, 4), math.inf), ["T", "finite"]),
        (torch.full((2, 12, 4), math.nan), ["T", "finite"]),
        (torch.full((2, 12, 4), 1e60, dtype=torch.float64), ["T", "finite", "torch.float32"]),
    ],
)
def test_a_gauge_that_cannot_be_is_refused(T, message):
    case = Case()
    with pytest.raises(DSFSystemError) as error:
        case.system(case.tensors(torch.float32)).rescale(T)
    for part in message:
        assert part in str(error.value)


def test_an_unknown_realisation_is_refused():
    case = Case()
    with pytest.raises(DSFSystemError, match='realisation=\'diagonal\' is unknown: use "native" or "normalised"'):
        case.system(case.tensors()).eigenvalues("diagonal")


def test_a_system_without_normaliser_has_no_normalised_realisation():
    case = Case()
    system = case.system(case.tensors())
    with pytest.raises(DSFSystemError, match=r"normalized is False.*transfer_matrix"):
        system.eigenvalues("normalised")
