"""MQAR: every clause of its definition, its power law, fillers, gaps and baselines, and golden hashes."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, MQAR, get_task
from dsf_models.tasks.laws import choice_law
from dsf_models.tasks.queries import FILLERS, slot_weights

GRID = [(64, 4), (128, 8), (256, 16), (512, 64), (1024, 256)]
GOLDEN = {
    (("sequence_length", 64), ("num_pairs", 4)): "f2b958ef6ad21c4651003c277424925f95474f4d246e580c00687f1b945a6b35",
    (("sequence_length", 128), ("num_pairs", 8)): "074a5152715aeb2bdb2685f392867036f5c123f70c98a2db114f5dec530bd01c",
    (("sequence_length", 256), ("num_pairs", 16)): "95cbd699bfb08a6cc8141bba893825cea8914df0f5886da54d4e538b1250e333",
    (("sequence_length", 512), ("num_pairs", 64)): "56a06bd0fc11703b40d8637ad117db430c03ad72bc0b3499ea8cb2b205c968d7",
    (("sequence_length", 1024), ("num_pairs", 256)): "52930ad7a394b37d1095117ba24c12ab61e244a1c2c584334f5a39d46ce36dbd",
    (("num_passes", 3),): "96d89919112121e98fa727cac7a9d223b4ee75e5f351a821aaec9b475c77a145",
    (("fillers", "random"),): "f72e72df475be63594ba7bf274abdfba86ed34e7efbf8914c0ce1d22a66ea0b6",
    (("fillers", "random_excluding_keys"),): "8e4678267e801cbdd6332382844b276972102a3af8dbf023b802896c274ba5a7",
    (("unique_values", False),): "95cbd699bfb08a6cc8141bba893825cea8914df0f5886da54d4e538b1250e333",
    (
        ("vocab_size", 50),
        ("num_pairs", 20),
        ("power", 1.5),
    ): "aab90cbdc7210e00f9a915d7a934b97fb9d3b9aeea61adac35b7915ea866acf3",
}
BY_EYE = (
    [5, 8, 7, 9, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 7, 0],
    [-100, -100, -100, -100, -100, -100, -100, -100, 8, -100, -100, -100, -100, -100, 9, -100],
)


@st.composite
def tasks(draw) -> MQAR:
    num_pairs, num_passes = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    return MQAR(
        vocab_size=draw(st.integers(2 * num_pairs + 2, 120)),
        sequence_length=2 * num_pairs * (num_passes + 1) + 2 * draw(st.integers(0, 12)),
        num_pairs=num_pairs,
        power=draw(st.sampled_from([0.01, 0.5, 1, 3.0])),
        num_passes=num_passes,
        fillers=draw(st.sampled_from(FILLERS)),
        unique_values=draw(st.booleans()),
    )


def slots_of(task: MQAR, rows: int) -> np.ndarray:
    """The slot of each pair (b, K), read from the gaps."""
    columns = task.generate("train", 0, 0, rows)
    gap = task.groups(**columns)["gap"].reshape(rows, -1)
    scored = np.nonzero(columns["labels"] != IGNORE_INDEX)[1].reshape(rows, -1)
    pair = (scored - gap - 2 * task.num_pairs * (task.num_passes - 1)) // 2
    slot = np.empty_like(pair)
    np.put_along_axis(slot, pair, (scored - 2 * task.num_pairs * task.num_passes) // 2, axis=1)
    return slot


@pytest.mark.parametrize("sizes", GOLDEN, ids=str)
def test_golden_hashes(sizes):
    assert MQAR(**dict(sizes)).data_hash("train", 0, 8) == GOLDEN[sizes]


def test_a_row_by_eye():
    task = MQAR(vocab_size=16, sequence_length=16, num_pairs=2)
    columns = task.generate("train", 0, 0, 1)
    assert columns["input_ids"].tolist() == [BY_EYE[0]]
    assert columns["labels"].tolist() == [BY_EYE[1]]


@given(task=tasks(), seed=st.integers(0, 2**64 - 1), split=st.sampled_from(["train", "validation", "test"]))
def test_rows_follow_the_definition(task, seed, split):
    k, context = task.num_pairs, 2 * task.num_pairs * task.num_passes
    columns = task.generate(split, seed, 0, 20)
    gaps = task.groups(**columns)["gap"].reshape(20, k)
    for input_ids, labels, gap in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), gaps, strict=True):
        keys, values = input_ids[:context:2][:k], input_ids[1:context:2][:k]
        assert (
            input_ids[:context]
            == [token for pair in zip(keys, values, strict=True) for token in pair] * task.num_passes
        )
        assert len(set(keys)) == k
        assert all(1 <= key < task.vocab_size // 2 for key in keys)
        assert all(task.vocab_size // 2 <= value < task.vocab_size for value in values)
        assert not task.unique_values or len(set(values)) == k
        scored = [t for t, label in enumerate(labels) if label != IGNORE_INDEX]
        assert all(t >= context and t % 2 == 0 for t in scored)
        assert sorted(input_ids[t] for t in scored) == sorted(keys)
        assert [labels[t] for t in scored] == [values[keys.index(input_ids[t])] for t in scored]
        nearest = [max(s for s in range(0, context, 2) if input_ids[s] == input_ids[t]) for t in scored]
        assert gap.tolist() == [t - s for t, s in zip(scored, nearest, strict=True)]
        fillers = [token for t, token in enumerate(input_ids) if t >= context and t not in scored]
        assert task.fillers != "zero" or not any(fillers)
        assert task.fillers == "random" or not set(fillers) & set(keys)


@given(task=tasks(), start=st.integers(0, 900))
def test_a_row_does_not_depend_on_its_company(task, start):
    together, alone = task.generate("train", 0, start, start + 40), task.generate("train", 0, start + 17, start + 18)
    for column in together:
        np.testing.assert_array_equal(together[column][17:18], alone[column])


def test_fillers_change_nothing_but_fillers():
    rows = {
        fillers: MQAR(sequence_length=64, num_pairs=4, fillers=fillers).generate("train", 0, 0, 50)
        for fillers in FILLERS
    }
    zero = rows["zero"]
    for columns in rows.values():
        np.testing.assert_array_equal(columns["labels"], zero["labels"])
        held = zero["input_ids"] != 0
        np.testing.assert_array_equal(columns["input_ids"][held], zero["input_ids"][held])


@pytest.mark.parametrize("fillers", ["random", "random_excluding_keys"])
def test_random_fillers_are_uniform_over_what_they_may_be(fillers):
    task = MQAR(vocab_size=20, sequence_length=64, num_pairs=3, fillers=fillers)
    columns = task.generate("train", 0, 0, 4000)
    tail, free = columns["input_ids"][:, 6:], columns["labels"][:, 6:] == IGNORE_INDEX
    is_key = (tail[:, :, None] == columns["input_ids"][:, None, :6:2]).any(axis=2)
    share = (is_key & free).sum() / free.sum()
    expected = 3 / 20 if fillers == "random" else 0
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / free.sum()) + 1e-12
    # Over rows with random keys, the tokens that can never be keys are equally frequent.
    counts = np.bincount(tail[free & ~is_key], minlength=20)[[0, *range(10, 20)]]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 10 + 5 * np.sqrt(20)


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (64, 16), (256, 64)])
def test_ambiguous_rows_are_counted(length, pairs):
    task = MQAR(sequence_length=length, num_pairs=pairs, fillers="random")
    columns = task.generate("train", 0, 0, 5000)
    ambiguous = task.ambiguous_rows(**columns)
    for row in range(100):
        keys = set(columns["input_ids"][row, : 2 * pairs : 2].tolist())
        free = columns["labels"][row] == IGNORE_INDEX
        assert ambiguous[row] == bool(keys & set(columns["input_ids"][row][2 * pairs :][free[2 * pairs :]].tolist()))
    share = task.describe()["expected_ambiguous"]
    assert abs(ambiguous.mean() - share) < 5 * np.sqrt(share * (1 - share) / 5000)


@pytest.mark.parametrize("fillers", ["zero", "random_excluding_keys"])
def test_other_fillers_are_never_ambiguous(fillers):
    task = MQAR(vocab_size=40, sequence_length=64, num_pairs=8, fillers=fillers)
    assert task.describe()["expected_ambiguous"] == 0
    assert not task.ambiguous_rows(**task.generate("train", 0, 0, 500)).any()


@pytest.mark.parametrize("power", [0.01, 1.0, 2.5])
@pytest.mark.parametrize(("length", "pairs", "passes"), [(64, 4, 1), (64, 16, 1), (60, 3, 2), (256, 16, 1)])
def test_slots_follow_weighted_sampling_without_replacement(length, pairs, passes, power):
    """Chi-square of slot by pair against the exact law, which test_task_sampling checks by enumeration."""
    task = MQAR(sequence_length=length, num_pairs=pairs, num_passes=passes, power=power)
    rows = 20_000
    slots = slots_of(task, rows)
    law = choice_law(np.arange(1.0, length // 2 - pairs * passes + 1) ** (power - 1), pairs)
    for pair, probability in enumerate(law):
        expected = rows * probability
        counts = np.bincount(slots[:, pair], minlength=len(probability))
        common = expected > 5
        chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
        freedom = common.sum() - 1
        assert chi_square < freedom + 5 * np.sqrt(2 * freedom)
        assert abs((counts - expected)[~common].sum()) <= 5 * np.sqrt(expected[~common].sum() + 1)


def test_slot_weights_are_the_power_law():
    np.testing.assert_allclose(slot_weights(200, 0.01), np.arange(1.0, 201.0) ** -0.99, rtol=1e-15)
    np.testing.assert_array_equal(slot_weights(5, 1), 1)


def accuracy(task: MQAR, answers: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy of the answers (b, t) at the scored positions, and five standard errors over rows."""
    scored = labels != IGNORE_INDEX
    per_row = ((answers == labels) & scored).sum(axis=1) / task.num_pairs
    return per_row.mean(), 5 * per_row.std() / np.sqrt(len(labels))


def answers_by_position(task: MQAR, learn: dict, apply: dict) -> np.ndarray:
    """Learn from one split which pair is asked most often at each position, answer another with that pair's value."""
    context = 2 * task.num_pairs * task.num_passes
    keys, values = (columns := learn["input_ids"])[:, 0:context:2], apply["input_ids"][:, 1:context:2]
    scored = learn["labels"] != IGNORE_INDEX
    asked = [((columns == keys[:, pair : pair + 1]) & scored).sum(axis=0) for pair in range(task.num_pairs)]
    return values[:, np.argmax(asked, axis=0)]


@pytest.mark.parametrize(
    "sizes",
    [
        {"sequence_length": 64, "num_pairs": 4},
        {"sequence_length": 64, "num_pairs": 16},
        {"sequence_length": 128, "num_pairs": 8, "num_passes": 2},
        {"sequence_length": 64, "num_pairs": 4, "power": 1.0},
        {"sequence_length": 64, "num_pairs": 4, "vocab_size": 40, "unique_values": False},
    ],
    ids=str,
)
def test_best_trivial_is_reached_by_position_alone(sizes):
    task = MQAR(**sizes)
    apply = task.generate("validation", 0, 0, 20_000)
    answers = answers_by_position(task, task.generate("train", 0, 0, 40_000), apply)
    reached, error = accuracy(task, answers, apply["labels"])
    assert reached == pytest.approx(task.best_trivial, abs=error)


def test_best_trivial_with_few_repeated_values_is_the_most_frequent_value():
    task = MQAR(vocab_size=34, sequence_length=64, num_pairs=16, unique_values=False, power=1)
    columns = task.generate("validation", 0, 0, 20_000)
    counts = (columns["input_ids"][:, 1:32:2, None] == np.arange(34)).sum(axis=1)
    reached, error = accuracy(task, counts.argmax(axis=1)[:, None], columns["labels"])
    assert reached == pytest.approx(task.best_trivial, abs=error)
    assert task.best_trivial > 2 / task.num_pairs


@pytest.mark.parametrize(("length", "pairs"), GRID)
def test_best_trivial_exceeds_guessing_a_value_seen(length, pairs):
    task = MQAR(sequence_length=length, num_pairs=pairs)
    assert task.chance == 1 / 4096
    assert 1 / pairs < task.best_trivial < 3 / pairs
    assert replace(task, power=1.0).best_trivial == pytest.approx(1 / pairs, abs=1e-5)


def test_any_one_value_seen_is_right_once_a_row():
    task = MQAR(sequence_length=64, num_pairs=4)
    columns = task.generate("validation", 0, 0, 1000)
    for pair in range(4):
        reached, _ = accuracy(task, columns["input_ids"][:, 2 * pair + 1, None], columns["labels"])
        assert reached == 1 / 4


def test_vocabulary_is_described():
    assert MQAR().vocabulary() == {"filler": 0, "keys": [1, 4095], "values": [4096, 8191]}
    assert MQAR(vocab_size=101, num_pairs=4, fillers="random").vocabulary() == {
        "filler": [0, 100],
        "keys": [1, 49],
        "values": [50, 100],
    }


def test_every_size_changes_the_rows():
    task = MQAR(vocab_size=40, sequence_length=64, num_pairs=4)
    others = {
        "vocab_size": 100,
        "sequence_length": 66,
        "num_pairs": 5,
        "power": 1.0,
        "num_passes": 2,
        "fillers": "random",
        "unique_values": False,
    }
    assert others.keys() == {field.name for field in fields(task)}
    changed = [replace(task, **{name: value}).data_hash("train", 0, 8) for name, value in others.items()]
    assert len({task.data_hash("train", 0, 8), *changed}) == 1 + len(others)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"vocab_size": 3}, ("mqar.vocab_size=3", "at least 4")),
        ({"vocab_size": 32}, ("mqar.num_pairs=16", "vocab_size=32", "a vocab_size of at least 34")),
        ({"sequence_length": 255}, ("mqar.sequence_length=255", "even")),
        ({"num_pairs": 0}, ("mqar.num_pairs=0", "at least 1")),
        ({"num_pairs": 65}, ("mqar.num_pairs=65", "at most 64 pairs", "at least 260")),
        ({"num_pairs": 16.0}, ("mqar.num_pairs=16.0", "give int, not float")),
        ({"num_pairs": True}, ("mqar.num_pairs=True", "give int, not bool")),
        ({"num_passes": 0}, ("mqar.num_passes=0", "at least 1")),
        ({"num_passes": 8}, ("mqar.num_pairs=16", "at most 14 pairs", "at least 288")),
        ({"power": 0.0}, ("mqar.power=0.0", "(0, 10]")),
        ({"power": float("nan")}, ("mqar.power=nan", "(0, 10]")),
        ({"power": "0.01"}, ("mqar.power='0.01'", "give float, not str")),
        ({"fillers": "rand"}, ("mqar.fillers='rand'", "did you mean random?", "zero, random")),
        ({"unique_values": 1}, ("mqar.unique_values=1", "give bool, not int")),
        ({"num_pair": 4}, ("mqar.num_pair=4", "did you mean num_pairs")),
    ],
    ids=str,
)
def test_errors_name_field_value_and_remedy(sizes, parts):
    with pytest.raises(ValueError, match="mqar") as error:
        get_task("mqar", **sizes)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("boundary", [{"num_pairs": 64}, {"vocab_size": 34}, {"vocab_size": 4, "num_pairs": 1}])
def test_sizes_at_the_boundary_are_accepted(boundary):
    task = MQAR(**boundary)
    assert task.generate("train", 0, 0, 3)["labels"].max() < task.vocab_size


def test_groups_refuse_rows_of_another_size():
    with pytest.raises(ValueError, match=r"labels\.shape=\(3, 64\): give whole rows of MQAR"):
        MQAR().groups(**MQAR(sequence_length=64, num_pairs=4).generate("train", 0, 0, 3))
