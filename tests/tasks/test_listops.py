"""ListOps: its rule against a recursive reader of the written form, its exact law, its windows and golden hashes."""

from collections import Counter
from itertools import product
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, get_task
from dsf_models.tasks.listops import PAD, SMALL, ListOps, size_and_value_law

GOLDEN = {
    (): "b84d7babfc084e63a6b512de17038d352bb2bd6ffcdfbeb0755a5865e88f03f6",
    tuple(SMALL.items()): "46ab8e520fe15c62d881bc3eaf8b17845f3edf56a74dada9d5d9b087bca814d2",
    (
        ("max_depth", 3),
        ("max_args", 3),
        ("min_size", 4),
        ("max_size", 20),
        ("sequence_length", 24),
    ): "d0ef5fef61fd11f79ac2dc84fe9ff16f98a81e3666c957a2e712663b31cc2328",
}
SYMBOLS = [*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]
RULES = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[SM": lambda values: sum(values) % 10,
}


@st.composite
def tasks(draw) -> ListOps:
    least = draw(st.integers(4, 20))
    sizes = {"max_depth": draw(st.integers(4, 7)), "max_args": draw(st.integers(3, 6)), "min_size": least}
    most = least + draw(st.integers(20, 60))
    return ListOps(**sizes, max_size=most, sequence_length=most + draw(st.integers(0, 9)))


def written(row):
    return " ".join(SYMBOLS[token] for token in row if token != PAD)


def read(text):
    """Return value, depth and most arguments of a written list, by recursion, and check that nothing follows it."""
    symbols = text.split()

    def expression(i):
        if symbols[i] not in RULES:
            return i + 1, int(symbols[i]), 1, 0
        rule, i, arguments = RULES[symbols[i]], i + 1, []
        while symbols[i] != "]":
            i, *argument = expression(i)
            arguments.append(argument)
        values, depths, most = zip(*arguments, strict=True)
        assert len(values) >= 2
        return i + 1, rule(values), 1 + max(depths), max(len(values), *most)

    end, value, depth, most = expression(0)
    assert end == len(symbols)
    return value, depth, most


def check(task, columns):
    facets = task.groups(columns["input_ids"], columns["labels"])
    for row, labels, size, depth in zip(
        columns["input_ids"], columns["labels"], facets["size"], facets["depth"], strict=True
    ):
        value, deepest, most = read(written(row))
        assert task.min_size <= size == len(written(row).split()) <= task.max_size
        assert deepest == depth + 1 <= task.max_depth
        assert most <= task.max_args
        assert (row[size:] == PAD).all()
        assert np.flatnonzero(labels != IGNORE_INDEX).tolist() == [size - 1]
        assert labels[size - 1] == value


@pytest.mark.parametrize("sizes", GOLDEN, ids=lambda sizes: str(len(sizes)))
def test_golden_hashes(sizes):
    assert ListOps(**dict(sizes)).data_hash("train", 0, 8) == GOLDEN[sizes]


def test_a_row_by_eye():
    row = get_task("listops", **SMALL).generate("train", 0, 0, 1)
    assert written(row["input_ids"][0]) == (
        "[SM 5 2 [MAX 7 [MIN 9 5 [MIN 6 1 5 5 ] ] ] [MAX 1 8 [MIN [MIN 3 7 2 0 ] 1 [MED 3 1 5 ] 7 [SM 8 5 7 ] ] ] 0 ]"
    )
    assert row["labels"].max() == 2


@settings(max_examples=25)
@given(task=tasks(), seed=st.integers(0, 2**64 - 1), split=st.sampled_from(["train", "validation", "test"]))
def test_rows_follow_the_definition(task, seed, split):
    check(task, task.generate(split, seed, 0, 20))


def test_rows_of_the_full_size_follow_the_definition():
    check(ListOps(), ListOps().generate("test", 1, 0, 60))


def convolved(max_depth, max_args):
    """Return the exact law of (size, value) of a tree that is an operator, by going through all its arguments."""
    tree = operator = Counter({(1, v): 0.1 for v in range(10)})
    for _ in range(max_depth - 1):
        operator = Counter()
        for number in range(2, max_args + 1):
            for arguments in product(tree.items(), repeat=number):
                states, shares = zip(*arguments, strict=True)
                sizes, values = zip(*states, strict=True)
                share = np.prod(shares) / (4 * (max_args - 1))
                for rule in RULES.values():
                    operator[2 + sum(sizes), rule(values)] += share
        tree = Counter({(1, v): 0.075 for v in range(10)}) + Counter({s: p / 4 for s, p in operator.items()})
    return operator


@pytest.mark.parametrize(("depth", "args", "window"), [(2, 4, (4, 6)), (3, 2, (4, 10)), (3, 2, (6, 7))])
def test_law_is_that_of_all_trees(depth, args, window):
    law = np.zeros(10)
    for (size, value), share in convolved(depth, args).items():
        law[value] += share * (window[0] <= size <= window[1])
    np.testing.assert_allclose(size_and_value_law(depth, args, *window), law, atol=1e-9)


def test_the_law_is_what_lra_has():
    """A kept share of 8.25 % of the trees, 17 % each for 0 and 9, and 7 to 9.2 % for the others."""
    task = ListOps()
    assert task.acceptance == pytest.approx(0.0825, abs=0.001)
    assert task.label_law[[0, 9]] == pytest.approx(0.17, abs=0.003)
    assert task.label_law[1:9].min() > 0.07
    assert task.label_law[1:9].max() < 0.092
    assert task.best_trivial == round(task.label_law[0], 6)
    assert task.label_law.sum() == pytest.approx(1)


@pytest.mark.parametrize(("sizes", "rows"), [({}, 1000), (SMALL, 8000)], ids=["full", "small"])
def test_rows_have_the_law(sizes, rows):
    task = ListOps(**sizes)
    labels = task.generate("train", 0, 0, rows)["labels"]
    counts = np.bincount(labels[labels != IGNORE_INDEX], minlength=10)
    expected = rows * task.label_law
    # Chi-square with 9 degrees of freedom exceeds 28 once in a thousand.
    assert (((counts - expected) ** 2) / expected).sum() < 28


def test_a_row_does_not_depend_on_its_company_or_its_pads():
    whole = ListOps(**SMALL).generate("train", 0, 0, 300)
    alone, longer = ListOps(**SMALL), ListOps(**{**SMALL, "sequence_length": 140})
    np.testing.assert_array_equal(alone.generate("train", 0, 257, 258)["input_ids"], whole["input_ids"][257:258])
    np.testing.assert_array_equal(longer.generate("train", 0, 0, 300)["input_ids"][:, :128], whole["input_ids"])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 15}, "listops.vocab_size=15: give at least 16"),
        ({"max_depth": 1}, "listops.max_depth=1: give 2"),
        ({"max_args": 1}, "listops.max_args=1: give 2"),
        ({"min_size": 3}, "listops.min_size=3: .* at least 4"),
        ({"max_size": 500}, "listops.max_size=500: give at least min_size=501"),
        ({"sequence_length": 1998}, "listops.sequence_length=1998: give at least max_size=1999"),
        ({"max_depth": 3, "max_args": 3}, "listops.min_size=501: a share of .* larger max_depth"),
    ],
)
def test_sizes_that_no_tree_has_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**sizes)
