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
    require_floats,
)
from .delta_rule import DeltaRule
from .diagonal import Diagonal
from .discretization import Discretization, Discretized, discretize
from .dplr import DPLR, bilinear_dplr, multiply_pairs
from .elementwise import ElementwiseDecay
from .factored import FactoredDecay
from .hippo import hippo_legs, hippo_legs_eigenvectors, hippo_legs_modes
from .interrupted import Interrupted, interrupt
from .key_diagonal import KeyDiagonal
from .rotation import Rotation, rotate
from .scalar import Identity, ScalarDecay

__all__ = [
    "DPLR",
    "LOG2_E",
    "LOG_ZERO",
    "DSFSystemError",
    "DeltaRule",
    "Diagonal",
    "Discretization",
    "Discretized",
    "ElementwiseDecay",
    "FactoredDecay",
    "Identity",
    "Interrupted",
    "KeyDiagonal",
    "Rotation",
    "ScalarDecay",
    "Transition",
    "beyond",
    "bilinear_dplr",
    "broadcasts",
    "causal_mask",
    "discretize",
    "expand_groups",
    "hippo_legs",
    "hippo_legs_eigenvectors",
    "hippo_legs_modes",
    "interrupt",
    "map_floats",
    "multiply_pairs",
    "nonzero",
    "require_floats",
    "rotate",
]
