"""Structures of Λ beyond scalars: what they do to a state, their eigenvalues, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F

from dsf_models.engine import evaluate_sequential
from dsf_models.system import DSFSystem, DSFSystemError
from dsf_models.transitions import DeltaRule, KeyDiagonal
from evaluation.benchmarks.random_systems import Case

BATCH, LENGTH, HEADS, WIDTH, GROUPS, STATES = 2, 5, 4, 3, 2, 6


def by_the_equation(system, dense, state):
    """Run S_i = Λ_i S_{i-1} + b_i u_i^T, y_i = S_i^T c_i with a dense Λ (row, time, head) and loops over all three."""
    batch, length, heads, _ = system.u.shape
    y, last = torch.zeros_like(system.u), state.clone()
    for row in range(batch):
        for head in range(heads):
            group_B, group_C = (head * factor.shape[2] // heads for factor in (system.B, system.C))
            for time in range(length):
                written = torch.outer(system.B[row, time, group_B], system.u[row, time, head])
                last[row, head] = dense(row, time, head) @ last[row, head] + written
                y[row, time, head] = last[row, head].T @ system.C[row, time, group_C]
    return y, last


def assert_reference_is(case, dense):
    tensors = case.tensors()
    system = case.system(tensors)
    expected = by_the_equation(system, lambda *at: dense(system.transition, *at), tensors["state"])
    for value, same in zip(evaluate_sequential(system, tensors["state"]), expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-13, atol=1e-13)
    blocks = system.transition.blocks(case.batch, case.length, case.heads, case.states, case.width)
    for at in [(0, 0, 0), (1, 4, 3), (1, 10, 2)]:
        for channel in range(case.width):
            torch.testing.assert_close(blocks[at][channel], dense(system.transition, *at), rtol=1e-14, atol=1e-14)


def test_key_diagonal_is_a_diagonal_matrix():
    def dense(Lambda, row, time, head):
        group = head * Lambda.log_decay.shape[2] // 4
        return torch.diag(Lambda.sign[row, time, group] * Lambda.log_decay[row, time, group].exp())

    assert_reference_is(Case(structure="key_diagonal", signed=True), dense)
    assert_reference_is(Case(structure="key_diagonal", signed=True, decay_per_head=False), dense)


def test_delta_rule_is_a_projection_that_decays():
    def dense(Lambda, row, time, head):
        k = Lambda.key[row, time, head * Lambda.key.shape[2] // 4]
        decay, beta = Lambda.log_decay[row, time, head].exp(), Lambda.beta[row, time, head]
        return decay * (torch.eye(3).double() - beta * torch.outer(k, k))

    assert_reference_is(Case(structure="delta_rule", signed=True), dense)
    assert_reference_is(Case(structure="delta_rule_at_B"), dense)


# ---- eigenvalues -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["key_diagonal", "delta_rule"])
def test_eigenvalues_are_those_of_the_dense_matrices(structure):
    case = Case(structure=structure, signed=True, states=4, starts=(3,), lengths=(11, 6), broadcasts=("decay batch",))
    system = case.system(case.tensors())
    values, realisation = system.eigenvalues()
    assert realisation == "native"
    dense = system.matrices().Lambda.unflatten(-1, (4, 2, 4)).unflatten(-4, (4, 2, 4))
    for row, time, head in [(0, 1, 0), (0, 10, 3), (1, 5, 2)]:
        found = torch.linalg.eigvalsh(dense[row, time, head, 0, :, head, 0])
        own = values[row, time - 1, head]
        expected = own if structure == "key_diagonal" else torch.cat([own[:1].expand(3), own[1:]])
        torch.testing.assert_close(found, expected.sort().values, rtol=1e-12, atol=1e-12)
    assert not values[0, 2].any()
    assert not values[1, 3].any()
    assert values[1, 5:].isnan().all()
    assert values[1, :5].isfinite().all()


def test_shapes_of_spectra():
    def spectrum(**fields):
        case = Case(**fields)
        return case.system(case.tensors()).eigenvalues().values

    assert spectrum(structure="key_diagonal", states=5, decay_per_head=False).shape == (2, 10, 4, 5)
    assert spectrum(structure="delta_rule", states=5).shape == (2, 10, 4, 2)
    assert spectrum(structure="delta_rule", states=1).shape == (2, 10, 4, 1)


def test_eigenvalues_of_the_delta_rule():
    """α, and along the key α (1 - β ‖k‖²), which β up to 2 takes down to -α."""
    key = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    key[..., 0] = 1.0
    beta = torch.tensor([0.0, 0.25, 1.0, 2.0], dtype=torch.float64)[None, :, None]
    values = DeltaRule(torch.full((1, 1, 1), math.log(0.8)).double(), key, beta).eigenvalues(1, 4, 1)
    torch.testing.assert_close(values[0, :, 0, 0], torch.full((4,), 0.8).double())
    torch.testing.assert_close(values[0, :, 0, 1], torch.tensor([0.8, 0.6, 0.0, -0.8]).double())


# ---- errors ----------------------------------------------------------------------------------------------------------


def delta_rule(**change):
    fields = {"log_decay": torch.zeros(2, 5, 4), "key": torch.zeros(2, 5, 2, 6), "beta": torch.zeros(2, 5, 4)}
    return DeltaRule(**fields | change)


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (KeyDiagonal(torch.zeros(2, 5, 4)), ["log_decay has shape (2, 5, 4)", "(2|1, 5|1, groups dividing 4, 6)"]),
        (KeyDiagonal(torch.zeros(2, 5, 3, 6)), ["log_decay has shape (2, 5, 3, 6)", "groups dividing 4"]),
        (KeyDiagonal(torch.zeros(2, 5, 0, 6)), ["log_decay has shape (2, 5, 0, 6)", "groups dividing 4"]),
        (KeyDiagonal(torch.zeros(2, 5, 4, 1)), ["log_decay has shape (2, 5, 4, 1)", "per batch row"]),
        (KeyDiagonal(torch.zeros(2, 4, 4, 6)), ["log_decay has shape (2, 4, 4, 6)", "5|1"]),
        (KeyDiagonal(torch.zeros(2, 5, 4, 6), torch.ones(1, 1, 4, 6)), ["sign has shape (1, 1, 4, 6)", "(2, 5, 4, 6)"]),
        (delta_rule(log_decay=torch.zeros(2, 5, 2)), ["log_decay has shape (2, 5, 2)", "(2|1, 5|1, 4|1)"]),
        (delta_rule(beta=torch.zeros(2, 5, 4, 1)), ["beta has shape (2, 5, 4, 1)", "one number per batch row"]),
        (delta_rule(key=torch.zeros(2, 5, 3, 6)), ["key has shape (2, 5, 3, 6)", "groups dividing 4"]),
        (delta_rule(key=torch.zeros(2, 5, 2, 7)), ["key has shape (2, 5, 2, 7)", "B's width"]),
        (delta_rule(key=torch.zeros(3, 5, 2, 6)), ["key has shape (3, 5, 2, 6)", "2|1"]),
    ],
)
def test_errors_name_the_field_its_value_and_the_remedy(transition, message):
    factor = torch.zeros(BATCH, LENGTH, GROUPS, STATES)
    fields = {"u": torch.zeros(BATCH, LENGTH, HEADS, WIDTH), "B": factor, "C": factor}
    assert DSFSystem(**fields, transition=delta_rule()).state_size == HEADS * WIDTH * STATES
    with pytest.raises(DSFSystemError) as error:
        DSFSystem(**fields, transition=transition)
    for part in message:
        assert part in str(error.value)


@pytest.mark.parametrize("structure", ["key_diagonal", "delta_rule"])
def test_no_scalar_gauge_is_written_for_it(structure):
    case = Case(structure=structure)
    with pytest.raises(DSFSystemError, match=structure):
        case.system(case.tensors()).rescale(F.pad(torch.ones(2, 11, 4).double(), (0, 0, 1, 0), value=1.0))
