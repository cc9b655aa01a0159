"""The streamed scan however its work is divided, what it keeps, and its operators under a compiler."""

import pytest
import torch

from dsf_models.engine import evaluate, evaluate_sequential, factored
from evaluation.benchmarks.random_systems import Case, outcome
from tests.engine.random_systems import assert_outcomes_match

WIDE = Case(
    batch=5,
    length=37,
    heads=2,
    groups_B=1,
    groups_C=2,
    states=8,
    width=40,
    structure="factored",
    input_gain=4,
    starts=(3, 20),
    lengths=(37, 36, 0, 17, 5),
)


def chunked(system, state):
    return evaluate(system, "chunked", state)


@pytest.mark.parametrize(
    ("tile", "tile_sizes"),
    [(2**8, (1, 16)), (2**10, (1, 40)), (2**11, (3, 40)), (2**20, (5, 40))],
    ids=["channels", "rows one by one", "some rows", "all"],
)
@pytest.mark.parametrize(("block", "buffer"), [(16, 2**9), (4, 2**13), (5, 2**20)])
def test_every_division_of_the_work_gives_one_result(monkeypatch, tile, tile_sizes, block, buffer):
    monkeypatch.setattr(factored, "TILE", tile)
    monkeypatch.setattr(factored, "BLOCK", block)
    monkeypatch.setattr(factored, "BUFFER", buffer)
    tensors = WIDE.tensors()
    assert factored._tile_sizes(tensors["u"], WIDE.states) == tile_sizes
    reference = outcome(WIDE, tensors, evaluate_sequential)
    assert_outcomes_match(outcome(WIDE, tensors, chunked), reference, 1e-12)


def test_the_states_are_not_kept():
    """The backward pass gets the inputs, each once, and one state in sixteen."""
    sizes = {"batch": 1, "length": 128, "heads": 1, "groups_B": 1, "groups_C": 1, "states": 16, "width": 8}
    case = Case(**sizes, structure="factored", input_gain=4)
    tensors = {name: value.requires_grad_() for name, value in case.tensors(torch.float32).items()}
    system, saved = case.system(tensors), {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate(system, "chunked", tensors["state"])
    inputs = sum(value.nbytes for value in tensors.values())
    assert sum(saved.values()) <= inputs + 4 * case.length * case.states * case.width / factored.BLOCK


@pytest.mark.parametrize("decays", ["delta time", "all time"])
def test_a_compiler_takes_the_scan_as_one_operator(decays):
    case = Case(
        length=37, structure="factored", starts=(3,), broadcasts=("decay time",) if decays == "all time" else ()
    )
    tensors = case.tensors(torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(chunked, fullgraph=True, backend="aot_eager")
    assert_outcomes_match(outcome(case, tensors, compiled), outcome(case, tensors, chunked), 1e-6)


def test_operators_are_what_they_say_to_compilers():
    u, gain, delta = torch.randn(2, 5, 1, 3), torch.ones(1).expand(2, 5, 1, 3), torch.rand(2, 5, 1, 3)
    rate, B, C, state = torch.rand(1, 4, 3), torch.randn(2, 5, 1, 4), torch.randn(2, 5, 1, 4), torch.randn(2, 1, 4, 3)
    checks = ("test_schema", "test_faketensor")
    inputs = (u, gain, delta, rate, B, C)
    torch.library.opcheck(factored._scan, (*inputs, state, 5, True), test_utils=checks)
    torch.library.opcheck(factored._scan, (*inputs, state, 5, False), test_utils=checks)
    kept = factored._scan(*inputs, state, 5, True)[2]
    torch.library.opcheck(factored._scan_backward, (*inputs, kept, 5, u, state), test_utils=checks)
