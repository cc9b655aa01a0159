"""Sizes, layouts and surroundings that an engine meets in the field, and the errors of its arguments."""

from dataclasses import replace

import pytest
import torch

from dsf_models.engine import MODES, evaluate, evaluate_sequential
from dsf_models.system import DSFSystem, DSFSystemError, ScalarDecay
from evaluation.benchmarks.random_systems import CONSTANT_FACTORS, Case, outcome
from tests.engine.random_systems import assert_outcomes_match

KINDS = {
    "scalar": Case(D=1, input_gain=3, output_gain=4, signed=True),
    "elementwise": Case(structure="elementwise", D=1, input_gain=4, signed=True, starts=(0, 3), lengths=(11, 6)),
    "identity": Case(decay=None, normalized=True),
    "factored": Case(structure="factored", starts=(3,), lengths=(11, 6), D=2, input_gain=4),
    "key_diagonal": Case(structure="key_diagonal", signed=True, groups_C=4, starts=(3,), lengths=(11, 6)),
    "delta_rule": Case(structure="delta_rule", D=1, input_gain=3, starts=(3,), lengths=(11, 6)),
    "delta_rule_at_B": Case(structure="delta_rule_at_B", signed=True, input_gain=4),
    "dplr": Case(structure="dplr", D=1, output_gain=4),
    "dplr, documents and pads": Case(structure="dplr", starts=(0, 3), lengths=(11, 6)),
    "documents and pads": Case(decay=None, starts=(0, 3), lengths=(11, 6), groups_B=1, groups_C=4),
    "constant factors": Case(structure="rotation", broadcasts=CONSTANT_FACTORS, D=1, input_gain=3, output_gain=4),
    "constant factors, documents and pads": Case(
        structure="real_rotation", broadcasts=CONSTANT_FACTORS, starts=(0, 3), lengths=(11, 6)
    ),
    "rotation": Case(structure="rotation", D=1, input_gain=3),
    "maps": Case(structure="rotation", maps=True, heads=1, D=2),
    "maps, documents and pads": Case(structure="rotation", maps=True, heads=1, starts=(0, 3), lengths=(11, 6)),
}
kinds = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())


@pytest.mark.parametrize("mode", MODES)
@kinds
def test_an_empty_batch(mode, case):
    case = replace(case, batch=0, lengths=None)
    system = case.system(case.tensors())
    y, state = evaluate(system, mode)
    assert y.shape == system.u.shape
    assert state.shape == system.state_shape
    assert evaluate_sequential(system)[0].shape == y.shape


@pytest.mark.parametrize("mode", MODES)
@kinds
def test_inputs_of_any_strides(mode, case):
    tensors = case.tensors()
    backwards = [tuple(range(value.ndim))[::-1] for value in tensors.values()]
    strided = {
        name: value.permute(order).contiguous().permute(order)
        for (name, value), order in zip(tensors.items(), backwards, strict=True)
    }
    assert not strided["u"].is_contiguous()
    y, state = evaluate(case.system(strided), mode, strided["state"], 4)
    expected_y, expected_state = evaluate(case.system(tensors), mode, tensors["state"], 4)
    torch.testing.assert_close(y, expected_y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state, expected_state, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
@kinds
def test_no_graph_without_gradients(mode, case):
    tensors = case.tensors()
    for value in evaluate(case.system(tensors), mode, tensors["state"]):
        assert value.grad_fn is None
        assert not value.requires_grad
    trained = case.system({name: value.requires_grad_() for name, value in tensors.items()})
    with torch.no_grad():
        assert not any(value.requires_grad for value in evaluate(trained, mode, tensors["state"]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["u", "B", "C", "log_decay", "state", "input_gain", "output_gain", "D"])
def test_gradients_of_one_input_alone(mode, name):
    """A frozen rest, as in adapters and in probes, changes nothing."""
    case = KINDS["scalar"]
    tensors = case.tensors()
    alone = {key: value.clone().requires_grad_(key == name) for key, value in tensors.items()}
    y, state = evaluate(case.system(alone), mode, alone["state"], 4)
    generator = torch.Generator().manual_seed(case.seed + 2)
    objective = sum((x * torch.randn(x.shape, generator=generator).double()).sum() for x in (y, state))
    (gradient,) = torch.autograd.grad(objective, alone[name])
    torch.testing.assert_close(gradient, outcome(case, tensors, evaluate_sequential)[f"gradient of {name}"])


@pytest.mark.parametrize("mode", MODES)
@kinds
def test_compiles_without_graph_breaks(mode, case):
    tensors = case.tensors(torch.float32)

    def evaluation(system, state):
        return evaluate(system, mode, state, 4)

    torch.compiler.reset()
    compiled = torch.compile(evaluation, fullgraph=True, backend="eager")
    assert_outcomes_match(outcome(case, tensors, compiled), outcome(case, tensors, evaluation), 0.0)


def test_a_system_built_inside_a_compiled_function_under_autocast():
    tensors = Case().tensors(torch.float32)

    def layer(u, B, C, log_decay):
        return evaluate(DSFSystem(u=u, B=B, C=C, transition=ScalarDecay(log_decay)), "chunked", None, 4)[0]

    arguments = [tensors[name] for name in ("u", "B", "C", "log_decay")]
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend="eager")(*arguments)
    assert torch.equal(y, layer(*arguments))


@pytest.mark.parametrize("mode", MODES)
@kinds
def test_tensors_without_data(mode, case):
    """Shape inference on the meta device, as device maps and counters of operations do it."""
    tensors = {name: value.to("meta") for name, value in case.tensors().items()}
    system = case.system(tensors)
    if system.starts is not None:
        system = system.with_layout(system.starts.to("meta"), system.lengths.to("meta"))
    y, state = evaluate(system, mode, tensors["state"], 4)
    assert (y.shape, y.device.type) == (system.u.shape, "meta")
    assert state.shape == system.state_shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "parallel"}, ["mode='parallel'", "'recurrent', 'chunked', 'matrix', 'convolution'"]),
        ({"mode": "convolution"}, ['mode="convolution"', "time-invariant", "Λ (scalar)", "another mode"]),
        ({"chunk_size": 0}, ["chunk_size=0", "number of steps in a chunk"]),
        ({"chunk_size": -3}, ["chunk_size=-3"]),
        ({"state": torch.zeros(2, 4, 3, 3)}, ["state", "(2, 4, 3, 3)", "(2, 4, 3, 2)", "normaliser"]),
        ({"state": torch.zeros(4, 3, 2)}, ["state", "(4, 3, 2)", "(2, 4, 3, 2)"]),
    ],
)
def test_errors_name_the_argument_its_value_and_the_remedy(arguments, message):
    case = Case()
    with pytest.raises(DSFSystemError) as error:
        evaluate(case.system(case.tensors()), **arguments)
    for part in message:
        assert part in str(error.value)


def test_a_normalised_system_asks_for_its_normaliser_in_the_state():
    case = Case(decay=None, normalized=True)
    with pytest.raises(DSFSystemError, match=r"\(2, 4, 3, 2\); give \(2, 4, 3, 3\)"):
        evaluate(case.system(case.tensors()), state=torch.zeros(2, 4, 3, 2))
