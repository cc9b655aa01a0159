"""Structures of Λ, one file each: how a step acts on the state, its eigenvalues, and its products over time."""

from .base import (
    LOG2_E,
    LOG_ZERO,
    DSFSystemError,
    Transition,
    beyond,
    broadcasts,
    causal_mask,
    expand_groups,
    map_floats,
    nonzero,
)
from .factored import FactoredDecay
from .scalar import Identity, ScalarDecay

__all__ = [
    "LOG2_E",
    "LOG_ZERO",
    "DSFSystemError",
    "FactoredDecay",
    "Identity",
    "ScalarDecay",
    "Transition",
    "beyond",
    "broadcasts",
    "causal_mask",
    "expand_groups",
    "map_floats",
    "nonzero",
]
