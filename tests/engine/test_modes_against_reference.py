"""Every mode against the float64 sequential reference: outputs, last state and every gradient."""

import pytest
import torch

from dsf_models.engine import MODES, evaluate, evaluate_sequential, modes_of
from evaluation.benchmarks.random_systems import CONSTANT_FACTORS, DECAYS, RADII, STRUCTURES, Case, outcome
from tests.engine.random_systems import CHUNKS, assert_outcomes_match, random_case

DOUBLE, SINGLE = 1e-10, 1e-6
structures = pytest.mark.parametrize("structure", STRUCTURES)
EVERY_MODE = [("recurrent", None), ("matrix", None), ("convolution", None), *(("chunked", chunk) for chunk in CHUNKS)]


def run(mode, chunk=None):
    return lambda system, state: evaluate(system, mode, state, chunk)


def assert_every_mode_matches(case, dtype, tolerance, modes=EVERY_MODE, floor=0.0):
    tensors = case.tensors(dtype)
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    for mode in modes:
        if mode[0] not in modes_of(case.system(tensors)):
            continue
        assert_outcomes_match(outcome(case, tensors, run(*mode)), reference, tolerance, floor, label=str(mode))


@pytest.mark.parametrize("seed", range(150))
def test_any_system_in_double_precision(seed):
    case = random_case(seed)
    # A normalised output does not see the size of its weights: their gradients are differences of terms of the size of
    # y. They may vanish, for a first token say, and then nothing but rounding is left to compare.
    floor = evaluate(case.system(case.tensors()))[0].norm().item() if case.normalized else 0.0
    assert_every_mode_matches(case, torch.float64, DOUBLE, floor=floor)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("signed", [False, True])
@structures
def test_documents_at_chunk_borders_in_double_precision(structure, decay, signed):
    case = Case(length=25, structure=structure, decay=decay, signed=signed, starts=(0, 7, 8, 16), lengths=(25, 20))
    assert_every_mode_matches(case, torch.float64, DOUBLE)


LARGE = {"length": 130, "states": 8, "width": 8, "D": 2, "input_gain": 3, "output_gain": 4}
LARGE_MODES = [("recurrent", None), ("matrix", None), *(("chunked", chunk) for chunk in (8, 64, 256))]


def test_single_precision_without_decay():
    assert_every_mode_matches(Case(**LARGE, decay=None), torch.float32, SINGLE, LARGE_MODES)


@pytest.mark.parametrize("decay", DECAYS)
@structures
def test_single_precision(structure, decay):
    assert_every_mode_matches(Case(**LARGE, structure=structure, decay=decay), torch.float32, SINGLE, LARGE_MODES)


@pytest.mark.parametrize("decay", DECAYS)
@structures
def test_single_precision_with_signs_documents_and_pads(structure, decay):
    case = Case(**LARGE, structure=structure, decay=decay, signed=True, starts=(0, 7, 8, 64, 65), lengths=(130, 101))
    assert_every_mode_matches(case, torch.float32, SINGLE, LARGE_MODES)


@pytest.mark.parametrize("decay", [None, "benign", "near_one"])
def test_single_precision_with_normaliser(decay):
    """Weights of one sign, and decays that leave a row more than one of them.

    Next to a zero of η the quotient is ill-conditioned in its inputs, whoever computes it; so are the gradients of a
    row's weights where one weight is nearly all there is: they vanish, as differences of terms that do not.
    """
    case = Case(length=130, states=8, width=8, decay=decay, normalized=True, input_gain=3, D=1)
    assert_every_mode_matches(case, torch.float32, SINGLE, LARGE_MODES)


# Many states: the gradient of a single constant is a sum over time that may cancel, whoever computes it.
FACTORS = {"broadcasts": CONSTANT_FACTORS, "groups_B": 4, "groups_C": 4, "states": 16}
CONSTANT_KINDS = {
    "factors": {"structure": "rotation", "input_gain": 3, "output_gain": 4, **FACTORS},
    "real factors": {"structure": "real_rotation", "signed": True, **FACTORS},
    "varying factors": {"structure": "rotation", "input_gain": 4, "states": 16},
    "maps": {"structure": "rotation", "maps": True, "heads": 1, "width": 8, "states": 64},
    "real maps": {"structure": "real_rotation", "maps": True, "signed": True, "heads": 1, "width": 8, "states": 64},
}
constant_kinds = pytest.mark.parametrize("kind", CONSTANT_KINDS.values(), ids=CONSTANT_KINDS.keys())
CONSTANT_MODES = [("matrix", None), ("convolution", None), ("chunked", None), ("chunked", 24)]


@pytest.mark.parametrize("radii", RADII)
@constant_kinds
def test_single_precision_of_constant_eigenvalues(kind, radii):
    case = Case(length=130, decay=radii, D=2, **kind)
    assert_every_mode_matches(case, torch.float32, SINGLE, CONSTANT_MODES)


@pytest.mark.parametrize("radii", RADII)
@constant_kinds
def test_single_precision_of_constant_eigenvalues_with_documents_and_pads(kind, radii):
    case = Case(length=130, decay=radii, starts=(0, 7, 8, 64, 65), lengths=(130, 101), **kind)
    assert_every_mode_matches(case, torch.float32, SINGLE, CONSTANT_MODES)


@pytest.mark.parametrize("radii", RADII)
@constant_kinds
def test_single_precision_of_constant_eigenvalues_step_by_step(kind, radii):
    """Decoding rounds the state at every step, so that errors add up over long sequences; λ itself is not rounded."""
    case = Case(length=30, decay=radii, starts=(7,), lengths=(30, 21), **kind)
    assert_every_mode_matches(case, torch.float32, SINGLE, [("recurrent", None)])


@constant_kinds
def test_eigenvalues_of_modulus_one_do_not_drift(kind):
    """A rounded λ would err alike at every step: powers are float64, and 1000 steps keep the bar."""
    case = Case(batch=1, length=1000, decay="unit", **kind)
    assert_every_mode_matches(case, torch.float32, SINGLE, [("chunked", None)])


@pytest.mark.parametrize("decay", ["near_one", "alternating", "some_zero"])
@structures
def test_single_precision_of_long_sequences(structure, decay):
    """One decay for all steps: a systematic error of λ would grow with time. (One step at a time, it does.)"""
    case = Case(length=500, states=8, width=8, structure=structure, decay=decay, broadcasts=("decay time",))
    assert_every_mode_matches(case, torch.float32, SINGLE, [("chunked", 32), ("chunked", 64)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [{"D": 1, "input_gain": 3, "output_gain": 4}, {"decay": None, "normalized": True}])
def test_half_precision_inputs_are_evaluated_in_float32(dtype, mode, kind):
    case = Case(length=40, starts=(9,), lengths=(40, 31), **kind)
    tensors = case.tensors(dtype)
    wide = {name: value.float() for name, value in tensors.items()}
    y, state = run(mode)(case.system(tensors), tensors["state"])
    y_wide, state_wide = run(mode)(case.system(wide), wide["state"])
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert torch.equal(y, y_wide.to(dtype))
    assert torch.equal(state, state_wide)
    # Only the incoming gradient of y and the gradients handed back are rounded.
    assert_outcomes_match(outcome(case, tensors, run(mode)), outcome(case, wide, run(mode)), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_does_not_reach_the_engine(mode):
    case = Case(length=40, D=1, input_gain=3, starts=(9,))
    tensors = case.tensors(torch.float32)

    def cast(system, state):
        with torch.autocast("cpu", torch.bfloat16):
            return evaluate(system, mode, state)

    assert_outcomes_match(outcome(case, tensors, cast), outcome(case, tensors, run(mode)), 0.0)


def by_the_equation(system, state):
    """Write the equation down with loops over rows, steps and heads, sharing no line with the package."""
    batch, length, heads, width = system.u.shape
    log_decay = system.transition.log_decay.expand(batch, length, heads)
    sign = system.transition.sign.expand(batch, length, heads)
    y = torch.zeros_like(system.u)
    final = state.clone()
    for row in range(batch):
        for head in range(heads):
            S = state[row, head, :, :width]
            group_B, group_C = head * system.B.shape[2] // heads, head * system.C.shape[2] // heads
            for time in range(int(system.lengths[row])):
                b = system.B.expand(batch, length, -1, -1)[row, time, group_B]
                c = system.C.expand(batch, length, -1, -1)[row, time, group_C]
                decay = 0.0 if system.starts[row, time] else sign[row, time, head] * log_decay[row, time, head].exp()
                v = system.input_gain.expand_as(system.u)[row, time, head] * system.u[row, time, head]
                S = decay * S + torch.outer(b, v)
                gain = system.output_gain.expand(batch, length, heads)[row, time, head]
                y[row, time, head] = gain * (S.T @ c) + system.D[head] * system.u[row, time, head]
            final[row, head] = S
    return y, final


@pytest.mark.parametrize("broadcasts", [(), ("B batch", "C time", "gain batch", "decay time")])
def test_reference_is_the_equation(broadcasts):
    case = Case(
        signed=True, D=2, input_gain=4, output_gain=3, starts=(2, 5), lengths=(11, 8), broadcasts=broadcasts, groups_C=4
    )
    tensors = case.tensors()
    system = case.system(tensors)
    for value, expected in zip(
        evaluate_sequential(system, tensors["state"]), by_the_equation(system, tensors["state"]), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


def test_reference_normalises_by_the_summed_weights():
    case = Case(normalized=True, input_gain=3, state=False)
    tensors = case.tensors()
    y, state = evaluate_sequential(case.system(tensors))
    ones = {**tensors, "u": torch.ones_like(tensors["u"])}
    torch.testing.assert_close(evaluate_sequential(case.system(ones))[0], ones["u"])
    plain = Case(input_gain=3, state=False)
    eta, _ = evaluate_sequential(plain.system(ones))
    summed, last = evaluate_sequential(plain.system(tensors))
    torch.testing.assert_close(y, summed / eta)
    torch.testing.assert_close(state[..., :-1], last)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_against_finite_differences(mode):
    case = Case(batch=1, length=5, heads=2, states=2, groups_B=1, signed=True, D=1, input_gain=3, output_gain=3)
    tensors = case.tensors()
    names = list(tensors)

    def function(*values):
        leaves = dict(zip(names, values, strict=True))
        return evaluate(case.system(leaves), mode, leaves["state"], 2)

    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in tensors.values()])


@pytest.mark.parametrize("mode", MODES)
def test_decay_one_is_the_identity(mode):
    """Unnormalised linear attention is SSD without forgetting."""
    case = Case(decay=None, starts=(4,))
    tensors = case.tensors()
    decay = Case(starts=(4,)).system({**tensors, "log_decay": torch.zeros(1, 1, 1, dtype=torch.float64)})
    expected = evaluate(case.system(tensors), mode, tensors["state"], 4)
    for value, same in zip(evaluate(decay, mode, tensors["state"], 4), expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_decays_in_single_precision_do_not_reach_a_double_precision_system(mode):
    case = Case(length=40)
    tensors = case.tensors() | {"log_decay": case.tensors()["log_decay"].float()}
    y, _ = evaluate_sequential(case.system(tensors), tensors["state"])
    torch.testing.assert_close(evaluate(case.system(tensors), mode, tensors["state"])[0], y, rtol=1e-12, atol=1e-12)
