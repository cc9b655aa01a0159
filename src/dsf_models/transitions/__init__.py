"""Structures of Λ, one file each: how a step acts on the state, its eigenvalues, and its products over time."""

from .base import (
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
from .elementwise import ElementwiseDecay
from .scalar import Identity, ScalarDecay

__all__ = [
    "LOG_ZERO",
    "DSFSystemError",
    "ElementwiseDecay",
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
