"""Groups: their axioms, their order of composition, and what tells them apart."""

import numpy as np
import pytest

from dsf_models.tasks.groups import GROUPS, PERMUTATION_GROUPS, group_table, permutations_of, points_moved

ORDERS = {"S3": 6, "S4": 24, "S5": 120, "A5": 60, "A4xZ5": 60, "Z60": 60}
every_group = pytest.mark.parametrize("name", GROUPS)


@every_group
def test_axioms(name):
    table = group_table(name)
    elements = np.arange(ORDERS[name])
    assert table.shape == (len(elements), len(elements))
    np.testing.assert_array_equal(np.sort(table, axis=0), np.broadcast_to(elements[:, None], table.shape))
    np.testing.assert_array_equal(np.sort(table, axis=1), np.broadcast_to(elements, table.shape))
    np.testing.assert_array_equal(table[0], elements)
    np.testing.assert_array_equal(table[:, 0], elements)
    np.testing.assert_array_equal(table[table], table[:, table])


@pytest.mark.parametrize("name", PERMUTATION_GROUPS)
def test_the_right_factor_acts_first(name):
    elements, table = permutations_of(*PERMUTATION_GROUPS[name]), group_table(name)
    for a, b in np.random.default_rng(0).integers(len(table), size=(50, 2)):
        assert elements[table[a, b]].tolist() == [elements[a][elements[b][x]] for x in range(elements.shape[1])]


@every_group
def test_solvable_or_not(name):
    """The derived series ends in the identity unless the group is S5 or A5."""
    table = group_table(name)
    inverse = np.argmin(table, axis=1)
    subgroup = np.arange(len(table))
    while True:
        a, b = subgroup[:, None], subgroup[None, :]
        derived = np.unique(table[table[a, b], table[inverse[a], inverse[b]]])
        while len(closed := np.unique(table[derived[:, None], derived])) > len(derived):
            derived = closed
        if len(derived) == len(subgroup):
            break
        subgroup = derived
    assert (len(subgroup) > 1) == (name in ("S5", "A5"))
    assert (table == table.T).all() == (name == "Z60")


def test_points_moved():
    assert np.bincount(points_moved("S5")).tolist() == [1, 0, 10, 20, 45, 44]
