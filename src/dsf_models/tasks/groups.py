"""Finite groups as multiplication tables: table[a, b] = a b. Element 0 is the identity.

A permutation p of m points is the tuple of its images, and (p q)(x) = p(q(x)): the right factor acts first.

Letters: g elements of a group, m points.
"""

from collections.abc import Callable
from functools import cache
from itertools import permutations
from types import MappingProxyType

import numpy as np

from dsf_models.tasks.counter_rng import Ints


def permutations_of(points: int, even: bool) -> Ints:
    """All permutations of m points, or the even ones, in lexicographic order: (g, m)."""
    every = np.array(list(permutations(range(points))), np.int64)
    first, second = np.triu_indices(points, 1)
    inversions = (every[:, first] > every[:, second]).sum(axis=1)
    return every[inversions % 2 == 0] if even else every


def table_of_permutations(elements: Ints) -> Ints:
    """The table of a set of permutations (g, m) that is closed under composition, sorted lexicographically: (g, g)."""
    weights = elements.shape[1] ** np.arange(elements.shape[1])[::-1]
    # composed[a, b, x] = elements[a, elements[b, x]]
    composed = elements[:, elements]
    return np.searchsorted(elements @ weights, composed @ weights)


def table_of_cycle(order: int) -> Ints:
    """The table of the cyclic group, addition modulo `order`: (g, g)."""
    elements = np.arange(order)
    return (elements[:, None] + elements) % order


def table_of_product(first: Ints, second: Ints) -> Ints:
    """The table of the direct product of two groups; element (a, b) has number a len(second) + b."""
    size = len(first) * len(second)
    return (first[:, None, :, None] * len(second) + second[None, :, None, :]).reshape(size, size)


PERMUTATION_GROUPS = MappingProxyType({"S3": (3, False), "S4": (4, False), "S5": (5, False), "A5": (5, True)})
"""Groups given as permutations: number of points, and whether only even permutations belong."""

_TABLES: MappingProxyType[str, Callable[[], Ints]] = MappingProxyType(
    {
        **{
            name: lambda arguments=arguments: table_of_permutations(permutations_of(*arguments))
            for name, arguments in PERMUTATION_GROUPS.items()
        },
        "A4xZ5": lambda: table_of_product(table_of_permutations(permutations_of(4, True)), table_of_cycle(5)),
        "Z60": lambda: table_of_cycle(60),
    }
)
GROUPS = tuple(_TABLES)
"""Names of the groups. S5 and A5 are not solvable."""


@cache
def group_table(name: str) -> Ints:
    """The multiplication table of one of `GROUPS`, read-only (g, g)."""
    table = _TABLES[name]()
    table.flags.writeable = False
    return table


def points_moved(name: str) -> Ints:
    """How many points each element of a permutation group moves: (g,)."""
    elements = permutations_of(*PERMUTATION_GROUPS[name])
    return (elements != np.arange(elements.shape[1])).sum(axis=1)
