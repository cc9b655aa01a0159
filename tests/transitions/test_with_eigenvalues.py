"""Eigenvalues replaced by a function: those of the new structure are the function's, for every structure that can."""

import pytest
import torch

from dsf_models.transitions import DeltaRule, Diagonal, DSFSystemError
from evaluation.benchmarks.random_systems import STRUCTURES, Case

DIAGONAL = [name for name in STRUCTURES if name != "dplr"]


def halved(values):
    return values / 2


@pytest.mark.parametrize("structure", [*DIAGONAL, "rotation", "real_rotation", None])
@pytest.mark.parametrize("broadcast", [(), ("decay time", "decay batch")])
def test_new_eigenvalues_are_the_functions(structure, broadcast):
    constant = {"maps": False} if structure else {"decay": None}
    case = Case(structure=structure or "scalar", signed=True, states=4, broadcasts=broadcast, **constant)
    system = case.system(case.tensors())
    transition = system.transition
    sizes = system.u.shape[:3]
    found = transition.with_eigenvalues(halved, system.u).eigenvalues(*sizes)
    expected = transition.eigenvalues(*sizes) / 2
    torch.testing.assert_close(*torch.broadcast_tensors(found, expected), rtol=1e-9, atol=1e-12)
    assert transition.with_eigenvalues(torch.clone, system.u) is transition
    gone = transition.with_eigenvalues(torch.zeros_like, system.u)
    assert float(gone.eigenvalues(*sizes).abs().max()) <= 1e-300
    gone.check(*sizes, 4 if structure != "elementwise" else 1, 2)


@pytest.mark.parametrize("structure", ["scalar", "elementwise", "key_diagonal", "factored", "diagonal"])
def test_signs_may_change(structure):
    case = Case(structure=structure)
    system = case.system(case.tensors())
    found = system.transition.with_eigenvalues(torch.neg, system.u).eigenvalues(*system.u.shape[:3])
    torch.testing.assert_close(found, -system.transition.eigenvalues(*system.u.shape[:3]), rtol=1e-9, atol=1e-12)


def test_a_factored_decay_becomes_a_free_diagonal():
    case = Case(structure="factored")
    system = case.system(case.tensors())
    assert isinstance(system.transition.with_eigenvalues(halved, system.u), Diagonal)


def test_a_delta_rule_keeps_its_keys():
    case = Case(structure="delta_rule", states=4)
    system = case.system(case.tensors())
    found = system.transition.with_eigenvalues(lambda values: values * torch.tensor([1.0, 0.5]).double(), system.u)
    assert isinstance(found, DeltaRule)
    assert torch.equal(found.key, system.transition.key)
    expected = system.transition.eigenvalues(2, 11, 4) * torch.tensor([1.0, 0.5]).double()
    torch.testing.assert_close(found.eigenvalues(2, 11, 4), expected)


@pytest.mark.parametrize(
    ("structure", "function", "message"),
    [
        ("dplr", halved, "structure 'dplr' cannot be replaced one by one"),
        ("scalar", lambda values: values[..., None], "the new eigenvalues are torch.float64 of shape"),
        ("scalar", lambda values: values * 1j, "real in place of real ones"),
        ("scalar", lambda values: values * float("nan"), "no NaN"),
        ("delta_rule", torch.neg, "the eigenvalue α of a delta rule"),
    ],
)
def test_what_does_not_fit_is_refused(structure, function, message):
    case = Case(structure=structure)
    system = case.system(case.tensors())
    with pytest.raises(DSFSystemError, match=message):
        system.transition.with_eigenvalues(function, system.u)
