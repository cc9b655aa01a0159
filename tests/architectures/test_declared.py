"""What an architecture says of itself in the registry is what its systems are."""

import math

import pytest
import torch

from dsf_models import list_architectures
from dsf_models.backbone import get_architecture
from tests.contract import sequences, shared

each = pytest.mark.parametrize("name", [name for name in list_architectures() if get_architecture(name).mixer_class])
"""A hybrid says nothing of itself: its layers have the mixers of others."""


def systems(name, case="bare"):
    ids = torch.stack(sequences((10, 10)))
    return [system for system in shared(name, case).dsf_systems(ids) if system is not None]


@each
@torch.no_grad()
def test_feed_through(name):
    declared, found = get_architecture(name).feed_through, systems(name)
    kind = "none" if not found else "D" if any(getattr(system, "D", None) is not None for system in found) else "0"
    assert declared == kind or (kind == "D" and declared not in ("none", "0")), f"{declared!r}: the systems have {kind}"


@each
@torch.no_grad()
def test_time_invariance_is_that_of_the_transfer_matrix(name):
    """A system is time-invariant if and only if Φ is Toeplitz (and so one matrix for all inputs)."""
    toeplitz = []
    for system in systems(name):
        phi = system.transfer_matrix()
        shifted = (phi[..., 1:, 1:] - phi[..., :-1, :-1]).abs().max()
        toeplitz.append(bool(shifted <= 1e-12 * phi.abs().max()))
    declared = get_architecture(name).time_invariant
    assert declared == (bool(toeplitz) and all(toeplitz)), f"time_invariant={declared}, but Toeplitz: {toeplitz}"


@each
@torch.no_grad()
def test_state_size(name):
    declared, config = get_architecture(name).state_size, shared(name, "bare").config
    letters = {"n": config.state_size, "d": config.inner_size, "h": config.num_heads, "p": config.head_dim}
    letters |= {"C": math.comb, "m": config.state_size, "P": getattr(config, "order", None)}
    value = math.inf if declared == "∞" else eval(declared.replace("·", "*"), {"__builtins__": {}}, letters)
    for system in systems(name):
        assert system.state_size == value, f"state_size={declared!r} is {value}, but N = {system.state_size}"
