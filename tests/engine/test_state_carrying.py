"""The state as argument and result: a sequence cut anywhere, its segments evaluated in any modes, is one sequence."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.engine import MODES, evaluate, evaluate_sequential, initial_state, modes_of
from evaluation.benchmarks.random_systems import CONSTANT_FACTORS, Case, outcome
from tests.engine.random_systems import assert_outcomes_match, random_case

segments = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([*MODES, "convolution"])), min_size=1, max_size=6)


def in_segments(plan):
    """Evaluate segment after segment; the last mode of the plan takes what is left."""

    def evaluation(system, state):
        start, outputs = 0, []
        for size, mode in [*plan, (system.length, plan[-1][1])]:
            size = min(size, system.length - start)
            if size:
                segment = system.narrow(start, size)
                y, state = evaluate(segment, mode if mode in modes_of(segment) else None, state, 4)
                outputs.append(y)
                start += size
        return torch.cat(outputs, dim=1), state

    return evaluation


@settings(max_examples=150)
@given(st.integers(0, 10**6), segments)
def test_any_cut_is_one_pass(seed, plan):
    case = random_case(seed)
    tensors = case.tensors()
    reference = outcome(case, tensors, evaluate_sequential)
    floor = reference["y"].norm().item() if case.normalized else 0.0
    assert_outcomes_match(outcome(case, tensors, in_segments(plan)), reference, 1e-10, floor)


ROTATION = {"structure": "rotation", "D": 1, "input_gain": 3}
MAPS = {"structure": "rotation", "maps": True, "heads": 1, "D": 2}
CONSTANT_KINDS = [ROTATION | {"broadcasts": CONSTANT_FACTORS}, ROTATION, MAPS]


@pytest.mark.parametrize(
    "kind",
    [
        {"D": 1, "input_gain": 3, "signed": True},
        {"structure": "elementwise", "signed": True},
        {"decay": None, "normalized": True},
        ROTATION,
        MAPS,
    ],
)
def test_decoding_token_by_token_is_one_pass(kind):
    case = Case(**kind)
    tensors = case.tensors()
    reference = outcome(case, tensors, evaluate_sequential)
    assert_outcomes_match(outcome(case, tensors, in_segments([(1, None)] * case.length)), reference, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decay", [None, "benign"])
def test_the_state_given_is_left_alone_and_zero_is_the_default(mode, decay):
    case = Case(decay=decay, starts=None if decay else (3,))
    tensors = case.tensors()
    given_state = tensors["state"].clone()
    evaluate(case.system(tensors), mode, tensors["state"])
    assert torch.equal(tensors["state"], given_state)
    system = case.system(tensors)
    for value, expected in zip(evaluate(system, mode), evaluate(system, mode, initial_state(system)), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_pads_hands_its_state_on(mode):
    case = Case(lengths=(0, 11), starts=(0, 5))
    tensors = case.tensors()
    y, state = evaluate(case.system(tensors), mode, tensors["state"], 4)
    assert torch.equal(state[0], tensors["state"][0])
    assert not y[0].any()


@pytest.mark.parametrize("mode", MODES)
def test_what_stands_at_pads_does_not_matter(mode):
    case = Case(lengths=(7, 11), D=1, input_gain=3, signed=True)
    tensors = case.tensors()
    other = {name: value.clone() for name, value in tensors.items()}
    for name in ("u", "B", "C", "input_gain", "log_decay"):
        other[name][0, 7:] = 1e3 if name != "log_decay" else -1e4
    for value, expected in zip(
        evaluate(case.system(other), mode, tensors["state"], 4),
        evaluate(case.system(tensors), mode, tensors["state"], 4),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_a_document_start_forgets_everything_before_it(mode):
    case = Case(batch=1, starts=(5,), signed=True)
    tensors = case.tensors()
    system = case.system(tensors)
    y, state = evaluate(system, mode, 1e100 * tensors["state"], 4)
    alone, last = evaluate(system.narrow(5, 6), mode, chunk_size=4)
    torch.testing.assert_close(y[:, 5:], alone, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", [*MODES, "convolution"])
@pytest.mark.parametrize("kind", CONSTANT_KINDS)
def test_documents_and_pads_of_constant_systems(mode, kind):
    """A start forgets what stands before it, whatever its size, and a row of pads hands its state on."""
    case = Case(lengths=(0, 11), starts=(5,), **kind)
    tensors = case.tensors()
    system = case.system(tensors)
    if mode not in modes_of(system):
        return
    y, state = evaluate(system, mode, 1e100 * tensors["state"], 4)
    assert torch.equal(state[0], 1e100 * tensors["state"][0])
    assert not y[0].any()
    # The second row's document starts at step 6.
    alone, last = evaluate(replace(system.narrow(6, 5), starts=None), mode, chunk_size=4)
    torch.testing.assert_close(y[1, 6:], alone[1], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state[1], last[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "kind",
    [
        {"signed": True},
        {"structure": "elementwise"},
        {"decay": None},
        {"decay": None, "normalized": True},
        ROTATION,
        MAPS,
    ],
)
def test_a_state_given_away_is_overwritten_with_the_same_result(kind):
    case = Case(**{"length": 3, "D": 1, "input_gain": None if "maps" in kind else 3} | kind)
    tensors = case.tensors()
    system, given = case.system(tensors), tensors["state"].detach()
    kept = given.clone()
    with torch.no_grad():
        y, state = evaluate(system, "recurrent", given)
        assert torch.equal(given, kept)
        y_again, overwritten = evaluate(system, "recurrent", given, overwrite_state=True)
    assert overwritten.data_ptr() == given.data_ptr()
    assert torch.equal(y_again, y)
    assert torch.equal(overwritten, state)


def test_a_state_that_gradients_need_is_never_overwritten():
    case = Case(length=3, signed=True)
    tensors = case.tensors()
    before = tensors["state"].detach().clone()
    evaluate(case.system(tensors), "recurrent", tensors["state"], overwrite_state=True)
    assert torch.equal(tensors["state"], before)
