"""Φ: the same map as the recurrence, and the structure that theory promises it."""

import math

import pytest
import torch

from dsf_models.engine import evaluate_sequential
from dsf_models.system import DSFSystem, Identity, ScalarDecay, apply_transfer_matrix
from evaluation.benchmarks.random_systems import Case, relative_error
from tests.engine.random_systems import random_case


def system_and_phi(case):
    system = case.system(case.tensors())
    return system, system.transfer_matrix()


@pytest.mark.parametrize("seed", range(80))
def test_phi_times_inputs_is_the_recurrence(seed):
    case = random_case(seed, state=False)
    system, phi = system_and_phi(case)
    y, _ = evaluate_sequential(system)
    assert relative_error(apply_transfer_matrix(phi, system.u), y) <= 1e-12
    assert phi.shape[-2:] == (case.length, case.length)
    assert torch.equal(phi, phi.tril())


@pytest.mark.parametrize(
    ("gains", "per_channel"),
    [
        ({}, False),
        ({"D": 1, "input_gain": 3, "output_gain": 3}, False),
        ({"D": 2}, True),
        ({"input_gain": 4}, True),
        ({"output_gain": 4}, True),
        ({"D": 1, "input_gain": 3, "output_gain": 4}, True),
    ],
)
def test_shape_says_whether_channels_share_it(gains, per_channel):
    case = Case(**gains)
    _, phi = system_and_phi(case)
    channels = (case.width,) if per_channel else ()
    assert phi.shape == (case.batch, case.heads, *channels, case.length, case.length)


@pytest.mark.parametrize("decay", [None, "benign"])
def test_pads_are_zero_rows_and_columns(decay):
    case = Case(decay=decay, lengths=(11, 6), D=1, input_gain=3)
    _, phi = system_and_phi(case)
    assert phi[0].diagonal(dim1=-2, dim2=-1).all()
    assert not phi[1, :, 6:].any()
    assert not phi[1, :, :, 6:].any()
    _, short = system_and_phi(Case(decay=decay, D=1, input_gain=3))
    torch.testing.assert_close(phi[1, :, :6, :6], short[1, :, :6, :6], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("decay", [None, "benign"])
def test_documents_are_blocks(decay):
    case = Case(batch=1, decay=decay, starts=(4, 7), D=1, input_gain=3)
    system, phi = system_and_phi(case)
    document = system.starts[0].cumsum(0)
    assert not phi[..., document[:, None] != document[None, :]].any()
    for start, end in [(0, 4), (4, 7), (7, 11)]:
        alone = system.narrow(start, end - start).transfer_matrix()
        torch.testing.assert_close(phi[..., start:end, start:end], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("output_gain", [None, 3])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("decay", [None, "benign", "near_one"])
def test_semiseparable_of_rank_n(decay, normalized, output_gain):
    """No block below the diagonal has a rank above n, and generic ones reach it."""
    case = Case(length=14, heads=2, decay=decay, normalized=normalized, output_gain=output_gain, state=False)
    _, phi = system_and_phi(case)
    ranks = [int(torch.linalg.matrix_rank(phi[..., time:, :time], rtol=1e-10).max()) for time in range(1, 14)]
    assert max(ranks) == case.states


@pytest.mark.parametrize("decay", [None, "benign"])
def test_normalised_rows_sum_to_one(decay):
    case = Case(decay=decay, normalized=True, input_gain=3, starts=(4,), lengths=(11, 6))
    _, phi = system_and_phi(case)
    real = torch.arange(11) < torch.tensor([[11], [6]])
    torch.testing.assert_close(phi.sum(-1), real[:, None].double().expand(2, 4, 11), rtol=1e-13, atol=1e-13)
    _, plain = system_and_phi(Case(decay=decay, input_gain=3))
    assert (plain.sum(-1) - 1).abs().min() > 1e-3


def test_constant_parameters_make_it_toeplitz():
    constant = ("B time", "C time", "gain time", "decay time")
    case = Case(broadcasts=constant, signed=True, D=2, input_gain=4, output_gain=3)
    _, phi = system_and_phi(case)
    torch.testing.assert_close(phi[..., 1:, 1:], phi[..., :-1, :-1], rtol=1e-13, atol=1e-13)
    _, varying = system_and_phi(Case(broadcasts=constant[:-1]))
    assert not torch.allclose(varying[..., 1:, 1:], varying[..., :-1, :-1])


def test_more_states_can_do_what_fewer_do():
    """Zero columns of B and C change nothing, so what n states can do, n' > n states can."""
    system, phi = system_and_phi(Case())
    wider = DSFSystem(
        u=system.u,
        B=torch.nn.functional.pad(system.B, (0, 2)),
        C=torch.nn.functional.pad(system.C, (0, 2)),
        transition=system.transition,
    )
    assert wider.state_size > system.state_size
    torch.testing.assert_close(wider.transfer_matrix(), phi, rtol=1e-14, atol=1e-14)


def test_coupled_step_sizes_turn_ssd_into_attention():
    """Λ_i = exp(-aΔ_i) and s_i = Δ_i are attention with η_i = 1/Δ_i iff Δ_i exp(aΔ_i) = Δ_{i-1}: nothing is chosen."""
    a, steps = 0.7, [0.9]
    for _ in range(10):
        x = steps[-1]
        for _ in range(50):  # Newton's iteration for x exp(a x) = the step before
            x -= (x - steps[-1] * math.exp(-a * x)) / (1 + a * x)
        steps.append(x)
    delta = torch.tensor(steps, dtype=torch.float64)[None, :, None].expand(1, 11, 4)
    system = Case(batch=1).system(Case(batch=1).tensors())
    factors = {"u": system.u, "B": system.B, "C": system.C}
    ssd = DSFSystem(**factors, transition=ScalarDecay(-a * delta), input_gain=delta)
    attention = DSFSystem(**factors, transition=Identity(), output_gain=delta)
    torch.testing.assert_close(ssd.transfer_matrix(), attention.transfer_matrix(), rtol=1e-12, atol=1e-12)


def test_precision_of_the_result_is_chosen():
    system = Case(length=40).system(Case(length=40).tensors(torch.float32))
    double, single = system.transfer_matrix(), system.transfer_matrix(torch.float32)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert relative_error(single, double) <= 1e-6


@pytest.mark.parametrize("decay", [None, "benign", "some_zero"])
def test_gradients_flow_through_it(decay):
    case = Case(decay=decay, state=False, D=1, input_gain=3, starts=(4,), lengths=(11, 6))
    tensors = {name: value.requires_grad_() for name, value in case.tensors().items()}
    system = case.system(tensors)
    through_phi = torch.autograd.grad(
        apply_transfer_matrix(system.transfer_matrix(), system.u).square().sum(), tensors.values()
    )
    through_time = torch.autograd.grad(evaluate_sequential(system)[0].square().sum(), tensors.values())
    for value, expected in zip(through_phi, through_time, strict=True):
        assert relative_error(value, expected) <= 1e-12
