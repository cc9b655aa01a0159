"""In-context recall, plain, noisy and fuzzy: rows read back by hand, targets, baselines, golden hashes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, SPLITS, get_task
from dsf_models.tasks.counter_rng import RowRandom
from dsf_models.tasks.in_context_recall import distinct_tuples, occurrences

GOLDEN = {
    ("in_context_recall", "answers"): "9880773b5dc1cb24b116cfd020e80731bc3e4e66a348c5507074d6af43266157",
    ("in_context_recall", "all"): "25d46ee59d39febadea6ad232fb245b0e9e6a004f157062fd5f4e5dc7c893740",
    ("noisy_recall", "answers"): "94f0b5d75dfd26de7fa34fece1774564c1232db680d52b46fd16cd2a474c4f36",
    ("fuzzy_recall", "answers"): "8eec6815364ea481dd301e16c24545f1b2b926036f1914aaa93d0840287de06d",
    ("fuzzy_recall", "all"): "5dbff2370e04620253bc383711f56c46560b0e8ab53604df62ef5b9c53372af2",
}


@st.composite
def tasks(draw):
    name = draw(st.sampled_from(["in_context_recall", "noisy_recall", "fuzzy_recall"]))
    pairs, vocab_size = draw(st.integers(2, 30)), draw(st.integers(4, 20))
    if name == "in_context_recall":
        return get_task(name, vocab_size=vocab_size, sequence_length=2 * pairs)
    if name == "noisy_recall":
        rate, noise = draw(st.sampled_from([0.2, 0.8])), draw(st.integers(1, 5))
        return get_task(
            name, vocab_size=vocab_size + noise, sequence_length=2 * pairs, num_noise=noise, noise_rate=rate
        )
    most = draw(st.integers(1, min(4, vocab_size // 2)))
    return get_task(name, vocab_size=vocab_size + 1, sequence_length=4 * most + pairs, max_tokens=most)


def read(task, row):
    """The pairs of a row, as tuples of (position, token), with the noise and the pads left out."""
    keys = task.vocabulary()["keys"][1]
    values = task.vocabulary()["values"][1]
    pairs, after_value = [], True
    for position, token in enumerate(row):
        if token <= keys and after_value:
            pairs.append(([], []))
        if token <= values:
            pairs[-1][token > keys].append((position, token))
        after_value = token > keys
    return pairs


def tokens(word):
    return tuple(token for _, token in word)


@settings(max_examples=40)
@given(task=tasks(), seed=st.integers(0, 2**64 - 1), split=st.sampled_from(SPLITS))
def test_every_key_keeps_its_value_and_its_repeats_are_scored(task, seed, split):
    columns = task.generate(split, seed, 0, 10)
    gaps = iter(task.groups(columns["input_ids"], columns["labels"])["gap"].tolist())
    for row, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        pairs, known = read(task, row), {}
        assert tokens(pairs[-1][0]) in {tokens(key) for key, _ in pairs[:-1]}
        expected = [IGNORE_INDEX] * len(row)
        for key, value in pairs:
            value_before, place = known.get(tokens(key), (tokens(value), None))
            assert tokens(value) == value_before
            if place is not None:
                for position, token in value:
                    expected[position - 1] = token
                    assert next(gaps) == key[-1][0] - place
            known[tokens(key)] = tokens(value), key[-1][0]
        assert labels == expected
    assert next(gaps, None) is None


@pytest.mark.parametrize("name", ["in_context_recall", "noisy_recall", "fuzzy_recall"])
def test_every_next_token_is_a_target_of_training_alone(name):
    task, answers = get_task(name, train_targets="all"), get_task(name)
    for split in ("validation", "test"):
        assert task.data_hash(split, 0, 20) == answers.data_hash(split, 0, 20)
    columns = task.generate("train", 0, 0, 20)
    input_ids, labels = columns["input_ids"], columns["labels"]
    np.testing.assert_array_equal(input_ids, answers.generate("train", 0, 0, 20)["input_ids"])
    shown = input_ids != (-1 if task.pad_token_id is None else task.pad_token_id)
    np.testing.assert_array_equal(labels[:, :-1], np.where(shown[:, 1:], input_ids[:, 1:], IGNORE_INDEX))
    assert (labels[:, -1] == IGNORE_INDEX).all()
    gaps = task.groups(input_ids, labels)["gap"]
    assert (gaps > 0).sum() == (answers.generate("train", 0, 0, 20)["labels"] != IGNORE_INDEX).sum()


def test_fuzzy_words_are_long_and_different():
    task = get_task("fuzzy_recall")
    lengths = {split: set() for split in SPLITS}
    for split in SPLITS:
        for row in task.generate(split, 0, 0, 100)["input_ids"].tolist():
            for key, value in read(task, row):
                assert len(set(tokens(key))) == len(key)
                assert len(set(tokens(value))) == len(value)
                lengths[split].add((len(key), len(value)))
    both = {(k, v) for k in (1, 2, 3) for v in (1, 2, 3)}
    assert lengths == {"train": both, "validation": {(3, 1), (3, 2), (3, 3)}, "test": {(3, 1), (3, 2), (3, 3)}}


def test_distinct_tuples_are_uniform():
    sample = distinct_tuples(RowRandom(0, "", np.arange(1000, dtype=np.uint64)), "x", 60, 3, 5).reshape(-1, 3)
    _, counts = np.unique(sample, axis=0, return_counts=True)
    assert len(counts) == math.perm(5, 3)
    np.testing.assert_allclose(counts, 1000, atol=6 * math.sqrt(1000))


def test_occurrences():
    first, previous = occurrences(np.array([[7, 5, 7, 7, 5], [1, 2, 3, 4, 5]]))
    assert first.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert previous.tolist() == [[-1, -1, 0, 2, 1], [-1, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("in_context_recall", {"sequence_length": 32}), ("noisy_recall", {"noise_rate": 0.6}), ("fuzzy_recall", {})],
)
def test_best_trivial_is_what_the_rule_that_looks_at_no_key_reaches(name, sizes):
    task = get_task(name, **sizes)
    shares = []
    columns = task.generate("test", 1, 0, 2000)
    for row, labels in zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True):
        known = {}
        for key, value in read(task, row):
            for j, (position, token) in enumerate(value):
                if labels[position - 1] != IGNORE_INDEX:
                    begun = tokens(value)[:j]
                    options = [word[j] for word in known.values() if word[:j] == begun and len(word) > j]
                    shares.append(max(set(options), key=options.count) == token)
            known[tokens(key)] = tokens(value)
    assert np.mean(shares) == pytest.approx(task.best_trivial, abs=0.015)


@pytest.mark.parametrize(("name", "targets"), GOLDEN)
def test_golden_hashes(name, targets):
    assert get_task(name, train_targets=targets).data_hash("train", 0, 8) == GOLDEN[name, targets]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("in_context_recall", {"vocab_size": 3}),
        ("in_context_recall", {"sequence_length": 127}),
        ("in_context_recall", {"train_targets": "al"}),
        ("noisy_recall", {"vocab_size": 19}),
        ("noisy_recall", {"num_noise": 0}),
        ("noisy_recall", {"noise_rate": 1.0}),
        ("fuzzy_recall", {"vocab_size": 4}),
        ("fuzzy_recall", {"max_tokens": 8}),
        ("fuzzy_recall", {"sequence_length": 11}),
    ],
)
def test_errors_name_the_field(name, sizes):
    with pytest.raises(ValueError, match=f"{name}.{next(iter(sizes))}=.*(give|did you mean all)"):
        get_task(name, **sizes)
