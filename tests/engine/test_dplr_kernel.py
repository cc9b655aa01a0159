"""The chunked kernel of DPLR Λ where it is hard: HiPPO-LegS of many states, and slow steps."""

import math

import pytest
import torch

from dsf_models.engine import evaluate, evaluate_sequential
from dsf_models.system import DSFSystem, DSFSystemError
from dsf_models.transitions import DPLR
from evaluation.benchmarks.random_systems import Case, outcome
from tests.engine.random_systems import assert_outcomes_match
from tests.transitions.test_dplr import legs


class LegS(Case):
    """HiPPO-LegS at one Δ a head, log-uniform in [0.001, 0.1]; the parameters of Λ are leaves."""

    def _transition_tensors(self, lead, generator):
        heads = [legs(self.states, step)[0] for step in torch.logspace(-3, -1, self.heads).tolist()]
        return {name: torch.cat([getattr(head, name) for head in heads]) for name in ("diagonal", "left", "right")}


def test_kernel_is_the_powers_of_the_dense_matrix():
    """The response to a unit input at step 0 is c^T Λ^i b, and from a state c^T Λ^{i+1} S."""
    case = LegS(structure="dplr", batch=1, length=50, heads=2, groups_B=2, groups_C=2, states=8, width=1)
    tensors = case.tensors()
    tensors["u"] = torch.zeros_like(tensors["u"])
    tensors["u"][:, 0] = 1.0
    system = case.system(tensors)
    y, _ = evaluate(system, "chunked", None, 16)
    from_state, _ = evaluate(
        case.system(tensors | {"u": torch.zeros_like(tensors["u"])}), "chunked", tensors["state"], 16
    )
    dense, b, c = system.transition.dense(), system.B[0, 0], system.C[0, 0]
    for time in range(50):
        power = torch.linalg.matrix_power(dense, time)
        expected = (c[:, None] @ power @ b[..., None]).flatten()
        torch.testing.assert_close(y[0, time].flatten(), expected, rtol=0, atol=1e-12)
        expected = (c[:, None] @ power @ dense @ tensors["state"][0]).flatten()
        torch.testing.assert_close(from_state[0, time].flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 16, 64, 256])
@pytest.mark.parametrize("layout", [{}, {"starts": (0, 33, 64, 77), "lengths": (150, 99)}], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_legs(n, layout, dtype):
    """Outputs, last state and all gradients with as many states as S4 uses, where no eigenvector could be trusted."""
    case = LegS(structure="dplr", length=150, heads=3, groups_B=3, groups_C=3, states=n, width=1, D=1, **layout)
    tensors = case.tensors(dtype)
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    result = outcome(case, tensors, lambda system, state: evaluate(system, "chunked", state))
    assert_outcomes_match(result, reference, 1e-10 if dtype == torch.float64 else 1e-6)


def test_a_cut_between_chunks_and_inside_them_is_one_pass():
    case = LegS(
        structure="dplr", length=100, heads=2, groups_B=1, groups_C=2, states=16, starts=(40,), lengths=(100, 71)
    )
    tensors = case.tensors()
    system, state = case.system(tensors), tensors["state"]
    expected, last = evaluate(system, "chunked", state)
    outputs, start = [], 0
    for size in (32, 1, 20, 47):
        y, state = evaluate(system.narrow(start, size), "chunked", state)
        outputs.append(y)
        start += size
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-11)


def test_a_slow_mode_does_not_drift_in_decoding():
    """Λ of modulus one, turned by an angle that float32 cannot hold: 1000 single-precision steps keep the bar."""
    angle = torch.tensor(0.1, dtype=torch.float64)
    diagonal = torch.stack([angle.cos(), angle.sin()])[None, None]
    zero = torch.zeros(1, 2, dtype=torch.float64)
    one = torch.ones(1, 1, 1, 2)
    u = torch.randn(4, 1000, 1, 1, generator=torch.Generator().manual_seed(0))
    system = DSFSystem(u=u, B=one, C=one, transition=DPLR(diagonal, zero, zero))
    expected, _ = evaluate_sequential(system)
    for mode in ("recurrent", "chunked"):
        y, _ = evaluate(system, mode)
        assert (y - expected).norm() / expected.norm() <= 1e-6, mode


@pytest.mark.parametrize("name", ["B", "C"])
def test_factors_that_depend_on_time_are_refused_by_name(name):
    case = Case(structure="dplr")
    tensors = case.tensors()
    tensors[name] = tensors[name].expand(1, case.length, -1, -1)
    system = case.system(tensors)
    with pytest.raises(DSFSystemError, match=rf'{name} has shape \(1, 11, 2, 4\).*mode="recurrent"'):
        evaluate(system, "chunked")
    expected, _ = evaluate_sequential(system)
    for mode in ("recurrent", "matrix"):
        torch.testing.assert_close(evaluate(system, mode)[0], expected, rtol=1e-12, atol=math.ulp(1.0) * 100)
