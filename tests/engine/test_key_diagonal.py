"""Decays of their own for every key feature: where the factored form overflows, and what the kernel reduces to."""

from dataclasses import replace

import pytest
import torch

from dsf_models.engine import MODES, evaluate, evaluate_sequential
from evaluation.benchmarks.random_systems import Case, outcome
from tests.engine.random_systems import assert_outcomes_match


def run(mode, chunk=None):
    return lambda system, state: evaluate(system, mode, state, chunk)


@pytest.mark.parametrize("strength", [3.0, 80.0, 1e3])
def test_gates_that_nearly_close(strength):
    """Over a chunk of 64 steps exp(-s) would be e^{64 · strength}: far beyond float32, whose largest is e^88."""
    case = Case(length=130, states=8, width=8, structure="key_diagonal")
    tensors = case.tensors(torch.float32)
    tensors["log_decay"] *= strength
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    assert_outcomes_match(outcome(case, tensors, run("chunked")), reference, 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_equal_decays_are_a_scalar(mode):
    case = Case(length=40, starts=(9,), lengths=(40, 31), signed=True)
    tensors = case.tensors()
    scalar = case.system(tensors)
    log_decay, sign = (
        x[..., None].expand(-1, -1, -1, 3) for x in (scalar.transition.log_decay, scalar.transition.sign)
    )
    key = replace(case, structure="key_diagonal").system(tensors | {"log_decay": log_decay})
    key = replace(key, transition=replace(key.transition, sign=sign))
    expected = evaluate_sequential(scalar, tensors["state"])
    for value, same in zip(evaluate(key, mode, tensors["state"]), expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6, 7, 12, 33, 100])
def test_chunks_of_any_size(chunk):
    case = Case(length=25, structure="key_diagonal", signed=True, starts=(7,), lengths=(25, 18))
    tensors = case.tensors()
    reference = outcome(case, tensors, evaluate_sequential)
    assert_outcomes_match(outcome(case, tensors, run("chunked", chunk)), reference, 1e-12)


def test_features_fade_at_their_own_rates():
    """A feature that never fades is read back after a hundred steps; one that halves each step is gone."""
    case = Case(batch=1, length=101, heads=1, groups_B=1, groups_C=1, states=2, width=1, structure="key_diagonal")
    tensors = case.tensors() | {"state": torch.zeros(1, 1, 2, 1).double()}
    tensors["log_decay"] = torch.tensor([1.0, 0.5], dtype=torch.float64).log().expand(1, 101, 1, 2)
    tensors["B"], tensors["C"] = torch.zeros(1, 101, 1, 2).double(), torch.eye(2).double()[[0] * 101][None, :, None]
    tensors["B"][:, 0] = tensors["u"][:, 0] = 1.0
    y, state = evaluate(case.system(tensors), "chunked", tensors["state"])
    torch.testing.assert_close(y, torch.ones_like(y))
    torch.testing.assert_close(state.flatten(), torch.tensor([1.0, 2.0**-100]).double(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_against_finite_differences(mode):
    case = Case(batch=1, length=5, heads=2, states=2, groups_B=1, signed=True, input_gain=3, structure="key_diagonal")
    tensors = case.tensors()
    names = list(tensors)

    def function(*values):
        leaves = dict(zip(names, values, strict=True))
        return evaluate(case.system(leaves), mode, leaves["state"], 2)

    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in tensors.values()])
