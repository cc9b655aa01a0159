"""Systems in the terms of other packages' operations, whose stand-ins run on a CPU; the choice of backend; refusals."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsf_models import engine
from dsf_models.engine import backends, choose_backend, evaluate, evaluate_sequential, set_backend, use_backend
from dsf_models.engine.backends import fla, imports
from dsf_models.system import DSFSystem
from dsf_models.transitions import DeltaRule, DSFSystemError, FactoredDecay
from evaluation.benchmarks.random_systems import DECAYS, Case, outcome, relative_error
from tests import contract
from tests.engine.random_systems import assert_outcomes_match, random_case
from tests.engine.stand_ins import STAND_INS

SINGLE = 1e-6
FLA_STRUCTURES = ("scalar", "key_diagonal", "elementwise", "delta_rule_at_B")
MODES = ("chunked", "recurrent")


@pytest.fixture
def called(monkeypatch):
    """Let a CPU pass for a GPU and stand-ins for the packages; the names of the operations that were asked for."""
    names = []

    def load(name):
        names.append(name)
        return STAND_INS[name]

    monkeypatch.setattr(backends, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(imports, "load", load)
    monkeypatch.setattr(imports, "missing", lambda name: None)
    monkeypatch.setattr(fla, "_brings_models", lambda: False)
    return names


def sharing(system):
    """Return a system whose input gain is the very β or Δ of its Λ, as packages ask for."""
    if isinstance(system.transition, DeltaRule):
        return replace(system, input_gain=system.transition.beta)
    if isinstance(system.transition, FactoredDecay):
        return replace(system, input_gain=system.transition.delta)
    return system


def by(backend, mode):
    return lambda system, state: evaluate(sharing(system), mode, state, backend=backend)


def reference(system, state):
    return evaluate_sequential(sharing(system), state)


def assert_translation_matches(case, backend, mode, tolerance=SINGLE, floor=0.0):
    tensors = case.tensors(torch.float32)
    expected = outcome(case, {name: value.double() for name, value in tensors.items()}, reference)
    assert_outcomes_match(outcome(case, tensors, by(backend, mode)), expected, tolerance, floor)


# ---- fla-core --------------------------------------------------------------------------------------------------------


def for_fla(seed):
    """Draw a system with a delta rule that an operation can take instead of a structure that none does."""
    case = random_case(seed, maps=False)
    if case.decay is not None and case.structure not in FLA_STRUCTURES:
        case = replace(case, structure="delta_rule_at_B", decay=case.decay if case.decay in DECAYS else "near_one")
    return case if case.structure != "delta_rule_at_B" else replace(case, decay_per_head=True)


def for_mamba_ssm(seed):
    """Draw a system with factored decays."""
    case = random_case(seed, maps=False, structure="factored", normalized=False, log_normalizer=False)
    return replace(case, decay=case.decay if case.decay in DECAYS else "benign", decay_per_head=True)


@pytest.mark.parametrize("seed", range(30))
def test_any_system_in_terms_of_fla(called, seed):
    case = for_fla(seed)
    floor = evaluate(case.system(case.tensors()), backend="torch")[0].norm().item() if case.normalized else 0.0
    for mode in MODES if case.structure != "delta_rule_at_B" or case.decay is None else ["chunked"]:
        assert_translation_matches(case, "fla", mode, floor=floor)
    assert called


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("structure", FLA_STRUCTURES)
def test_documents_pads_and_signs_in_terms_of_fla(called, structure, decay):
    gain = None if structure == "delta_rule_at_B" else 4
    case = Case(
        length=25,
        structure=structure,
        decay=decay,
        signed=True,
        starts=(0, 7, 8, 16),
        lengths=(25, 20),
        D=2,
        input_gain=gain,
        output_gain=3,
    )
    assert_translation_matches(case, "fla", "chunked")


HALVES = {name: {"structure": name} for name in FLA_STRUCTURES} | {
    "normalized": {"decay": None, "normalized": True, "input_gain": 3}
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", HALVES.values(), ids=HALVES.keys())
def test_half_precision_rounds_inputs_and_outcome_only(called, kind, dtype):
    """Sums are exact in a stand-in: what is left are the roundings around it."""
    case = Case(length=40, starts=(9,), lengths=(40, 31), D=1, output_gain=4, **kind)
    tensors = case.tensors(dtype)
    y, state = by("fla", "chunked")(case.system(tensors), tensors["state"])
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    expected = outcome(case, {name: value.double() for name, value in tensors.items()}, reference)
    # A normalised output does not see the size of its weights: their gradients are differences of the size of y.
    floor = expected["y"].norm().item() if case.normalized else 0.0
    found = outcome(case, tensors, by("fla", "chunked"))
    assert_outcomes_match(found, expected, 2 * torch.finfo(dtype).eps, floor)


@torch.no_grad()
def test_the_recurrent_delta_rule_without_gradients(called):
    case = Case(structure="delta_rule_at_B", starts=(0, 4), lengths=(11, 7), groups_C=4, D=1)
    tensors = case.tensors(torch.float32)
    expected = reference(case.system(tensors), tensors["state"])
    for value, same in zip(by("fla", "recurrent")(case.system(tensors), tensors["state"]), expected, strict=True):
        assert relative_error(value, same) <= SINGLE


@pytest.mark.parametrize("structure", FLA_STRUCTURES)
def test_the_given_state_is_left_alone(called, structure):
    case = Case(structure=structure)
    tensors = case.tensors(torch.float32)
    kept = tensors["state"].clone()
    system = sharing(case.system(tensors))
    with torch.no_grad():
        evaluate(system, "recurrent", tensors["state"], overwrite_state=True, backend="fla")
    assert torch.equal(tensors["state"], kept)
    expected = evaluate(system, "chunked", torch.zeros_like(kept), backend="fla")
    for value, same in zip(evaluate(system, "chunked", backend="fla"), expected, strict=True):
        assert torch.equal(value, same)


# ---- mamba-ssm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_any_system_in_terms_of_mamba_ssm(called, seed):
    assert_translation_matches(for_mamba_ssm(seed), "mamba_ssm", "chunked")
    assert called


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_and_pads_in_terms_of_mamba_ssm(called, decay, dtype):
    kind = {"structure": "factored", "decay": decay, "D": 2, "output_gain": 3}
    case = Case(length=25, starts=(0, 7, 8, 16), lengths=(25, 20), **kind)
    tensors = case.tensors(dtype)
    expected = outcome(case, {name: value.double() for name, value in tensors.items()}, reference)
    tolerance = SINGLE if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert_outcomes_match(outcome(case, tensors, by("mamba_ssm", "chunked")), expected, tolerance)


@pytest.mark.parametrize(
    ("change", "mode", "message"),
    [
        ({}, "recurrent", ["mode='recurrent'", 'mode="chunked"']),
        ({"structure": "scalar"}, "chunked", ["'scalar'"]),
        ({"states": 260}, "chunked", ["256", "260"]),
        ({"input_gain": 4}, "chunked", ["transition.delta the same"]),
    ],
    ids=["mode", "structure", "width", "gain"],
)
def test_mamba_ssm_runs_or_says_why_not(called, change, mode, message):
    case = Case(**{"structure": "factored", **change})
    tensors = case.tensors(torch.float32)
    system = case.system(tensors) if "input_gain" in change else sharing(case.system(tensors))
    with pytest.raises(DSFSystemError) as error:
        evaluate(system, mode, backend="mamba_ssm")
    for part in ["backend='mamba_ssm'", *message]:
        assert part in str(error.value)


# ---- the choice ------------------------------------------------------------------------------------------------------


def drawn(dtype=torch.bfloat16, **kind):
    case = Case(**kind)
    return sharing(case.system(case.tensors(dtype)))


@pytest.mark.parametrize(
    ("structure", "mode"),
    [*itertools.product([*FLA_STRUCTURES, None], MODES), ("factored", "chunked")],
)
def test_what_is_chosen_is_what_runs(called, structure, mode):
    system = drawn(structure=structure) if structure else drawn(decay=None)
    with torch.no_grad():
        choice = choose_backend(system, mode)
        evaluate(system, mode)
    assert choice.name == ("mamba_ssm" if structure == "factored" else "fla")
    assert called == [choice.op]


def test_torch_runs_on_a_cpu_and_says_why():
    for system in (drawn(), drawn(structure="factored"), drawn(torch.float64)):
        choice = choose_backend(system)
        assert choice.name == "torch"
        assert all("'cpu'" in reason and "CUDA" in reason for reason in choice.passed_over.values())
        assert list(choice.passed_over) == ["fla", "mamba_ssm"]


@pytest.mark.parametrize(
    ("system", "mode", "reason"),
    [
        (drawn(length=1), None, "one token"),
        (drawn(torch.float32), "chunked", 'set_float32_matmul_precision("high")'),
        (drawn(torch.float64), "chunked", "float64"),
        (drawn(), "matrix", "mode='matrix'"),
        (drawn(structure="dplr"), "chunked", "'dplr'"),
        (drawn(structure="rotation", maps=True, heads=1), "chunked", "input_map"),
    ],
    ids=["decoding", "TF32", "float64", "matrix", "no operation", "maps"],
)
def test_auto_keeps_to_torch_and_says_why(called, system, mode, reason):
    choice = choose_backend(system, mode)
    assert choice.name == "torch"
    assert reason in choice.passed_over["fla"]
    y, state = evaluate(system, mode)
    for value, same in zip((y, state), evaluate(system, mode, backend="torch"), strict=True):
        assert torch.equal(value, same)
    assert called == []


def test_float32_goes_to_fla_where_its_precision_is_kept_or_given_up(called):
    for structure, mode in [("scalar", "recurrent"), ("elementwise", "chunked")]:
        assert choose_backend(drawn(torch.float32, structure=structure), mode).name == "fla"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert choose_backend(drawn(torch.float32), "chunked").name == "fla"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_float64_gauge_stays_exact(called):
    system = drawn(torch.float32)
    T = torch.rand(2, 12, 4, dtype=torch.float64) + 0.5
    choice = choose_backend(system.rescale(T), "recurrent")
    assert choice.name == "torch"
    assert "float64" in choice.passed_over["fla"]


@pytest.mark.parametrize("models", [False, True])
def test_flash_linear_attention_is_not_imported_unasked(tmp_path, monkeypatch, models):
    """Not by the question either whether it can be: importing it has the side effects that the choice avoids."""
    folder = tmp_path / "fla"
    (folder / "models" if models else folder).mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(fla, "_brings_models", fla._brings_models.__wrapped__)
    monkeypatch.setattr(imports, "missing", imports.missing.__wrapped__)
    monkeypatch.setattr(imports, "load", imports.load.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
        monkeypatch.delitem(sys.modules, name)
    choice = choose_backend(drawn())
    assert choice.name == "torch"
    assert ("uninstall flash-linear-attention" in choice.passed_over["fla"]) == models
    assert ("was imported" in choice.passed_over["fla"]) != models


@pytest.mark.parametrize(
    ("system", "mode", "message"),
    [
        (drawn(torch.float64), "chunked", ["backend='fla'", "float64", 'backend="torch"']),
        (drawn(), "matrix", ["mode='matrix'", "'chunked', 'recurrent'"]),
        (drawn(structure="dplr"), "chunked", ["'dplr'"]),
        (drawn(structure="delta_rule"), "chunked", ["B and transition.key", "same tensors"]),
        (drawn(structure="delta_rule_at_B", states=260), "chunked", ["256", "260"]),
        (drawn(structure="delta_rule_at_B"), "recurrent", ["gradient", "torch.no_grad()"]),
    ],
    ids=["float64", "matrix", "structure", "key", "width", "gradient"],
)
def test_a_named_backend_runs_or_says_why_not(called, system, mode, message):
    with pytest.raises(DSFSystemError) as error:
        evaluate(system, mode, backend="fla")
    for part in message:
        assert part in str(error.value)


def test_a_named_backend_asks_for_its_device_and_its_package(monkeypatch):
    with pytest.raises(DSFSystemError, match="u lies on 'cpu': move the model"):
        evaluate(drawn(), backend="fla")
    monkeypatch.setattr(backends, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(imports, "missing", lambda name: f"No module named {name.partition('.')[0]!r}")
    with pytest.raises(DSFSystemError, match=r"No module named 'fla'.*pip install \"dsf-models\[cuda\]\""):
        evaluate(drawn(), backend="fla")
    assert choose_backend(drawn()).name == "torch"


@pytest.mark.parametrize(
    ("capability", "triton", "refuses"),
    [(9, "3.3.1", False), (9, "3.4.0", True), (9, "3.7.0", True), (9, "3.7.1", False), (8, "3.6.0", False)],
)
def test_gradients_that_fla_refuses_are_left_to_torch(called, monkeypatch, capability, triton, refuses):
    """fla-core says so in the backward pass alone, when it is too late to choose (measured on an H100, Triton 3.6)."""
    monkeypatch.setattr(fla, "_gates_lack_gradients", fla._gates_lack_gradients.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    monkeypatch.setattr(fla.metadata, "version", lambda name: triton)
    for structure, gated in [("scalar", True), ("delta_rule_at_B", True), ("key_diagonal", False)]:
        with torch.enable_grad():
            choice = choose_backend(drawn(structure=structure), "chunked")
        assert (choice.name == "torch") == (refuses and gated)
        assert ("upgrade triton" in choice.passed_over.get("fla", "")) == (refuses and gated)
        with torch.no_grad():
            assert choose_backend(drawn(structure=structure), "chunked").name == "fla"


def test_a_missing_package_is_found_missing():
    assert "no_such_package" in imports.missing("no_such_package.module.function")
    assert imports.missing("math.sqrt") is None


def test_nothing_is_imported_before_a_gpu_asks_for_it(tmp_path):
    for package in ("fla", "mamba_ssm"):
        (tmp_path / f"{package}.py").write_text("raise RuntimeError(f'{__name__} was imported')")
    script = """
import torch
from dsf_models import DSFSystem, engine
from dsf_models.transitions import Identity
x = torch.ones(1, 3, 1, 2)
system = DSFSystem(u=x, B=x, C=x, transition=Identity())
engine.evaluate(system)
assert engine.choose_backend(system).name == "torch"
"""
    paths = os.pathsep.join([str(tmp_path), str(Path(engine.__file__).parents[2])])
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE)
    assert run.returncode == 0, run.stderr.decode()


def test_chunk_sizes_are_those_of_torch(called):
    system = drawn()
    with pytest.raises(DSFSystemError, match="chunk_size=4: backend='fla' has its own"):
        evaluate(system, chunk_size=4, backend="fla")
    evaluate(system, chunk_size=4)
    assert called == []


def test_the_selected_backend_holds_until_the_next():
    system = drawn()
    with use_backend("torch"):
        assert choose_backend(system).passed_over["fla"] == 'backend="torch" was chosen.'
        with use_backend("fla"), pytest.raises(DSFSystemError, match="backend='fla'"):
            evaluate(system)
        assert choose_backend(system).name == "torch"
        assert choose_backend(system).passed_over["fla"] == 'backend="torch" was chosen.'
    set_backend("fla")
    try:
        with pytest.raises(DSFSystemError, match="backend='fla'"):
            choose_backend(system)
        assert choose_backend(system, backend="torch").name == "torch"
    finally:
        set_backend("auto")


def test_an_error_inside_gives_the_selection_back():
    with pytest.raises(DSFSystemError, match="backend='fla'"), use_backend("fla"):
        evaluate(drawn())
    assert "'cpu'" in choose_backend(drawn()).passed_over["fla"]


@pytest.mark.parametrize("name", ["cuda", "triton", "Torch"])
def test_unknown_backends_are_refused(name):
    for call in (
        lambda: set_backend(name),
        lambda: use_backend(name).__enter__(),
        lambda: evaluate(drawn(), backend=name),
        lambda: choose_backend(drawn(), backend=name),
    ):
        with pytest.raises(DSFSystemError, match=f"backend={name!r} is unknown: use one of 'auto', 'torch', 'fla'"):
            call()


# ---- whole models ----------------------------------------------------------------------------------------------------

ATTENTION = ("linear_attention", "normalized_attention", "taylor_attention")
WITH_OPS = (*ATTENTION, "gated_deltanet", "gla", "hybrid", "qlstm", "rg_lru", "s6", "ssd")
"""Architectures whose Λ has an operation."""


@contract.every("default")
@torch.no_grad()
def test_models_come_out_alike(called, monkeypatch, name, case):
    """Left pads, documents, and a prompt that is read by the operations and continued by torch."""
    monkeypatch.setattr(fla, "_allows_tf32", lambda: True)
    model, mask = contract.fresh(name, case), contract.padding_mask("left")
    ids = contract.place(contract.sequences(), mask, contract.PAD)
    for inputs in (
        {"input_ids": ids, "attention_mask": mask.long()},
        contract.packed(contract.sequences())["position_ids"],
    ):
        with use_backend("torch"):
            expected = model(**inputs).logits
        contract.assert_close(model(**inputs).logits, expected, contract.TOLERANCE[torch.float32])
    with use_backend("torch"):
        tokens = contract.generate(model, ids, attention_mask=mask.long())
    assert torch.equal(contract.generate(model, ids, attention_mask=mask.long()), tokens)
    assert bool(called) == (name in WITH_OPS)


# ---- torch.compile ---------------------------------------------------------------------------------------------------


def test_a_compiled_model_stays_one_graph(called):
    case = Case()
    tensors = case.tensors(torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(engine.evaluate, fullgraph=True, backend="eager")
    expected = evaluate(case.system(tensors), "chunked", backend="torch")
    for value, same in zip(compiled(case.system(tensors), "chunked"), expected, strict=True):
        assert torch.equal(value, same)
    assert called == []


def test_a_named_backend_runs_beside_compiled_code(called):
    case = Case(input_gain=3)
    tensors = case.tensors(torch.bfloat16)

    def layer(u, B, C, log_decay):
        system = DSFSystem(u=u.relu(), B=B, C=C, transition=case.system(tensors | {"log_decay": log_decay}).transition)
        return evaluate(system, "chunked", backend="fla")[0].relu()

    arguments = [tensors[name] for name in ("u", "B", "C", "log_decay")]
    torch.compiler.reset()
    y = torch.compile(layer, backend="eager")(*arguments)
    assert called
    assert torch.equal(y, layer(*arguments))
