"""State tracking: answers against plain Python, supervision, pads, baselines and golden hashes."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, get_task
from dsf_models.tasks.groups import GROUPS, PERMUTATION_GROUPS, group_table, permutations_of

ANSWERS = {
    "parity": lambda tokens: sum(tokens) % 2,
    "even_pairs": lambda tokens: 1 - sum(a != b for a, b in pairwise(tokens)) % 2,
    "cycle_navigation": lambda tokens: sum({5: 0, 6: 1, 7: -1}[token] for token in tokens) % 5,
}
GOLDEN = {
    ("modular_arithmetic", ()): "11902f271f43e7751c865d74774442e1cfbfab8679a76459814a422c61eafd2b",
    (
        "modular_arithmetic",
        (("every_position", True),),
    ): "43181e7ebda0ed251dc6e851e6bb5f970fdff616bd1e84441aa490b4410f8079",
    ("parity", ()): "f6ac4853fd85c246e5f86ab00c1550c90df7dc7a90c682aa7eb78d2ccff6e93e",
    ("parity", (("every_position", True),)): "0b8a628ee94c3eb36bb37927a448da99805eaeef291b12e0c802011136b5c4a7",
    ("even_pairs", ()): "0e1fad1b3f3dab92d7f4dd08976a7c0c2ec36477bfe0ea60df477a83d5d42c1d",
    ("cycle_navigation", ()): "25a3ef107ee20ec46b830c76b32d0eb4f06be9955f142cb6139078d371319e54",
    (
        "cycle_navigation",
        (("every_position", True),),
    ): "a384f277b8555284f2471d5f814cf3ff2f3c72e8dcf072bed2acf38b1a3b960a",
    ("word_problem", ()): "1dca9e500953e3526c3190015fde0d0a56c09abad7346d4d0ba51c91b83ddbb0",
    ("word_problem", (("group", "A5"),)): "b6907da0d211d4096ef3bab4b06808b08461b3573b569e17fd68056e3b8c126c",
    ("word_problem", (("group", "A4xZ5"),)): "58d3e66328729e22f11e760df143025df6387cecbc8ee0f2024010b9425cabbd",
    (
        "word_problem",
        (
            ("steps", "swaps"),
            ("min_symbols", 2),
            ("sequence_length", 32),
            ("tokens_per_element", 4),
            ("vocab_size", 130),
        ),
    ): "51ab948ac3293e8656ce4a3ced12ef7502709c20afb7edeb3f5f2f9b54abf5a0",
}
automata = pytest.mark.parametrize("name", ANSWERS)


@pytest.mark.parametrize(("name", "sizes"), GOLDEN, ids=str)
def test_golden_hashes(name, sizes):
    assert get_task(name, **dict(sizes)).data_hash("train", 0, 8) == GOLDEN[name, sizes]


@automata
@given(least=st.integers(1, 9), more=st.integers(0, 9), every=st.booleans(), seed=st.integers(0, 2**64 - 1))
def test_answers_are_those_of_the_definition(name, least, more, every, seed):
    task = get_task(name, min_symbols=least, sequence_length=least + more, every_position=every)
    columns = task.generate("train", seed, 0, 20)
    for input_ids, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        length = sum(token != task.pad_token_id for token in input_ids)
        assert least <= length <= least + more
        assert set(input_ids[length:]) <= {task.pad_token_id}
        scored = range(length) if every else [length - 1]
        expected = {t: ANSWERS[name](input_ids[: t + 1]) for t in scored}
        assert labels == [expected.get(t, IGNORE_INDEX) for t in range(least + more)]


@given(least=st.integers(1, 9), more=st.integers(0, 9), every=st.booleans(), seed=st.integers(0, 2**64 - 1))
def test_modular_arithmetic_is_that_of_python(least, more, every, seed):
    sizes = {"min_symbols": least, "sequence_length": 2 * (least + more), "every_position": every}
    columns = get_task("modular_arithmetic", **sizes).generate("train", seed, 0, 20)
    for input_ids, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        text = "".join("01234+-*= "[token] for token in input_ids).strip()
        assert text[0] == "="
        scored = range(1, len(text), 2) if every else [len(text) - 1]
        expected = {t: eval(text[1 : t + 1]) % 5 for t in scored}
        assert labels == [expected.get(t, IGNORE_INDEX) for t in range(len(labels))]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("width", [1, 4])
def test_each_element_multiplies_from_the_left(group, width):
    task = (
        get_task(
            "word_problem", group=group, sequence_length=32, min_symbols=8, tokens_per_element=width, vocab_size=130
        )
        if width == 4
        else get_task("word_problem", group=group)
    )
    columns, table = task.generate("train", 0, 0, 20), group_table(group)
    for input_ids, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        product = 0
        for t, token in enumerate(input_ids):
            if t % width == 0:
                product = table[token, product]
            else:
                assert token == len(table)
            assert labels[t] == (product if t % width == width - 1 else IGNORE_INDEX)


@pytest.mark.parametrize("group", PERMUTATION_GROUPS)
def test_a_point_goes_through_the_permutations_as_they_are_read(group):
    elements = permutations_of(*PERMUTATION_GROUPS[group])
    columns = get_task("word_problem", group=group).generate("train", 0, 0, 5)
    for input_ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        for point in range(elements.shape[1]):
            place = point
            for token, label in zip(input_ids, labels, strict=True):
                place = elements[token][place]
                assert elements[label][point] == place


@pytest.mark.parametrize(("steps", "moved"), [("swaps", {0, 2}), ("three", {0, 2, 3})])
def test_steps(steps, moved):
    elements = permutations_of(5, False)
    tokens = get_task("word_problem", steps=steps).generate("train", 0, 0, 100)["input_ids"]
    assert {int((elements[token] != np.arange(5)).sum()) for token in np.unique(tokens)} == moved


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, {"min_symbols": 1, "sequence_length": 6}) for name in ANSWERS),
        ("word_problem", {"group": "S3", "min_symbols": 2, "sequence_length": 4, "steps": "swaps"}),
    ],
    ids=str,
)
def test_best_trivial_is_reached_by_position_and_symbol(name, sizes, every):
    """Learn the most frequent answer at each (position, symbol) from one split, apply it to another."""
    task = get_task(name, **sizes, every_position=every)
    learn, apply = task.generate("train", 0, 0, 40_000), task.generate("validation", 0, 0, 20_000)
    counts = np.zeros((task.sequence_length, task.vocab_size, task.vocab_size), int)
    row, position = np.nonzero(learn["labels"] != IGNORE_INDEX)
    np.add.at(counts, (position, learn["input_ids"][row, position], learn["labels"][row, position]), 1)
    row, position = np.nonzero(apply["labels"] != IGNORE_INDEX)
    guesses = counts.argmax(axis=2)[position, apply["input_ids"][row, position]]
    right = guesses == apply["labels"][row, position]
    # The sampling error of rows bounds that of positions.
    assert right.mean() == pytest.approx(task.best_trivial, abs=5 * 0.5 / np.sqrt(20_000))


def test_without_the_first_answers_nothing_beats_chance():
    for name in ("parity", "even_pairs"):
        assert get_task(name).best_trivial == get_task(name).chance == 0.5
    word_problem = replace(get_task("word_problem"), every_position=False)
    assert word_problem.best_trivial == word_problem.chance == 1 / 120


@pytest.mark.parametrize(
    ("name", "sizes", "part"),
    [
        ("parity", {"min_symbols": 41}, "parity.min_symbols=41: give 1 to 40"),
        ("parity", {"vocab_size": 2}, "parity.vocab_size=2: give at least 3"),
        ("word_problem", {"group": "S6"}, "word_problem.group='S6': unknown"),
        ("word_problem", {"steps": "swap"}, "did you mean swaps"),
        ("word_problem", {"group": "Z60", "steps": "swaps"}, "word_problem.steps='swaps': Z60"),
        ("word_problem", {"group": "A5", "steps": "swaps"}, "word_problem.steps='swaps': only the identity of A5"),
        ("word_problem", {"tokens_per_element": 5}, "word_problem.tokens_per_element=5: give a divisor"),
        ("word_problem", {"vocab_size": 119}, "word_problem.vocab_size=119: give at least 120"),
    ],
)
def test_errors_name_field_value_and_remedy(name, sizes, part):
    with pytest.raises(ValueError, match="=") as error:
        get_task(name, **sizes)
    assert part in str(error.value)
