"""Modular arithmetic with brackets against Python's own reader, its exact law and golden hashes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, get_task
from dsf_models.tasks.counter_rng import RowRandom
from dsf_models.tasks.modular_arithmetic_brackets import (
    ModularArithmeticBrackets,
    completions,
    draw_expressions,
    expression_law,
)

GOLDEN = {
    (): "dac092683f031f8f8ee55d6cffecc51cb816ec6b46b3f98f838d4355c35bb54d",
    (("every_position", True),): "2fa27bd02cd3f65a4f6fc4f54940a8aa0ea45cb9702758937d0968596868660a",
    (
        ("max_depth", 1),
        ("min_symbols", 9),
        ("sequence_length", 9),
    ): "9f6deacd3821bdc5213c179d8eee0b082a45e0bebd5f0fe5babc51192e047163",
}
SYMBOLS = "01234+-*()"


def value(text):
    """Return the value modulo 5 by Python's own reader, or -100 where the text is no expression."""
    try:
        return eval(text) % 5
    except SyntaxError:
        return IGNORE_INDEX


def most_open(text):
    return max(text[:n].count("(") - text[:n].count(")") for n in range(1, len(text) + 1))


def text_of(row):
    return "".join(SYMBOLS[token] for token in row if token < len(SYMBOLS))


@pytest.mark.parametrize("sizes", GOLDEN, ids=str)
def test_golden_hashes(sizes):
    assert ModularArithmeticBrackets(**dict(sizes)).data_hash("train", 0, 8) == GOLDEN[sizes]


@settings(max_examples=25)
@given(
    least=st.integers(0, 6).map(lambda half: 2 * half + 1),
    more=st.integers(0, 15),
    depth=st.integers(1, 4),
    every=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_rows_follow_the_definition(least, more, depth, every, seed):
    task = ModularArithmeticBrackets(
        min_symbols=least, sequence_length=least + more, max_depth=depth, every_position=every
    )
    columns, prefixes = task.generate("train", seed, 0, 8), []
    for row, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        text = text_of(row)
        assert least <= len(text) <= least + more
        assert most_open(text) <= depth
        assert (row[len(text) :] == task.pad_token_id).all()
        expected = np.full(len(row), IGNORE_INDEX)
        for n in range(1 if every else len(text), len(text) + 1):
            expected[n - 1] = value(text[:n])
        np.testing.assert_array_equal(labels, expected)
        prefixes += [text[: t + 1] for t in np.flatnonzero(labels != IGNORE_INDEX)]
    facets = task.groups(columns["input_ids"], columns["labels"])
    assert facets["length"].tolist() == [len(text) for text in prefixes]
    assert facets["depth"].tolist() == [most_open(text) for text in prefixes]


def expressions(length, depth):
    """Return all expressions as text, by their last factor."""
    factors = {n: ([*"01234"] if n == 1 else []) for n in range(1, length + 1)}
    if depth:
        factors |= {n + 2: [f"({text})" for text in expressions(n, depth - 1)] for n in range(1, length - 1)}
    joined = [
        left + operator + right
        for n in range(1, length - 1)
        for right in factors[n]
        for left in expressions(length - n - 1, depth)
        for operator in "+-*"
    ]
    return factors[length] + joined


@pytest.mark.parametrize(("length", "depth"), [(1, 0), (3, 1), (4, 2), (5, 0), (5, 2), (7, 1)])
def test_law_is_that_of_all_expressions(length, depth):
    texts, counts = expressions(length, depth), np.zeros((6, 5))
    for text in texts:
        counts["01234)".index(text[-1]), value(text)] += 1
    np.testing.assert_array_equal(expression_law(length, depth)[-1] * 4**length, counts)
    assert completions(length, depth)[1][0, length] * 4**length == len(texts)


def test_expressions_of_a_length_are_equally_likely():
    drawn = draw_expressions(RowRandom(0, "", np.arange(20_000, dtype=np.uint64)), np.full(20_000, 5), 5, 2)
    counts, every = Counter(map(text_of, drawn)), expressions(5, 2)
    assert counts.keys() <= set(every)
    # Chi-square over its degrees of freedom, more than a thousand, strays by about 0.04.
    expected = 20_000 / len(every)
    assert np.mean([(counts[text] - expected) ** 2 / expected for text in every]) == pytest.approx(1, abs=0.2)


def test_lengths_are_uniform():
    task = ModularArithmeticBrackets(min_symbols=5, sequence_length=10)
    lengths = task.generate("train", 0, 0, 6000)["attention_mask"].sum(axis=1)
    counts = np.bincount(lengths, minlength=11)
    assert counts.nonzero()[0].tolist() == [5, 7, 9]
    assert counts[[5, 7, 9]] == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("every", [False, True])
def test_best_trivial_is_that_of_the_best_memoryless_rule(every):
    """Learned on one half of the rows, a table of the position and the symbol scores what the law says on the other."""
    task = ModularArithmeticBrackets(min_symbols=3, sequence_length=8, every_position=every)
    columns = task.generate("train", 0, 0, 80_000)
    row, position = np.nonzero(columns["labels"] != IGNORE_INDEX)
    symbol, answer, first = columns["input_ids"][row, position], columns["labels"][row, position], row < 40_000
    counts = np.zeros((8, task.vocab_size, 5))
    np.add.at(counts, (position[first], symbol[first], answer[first]), 1)
    right = counts.argmax(axis=2)[position, symbol] == answer
    assert right[~first].mean() == pytest.approx(task.best_trivial, abs=0.01)


def test_long_expressions_stay_in_range():
    task = ModularArithmeticBrackets(max_depth=2, min_symbols=2047, sequence_length=2048)
    columns = task.generate("train", 0, 0, 2)
    for row, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        assert labels[2046] == value(text_of(row))
    assert 0.2 <= task.best_trivial < 0.25


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ({"min_symbols": 4}, "min_symbols=4: expressions have an odd number"),
        ({"min_symbols": 41}, "min_symbols=41: give 1 to 40"),
        ({"max_depth": 0}, "max_depth=0: give 1 to 64; modular_arithmetic has no brackets"),
        ({"sequence_length": 2049}, "sequence_length=2049: give 1 to 2048"),
        ({"vocab_size": 10}, "vocab_size=10: give at least 11"),
    ],
)
def test_sizes_that_no_expression_has_are_refused(sizes, part):
    with pytest.raises(ValueError, match=f"modular_arithmetic_brackets.{part}"):
        get_task("modular_arithmetic_brackets", **sizes)
