"""The packages' real operations on a GPU against the float64 reference; skipped where there is none."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dsf_models.engine import choose_backend, evaluate, use_backend
from dsf_models.engine.backends import fla, imports, mamba_ssm
from dsf_models.transitions import Transition
from evaluation.benchmarks.random_systems import Case, outcome, relative_error
from tests.engine.random_systems import assert_outcomes_match
from tests.engine.test_backends import FLA_STRUCTURES, MODES, for_fla, for_mamba_ssm, reference, sharing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OP = "fla.ops.simple_gla.chunk_simple_gla"
with_fla = pytest.mark.skipif(
    torch.cuda.is_available() and imports.missing(OP) is not None, reason='needs fla-core: pip install -e ".[cuda]"'
)

with_mamba_ssm = pytest.mark.skipif(
    torch.cuda.is_available() and imports.missing(mamba_ssm.OP) is not None, reason="needs mamba-ssm"
)

TOLERANCES = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Of operations that multiply matrices: float32 in TF32 (11 bits), float16 (11 bits), bfloat16 (8 bits)."""
EXACT = 1e-5
"""Of operations that multiply none, in float32."""


def on_gpu(record):
    """Return a system or structure on the GPU; one tensor in two places stays one."""
    moved = {}

    def move(value):
        if isinstance(value, Transition):
            return replace(value, **{field.name: move(getattr(value, field.name)) for field in fields(value)})
        if not isinstance(value, Tensor):
            return value
        return moved.setdefault(id(value), value.cuda())

    return replace(record, **{field.name: move(getattr(record, field.name)) for field in fields(record)})


def by(backend, mode):
    def evaluation(system, state):
        y, last = evaluate(on_gpu(sharing(system)), mode, None if state is None else state.cuda(), backend=backend)
        return y.cpu(), last.cpu()

    return evaluation


def assert_parity(case, dtype, mode, tolerance, backend="fla"):
    """Compare outputs, state and gradients; what is small beside y is as exact as y, not as itself."""
    tensors = case.tensors(dtype)
    expected = outcome(case, {name: value.double() for name, value in tensors.items()}, reference)
    floor = max(expected[name].norm().item() for name in ("y", "state"))
    assert_outcomes_match(outcome(case, tensors, by(backend, mode)), expected, tolerance, floor)


@with_fla
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", range(30))
def test_any_system(seed, dtype):
    assert_parity(for_fla(seed), dtype, "chunked", TOLERANCES[dtype])


@with_fla
@pytest.mark.parametrize("seed", range(30))
def test_operations_without_matrix_products_are_exact(seed):
    case = for_fla(seed)
    if case.structure != "delta_rule_at_B":
        assert_parity(case, torch.float32, "recurrent", EXACT)


@with_fla
@torch.no_grad()
def test_the_recurrent_delta_rule_without_gradients():
    case = Case(structure="delta_rule_at_B", starts=(0, 4), lengths=(11, 7), groups_C=4, D=1)
    tensors = case.tensors(torch.float32)
    expected = reference(case.system(tensors), tensors["state"])
    for value, same in zip(by("fla", "recurrent")(case.system(tensors), tensors["state"]), expected, strict=True):
        assert relative_error(value, same) <= EXACT


@with_fla
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("decay", ["benign", "near_one", "alternating", "some_zero"])
@pytest.mark.parametrize("structure", FLA_STRUCTURES)
def test_many_chunks_documents_and_pads(structure, decay, dtype):
    kind = {"structure": structure, "decay": decay, "signed": structure != "delta_rule_at_B", "D": 2, "output_gain": 4}
    case = Case(length=300, states=32, width=32, starts=(0, 7, 8, 64, 65), lengths=(300, 201), **kind)
    assert_parity(case, dtype, "chunked", TOLERANCES[dtype])


@with_mamba_ssm
@pytest.mark.parametrize("seed", range(30))
def test_any_system_of_mamba_ssm(seed):
    assert_parity(for_mamba_ssm(seed), torch.float32, "chunked", EXACT, "mamba_ssm")


@with_mamba_ssm
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_many_blocks_of_mamba_ssm(dtype):
    """More steps than one block of the kernel takes."""
    kind = {"structure": "factored", "D": 2, "starts": (0, 7, 8, 2100), "lengths": (2200, 2150)}
    case = Case(length=2200, states=16, width=8, **kind)
    tolerance = EXACT if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert_parity(case, dtype, "chunked", tolerance, "mamba_ssm")


@with_fla
@pytest.mark.parametrize("structure", [*FLA_STRUCTURES, None])
def test_auto_takes_fla_in_bfloat16(structure):
    case = Case(structure=structure) if structure else Case(decay=None)
    choice = choose_backend(on_gpu(sharing(case.system(case.tensors(torch.bfloat16)))), "chunked")
    assert (choice.name == "fla") == (not fla._brings_models())


@with_fla
def test_an_empty_batch():
    case = Case(batch=0)
    system = on_gpu(case.system(case.tensors(torch.bfloat16)))
    for mode in MODES:
        y, state = evaluate(system, mode, backend="fla")
        assert (y.shape, state.shape) == (system.u.shape, system.state_shape)


@with_fla
@pytest.mark.parametrize("name", ["linear_attention", "ssd", "gla", "gated_deltanet", "rg_lru"])
def test_a_model_trains_alike_by_fla_and_by_torch(name):
    config = AutoConfig.for_model(f"dsf_{name}", vocab_size=64, hidden_size=64, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).cuda().to(torch.bfloat16)
    ids = torch.randint(config.vocab_size, (2, 150), device="cuda")
    losses, gradients = {}, {}
    for backend in ("torch", "fla"):
        with use_backend(backend):
            losses[backend] = model(input_ids=ids, labels=ids).loss
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients[backend] = torch.cat([x.float().flatten() for x in torch.autograd.grad(losses[backend], parameters)])
    assert relative_error(losses["fla"], losses["torch"]) < 1e-2
    assert relative_error(gradients["fla"], gradients["torch"]) < 1e-1
