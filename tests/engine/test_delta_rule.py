"""The delta rule: what it promises of its memory, keys that make the solve hard, and transformers' implementation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from dsf_models.engine import MODES, evaluate, evaluate_sequential
from dsf_models.system import DSFSystem
from dsf_models.transitions import DeltaRule
from evaluation.benchmarks.random_systems import Case, outcome, relative_error
from tests.engine.random_systems import assert_outcomes_match

STRUCTURES = pytest.mark.parametrize("structure", ["delta_rule", "delta_rule_at_B"])


def run(mode, chunk=None):
    return lambda system, state: evaluate(system, mode, state, chunk)


@pytest.mark.parametrize(("largest_beta", "tolerance"), [(1.0, 1e-6), (2.0, 2e-6)])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-1])
@STRUCTURES
def test_keys_that_are_nearly_parallel(structure, spread, largest_beta, tolerance):
    """Nothing fades, and each step erases or, with β = 2, mirrors nearly what the one before wrote.

    What is mirrored 130 times is rounded 130 times: the recurrence itself reaches 1e-6.
    """
    case = Case(length=130, states=8, width=8, structure=structure, decay="near_one", starts=(40,))
    tensors = case.tensors(torch.float32)
    name = "key" if "key" in tensors else "B"
    tensors[name] = F.normalize(tensors[name][:1, :1] + spread * tensors[name], dim=-1)
    tensors["beta"] = largest_beta * torch.where(tensors["beta"] < 0.5, 0.999, 1.0)
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    assert_outcomes_match(outcome(case, tensors, run("chunked")), reference, tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_the_newest_value_of_a_key_is_what_is_read(mode):
    """With α = β = 1 a write replaces what its key held, and leaves orthogonal keys alone."""
    key = torch.eye(3).double()[[0, 1, 0, 2, 1, 0]][None, :, None]
    u = torch.randn(1, 6, 1, 4, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y, state = evaluate(DSFSystem(u=u, B=key, C=key, transition=DeltaRule(0 * one, key, one)), mode)
    torch.testing.assert_close(y, u)
    torch.testing.assert_close(state[0, 0], u[0, [5, 4, 3], 0])


@pytest.mark.parametrize("mode", MODES)
@STRUCTURES
def test_without_erasing_it_is_a_scalar_decay(mode, structure):
    case = Case(length=40, starts=(9,), lengths=(40, 31), structure=structure)
    tensors = case.tensors()
    tensors["beta"].zero_()
    expected = evaluate(replace(case, structure="scalar").system(tensors), mode, tensors["state"])
    for value, same in zip(evaluate(case.system(tensors), mode, tensors["state"]), expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@STRUCTURES
def test_gradients_against_finite_differences(mode, structure):
    case = Case(batch=1, length=5, heads=2, states=2, groups_B=1, groups_C=1, signed=True, structure=structure)
    tensors = case.tensors()
    names = list(tensors)

    def function(*values):
        leaves = dict(zip(names, values, strict=True))
        return evaluate(case.system(leaves), mode, leaves["state"], 2)

    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in tensors.values()])


@pytest.mark.parametrize("peer", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("largest_beta", [1.0, 2.0])
def test_equals_transformers(peer, mode, largest_beta):
    batch, length, groups, heads, n, p = 2, 70, 2, 4, 8, 6
    q, k = (F.normalize(torch.randn(batch, length, groups, n), dim=-1) for _ in range(2))
    v, state = torch.randn(batch, length, heads, p), torch.randn(batch, heads, n, p)
    log_decay = -torch.rand(batch, length, heads)
    beta = largest_beta * torch.rand(batch, length, heads)
    expected = peer(q, k, v, log_decay, beta, initial_state=state, output_final_state=True)
    system = DSFSystem(u=v, B=k, C=q * n**-0.5, transition=DeltaRule(log_decay, key=k, beta=beta), input_gain=beta)
    for value, same in zip(evaluate(system, mode, state), expected, strict=True):
        assert relative_error(value, same) <= 1e-5
