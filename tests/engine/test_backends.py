"""Systems in the terms of other packages' operations, whose stand-ins run on a CPU; the choice of backend; refusals."""

from dataclasses import replace

import pytest
import torch

from dsf_models import engine
from dsf_models.engine import backends, choose_backend, evaluate, evaluate_sequential, set_backend, use_backend
from dsf_models.engine.backends import fla, imports
from dsf_models.system import DSFSystem
from dsf_models.transitions import DeltaRule, DSFSystemError
from tests.engine.random_systems import DECAYS, Case, assert_outcomes_match, outcome, random_case
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
    """Return a system whose input gain is the very β of its Λ, as packages ask for."""
    if isinstance(system.transition, DeltaRule):
        return replace(system, input_gain=system.transition.beta)
    return system


def by(backend, mode):
    return lambda system, state: evaluate(sharing(system), mode, state, backend=backend)


def reference(system, state):
    return evaluate_sequential(sharing(system), state)


def assert_translation_matches(case, backend, mode, tolerance=SINGLE, floor=0.0):
    tensors = case.tensors(torch.float32)
    expected = outcome(case, {name: value.double() for name, value in tensors.items()}, reference)
    with torch.set_grad_enabled(True):
        assert_outcomes_match(outcome(case, tensors, by(backend, mode)), expected, tolerance, floor)
