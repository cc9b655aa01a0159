"""The blocked scan: any block, any number of segments, little memory, and gradients of zero decays."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsf_models.engine import elementwise, evaluate, evaluate_sequential
from evaluation.benchmarks.random_systems import Case, outcome
from tests.engine.random_systems import assert_outcomes_match


@pytest.mark.parametrize("operation_size", [1, 40, 100, 2**15])
@pytest.mark.parametrize("length", [1, 6, 7, 36, 40])
def test_any_number_of_segments_and_blocks(operation_size, length, monkeypatch):
    """Segments of one block, of several, and of a rest that fills none, give what one pass gives."""
    monkeypatch.setattr(elementwise, "OPERATION_SIZE", operation_size)
    case = Case(structure="elementwise", length=length, decay="some_zero", signed=True, lengths=(length, length // 2))
    tensors = case.tensors()
    reference = outcome(case, tensors, evaluate_sequential)
    for chunk in (1, 3, 6, 64, None):
        found = outcome(case, tensors, lambda system, state, chunk=chunk: evaluate(system, "chunked", state, chunk))
        assert_outcomes_match(found, reference, 1e-12, label=f"chunks of {chunk}")


@pytest.mark.parametrize(("length", "block"), [(1, 16), (300, 16), (1024, 32), (4096, 64), (10**6, 64)])
def test_blocks_grow_with_the_root_of_the_length(length, block):
    assert elementwise._block_for(length) == block


def test_gradients_against_finite_differences_in_several_segments(monkeypatch):
    monkeypatch.setattr(elementwise, "OPERATION_SIZE", 12)
    case = Case(structure="elementwise", batch=1, length=9, heads=2, decay="some_zero", signed=True)
    tensors = case.tensors()

    def function(*values):
        leaves = dict(zip(tensors, values, strict=True))
        return evaluate(case.system(leaves), "chunked", leaves["state"], 2)

    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in tensors.values()])


@pytest.mark.parametrize("kind", ["near_one", "benign", "alternating"])
def test_long_sequences_in_single_precision(kind):
    case = Case(structure="elementwise", batch=1, length=3000, decay=kind)
    tensors = case.tensors(torch.float32)
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    found = outcome(case, tensors, lambda system, state: evaluate(system, state=state))
    assert_outcomes_match(found, reference, 1e-6)


class Allocations(TorchDispatchMode):
    """Records the sizes of all new tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.sizes.append(result.numel())
        return result


def test_what_lies_between_is_small():
    """Beside its inputs the scan makes h, backward the two gradients; all else has the size of one operation."""
    shape = (1, 2**14, 64)
    decay, inputs = (torch.rand(shape, requires_grad=True) for _ in range(2))
    with Allocations() as forward:
        h, _ = elementwise._Scan.apply(inputs, decay, torch.zeros(1, 64), 64)
    gradient = torch.ones(shape)
    with Allocations() as backward:
        torch.autograd.grad(h, (decay, inputs), gradient)
    for allocations, whole in ((forward, 1), (backward, 2)):
        assert sum(size == h.numel() for size in allocations.sizes) == whole
        assert max(size for size in allocations.sizes if size < h.numel()) <= elementwise.OPERATION_SIZE
