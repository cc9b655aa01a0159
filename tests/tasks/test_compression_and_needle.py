"""Compression and needles: rows read back by hand, depths, baselines, golden hashes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, get_task
from dsf_models.tasks.needle import VARIANTS

GOLDEN = {
    get_task("compression"): "5fe9b27aea410898f568009ca10cb33e86e85557eccf435fb69d564235fce904",
    get_task("compression", sequence_length=256, vocab_size=64): (
        "a319f66085797a0cab02316c823db7974dc3d2ded9de881c3e9bd970593e8dab"
    ),
    get_task("needle"): "7f97deacf9a51c8413905a544f9ad772d836073d0ffb34e30836a1fb1ccc917d",
    get_task("needle", variant="multikey", num_needles=4, depth=3): (
        "97b8e521beb2dfcadcfec136c36c88f17cddd717243f3bb8f0b50428146ed593"
    ),
    get_task("needle", variant="multivalue", num_needles=4): (
        "bfac741b7a949929cc39126a8dbd785bba65fa1ac71329d46b4e3013dafc29d1"
    ),
    get_task("needle", variant="multiquery", num_needles=4): (
        "eb2d62eb38e8815dc769d6e3cdb7c34d916dc5478396cfa739ea1304b74c91cc"
    ),
}


@pytest.mark.parametrize("task", GOLDEN, ids=str)
def test_golden_hashes(task):
    assert task.data_hash("train", 0, 8) == GOLDEN[task]


@pytest.mark.parametrize("sizes", [{}, {"vocab_size": 3, "sequence_length": 3}, {"vocab_size": 100}])
def test_compression_asks_the_last_output_for_every_token(sizes):
    task = get_task("compression", **sizes)
    columns = task.generate("train", 0, 0, 2000)
    input_ids, labels = columns["input_ids"], columns["labels"]
    np.testing.assert_array_equal(labels[:, :-1], input_ids[:, :-1])
    assert (labels[:, -1] == IGNORE_INDEX).all()
    assert (input_ids[:, -1] == task.vocab_size - 1).all()
    assert set(np.unique(input_ids[:, :-1])) == set(range(task.vocab_size - 1))
    assert task.groups(input_ids, labels)["gap"][: task.sequence_length].tolist()[:-1] == list(
        range(task.sequence_length - 1, 0, -1)
    )
    assert task.readout == "last"
    assert "the last output, for every t" in task.describe()["labels"]
    shares = [np.bincount(row).max() / len(row) for row in input_ids[:, :-1]]
    assert np.mean(shares) == pytest.approx(task.best_trivial, abs=5 * np.std(shares) / np.sqrt(2000))


@st.composite
def needles(draw):
    variant, m = draw(st.sampled_from(VARIANTS)), draw(st.integers(1, 4))
    count = 1 if variant == "single" else draw(st.integers(2, 5))
    depth = draw(st.integers(-1, 10)) if variant in ("single", "multikey") else -1
    length = 2 * count * (2 + m) + draw(st.integers(20, 60))
    sizes = {"vocab_size": draw(st.integers(24, 40)), "sequence_length": length, "value_tokens": m, "depth": depth}
    return get_task("needle", variant=variant, num_needles=count, **sizes)


def hidden(task, row):
    """The needles of a row without its queries: list of (key, value, tokens of noise before)."""
    noise, found, before, position = task.vocabulary()["noise"][0], [], 0, 0
    while len(found) < task.num_needles or row[position] >= noise:
        if row[position] >= noise:
            before, position = before + 1, position + 1
        else:
            assert row[position] == 0
            found.append((row[position + 1], row[position + 2 : position + 2 + task.value_tokens], before))
            position += 2 + task.value_tokens
    return found, before, row[position:]


@settings(max_examples=40)
@given(task=needles(), seed=st.integers(0, 2**64 - 1))
def test_needles_are_asked_for_by_their_keys(task, seed):
    columns = task.generate("train", seed, 0, 10)
    depths = iter(task.groups(columns["input_ids"], columns["labels"])["depth"].tolist())
    for row, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        found, noise, tail = hidden(task, row)
        keys = [key for key, _, _ in found]
        assert len(set(keys)) == (1 if task.variant in ("single", "multivalue") else task.num_needles)
        queries = [key for key in tail if key in keys]
        asked = found if len(set(keys)) == 1 else [found[keys.index(key)] for key in queries]
        assert len(asked) == (1 if task.variant == "multikey" else task.num_needles)
        full, targets = [], []
        for key, value, before in asked:
            head = [0, key] if not full or task.variant != "multivalue" else []
            full += head + value
            targets += [IGNORE_INDEX] * len(head) + value
            tenths = [next(depths) for _ in value]
            assert all(tenth == int(10 * before / noise + 0.5) for tenth in tenths)
            assert task.depth in (-1, tenths[0])
        assert tail == full[:-1]
        assert labels == [IGNORE_INDEX] * (len(row) - len(tail)) + targets[1:]
    assert next(depths, None) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_best_trivial_of_needles(variant):
    task = get_task("needle", variant=variant, num_needles=1 if variant == "single" else 3, sequence_length=128)
    shares = []
    for row in task.generate("test", 0, 0, 1500)["input_ids"].tolist():
        found = hidden(task, row)[0]
        values = np.array([value for _, value, _ in found])
        bags = values.T if variant in ("multikey", "multiquery") else [values.ravel()]
        shares.append(np.mean([np.bincount(bag).max() / len(bag) for bag in bags]))
    assert np.mean(shares) == pytest.approx(task.best_trivial, abs=5 * np.std(shares) / np.sqrt(1500))


@pytest.mark.parametrize("variant", VARIANTS)
def test_needles_stand_at_every_depth_and_are_asked_for_alike(variant):
    task = get_task("needle", variant=variant, num_needles=1 if variant == "single" else 3, sequence_length=2048)
    columns = task.generate("train", 0, 0, 1500)
    depths = np.bincount(task.groups(columns["input_ids"], columns["labels"])["depth"][::4], minlength=11)
    expected = depths.sum() * np.r_[0.05, [0.1] * 9, 0.05]
    np.testing.assert_allclose(depths, expected, atol=6 * np.sqrt(expected.max()))


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 11},
        {"variant": "multi"},
        {"value_tokens": 0},
        {"num_needles": 2},
        {"num_needles": 1, "variant": "multivalue"},
        {"num_needles": 64, "variant": "multikey"},
        {"depth": 11},
        {"depth": 5, "variant": "multiquery", "num_needles": 2},
        {"sequence_length": 30},
    ],
)
def test_errors_name_the_field(sizes):
    with pytest.raises(ValueError, match=f"needle.{next(iter(sizes))}=.*(give|did you mean multi)"):
        get_task("needle", **sizes)
