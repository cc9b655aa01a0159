"""The recall and copying tasks beside MQAR: their definitions, facets, baselines, errors and golden hashes."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsf_models.tasks import IGNORE_INDEX, get_task
from dsf_models.tasks.laws import distinct_law, expected_share
from dsf_models.tasks.queries import FILLERS

ROWS = 20_000
SMALL = {
    "mqar_update": {"vocab_size": 60, "sequence_length": 64, "num_pairs": 5, "num_updates": 7},
    "selective_copying": {"vocab_size": 8, "sequence_length": 40, "num_tokens": 6},
    "induction_heads": {"vocab_size": 6, "sequence_length": 24},
    "associative_recall": {"vocab_size": 12, "sequence_length": 11},
    "input_copying": {"vocab_size": 9, "sequence_length": 20, "min_length": 5, "max_length": 8},
}
GOLDEN = {
    ("mqar_update", ()): "41efd09bc4cca3ec3d648d8a11163fb99a0939ed943b85ea4cf6ecd05ea2e76f",
    (
        "mqar_update",
        (("sequence_length", 512), ("num_updates", 64)),
    ): "913002ca02ab840c28914eacc019ab49979d504c87389dee25b013bea26a9d02",
    ("selective_copying", ()): "1924c512cc3c426830dc98ea7a31272fe05e1a080c72580b8ed1a3e137db2296",
    (
        "selective_copying",
        (("sequence_length", 4112), ("form", "mamba")),
    ): "38485c7049e5115dfaf5d7fb99d088ae40be2dc7671dd82c6717e3a4af07a57e",
    ("induction_heads", ()): "722e869d89c940f3f4926e404a8bd1348ac86cf6bbe7c84e1a262dfae0675ff5",
    (
        "induction_heads",
        (("sequence_length", 16384),),
    ): "9bab93d52dc8ba1eeb77f689578bb8b68025200898247bc4c6ab138aef6b69ab",
    ("associative_recall", ()): "3ee6e16af53fe82a9608a31fcaceda392e2f50ea5325588a8e802443e6a1ab94",
    (
        "associative_recall",
        (("vocab_size", 32), ("sequence_length", 9), ("query_first", True)),
    ): "a9f41f9e3f8b05acea7e3da04b16c4687b0b3cd8997551accb75f35c01c0882c",
    (
        "associative_recall",
        (("vocab_size", 30), ("sequence_length", 1001), ("distinct_keys", False)),
    ): "c1296966e8183011072a917c946612d9b6a37d0f1099b883a43cfba4bd5cee92",
    ("input_copying", ()): "3cd64914a7699039545552f8c1b5091ac3aeda73d89818b7d20172e499aca3f4",
    ("input_copying", (("form", "duplicate"),)): "f31db8bc917cf9059d366f6458ba1c91b60dace24e22bc35aa73d1bb69893412",
    (
        "input_copying",
        (("form", "prefix"), ("answer_length", 3)),
    ): "267912d160763416592a3a4a3516804ca6196323e15cbc3ea640c5e5328c374c",
    ("input_copying", (("form", "suffix"),)): "652a42cbb74d4acf1c6849024da4e7a7be397987c32c027dbd60b6ef52996a49",
    (
        "input_copying",
        (("vocab_size", 20), ("sequence_length", 16), ("min_length", 3), ("max_length", 8), ("delimiters", False)),
    ): "12fe95fe4d2b123877d0414ecc61144cf926a049e5d3fa7ae8553e045d342460",
}


def examples(name, rows=50, seed=0, **sizes):
    task = get_task(name, **SMALL[name] | sizes)
    columns = task.generate("train", seed, 0, rows)
    return task, columns, columns["input_ids"].tolist(), columns["labels"].tolist()


def scored(labels):
    return [t for t, label in enumerate(labels) if label != IGNORE_INDEX]


@pytest.mark.parametrize(("name", "sizes"), GOLDEN, ids=str)
def test_golden_hashes(name, sizes):
    assert get_task(name, **dict(sizes)).data_hash("train", 0, 8) == GOLDEN[name, sizes]


@given(seed=st.integers(0, 2**64 - 1), updates=st.integers(0, 12), fillers=st.sampled_from(FILLERS))
@settings(max_examples=30)
def test_the_last_value_counts(seed, updates, fillers):
    task, columns, inputs, labels = examples("mqar_update", seed=seed, num_updates=updates, fillers=fillers)
    context, facets = 2 * (5 + updates), []
    for row, label in zip(inputs, labels, strict=True):
        writes = list(zip(row[:context:2], row[1:context:2], strict=True))
        assert len({key for key, _ in writes[:5]}) == len({key for key, _ in writes}) == 5
        assert len({value for _, value in writes}) == 5 + updates
        assert sorted(row[t] for t in scored(label)) == sorted(key for key, _ in writes[:5])
        for t in scored(label):
            times = [i for i, (key, _) in enumerate(writes) if key == row[t]]
            assert label[t] == writes[times[-1]][1]
            facets.append((t - 2 * times[-1], len(times) - 1))
    groups = task.groups(columns["input_ids"], columns["labels"])
    assert facets == list(zip(groups["gap"].tolist(), groups["overwrites"].tolist(), strict=True))
    assert fillers == "random" or not task.ambiguous_rows(columns["input_ids"], columns["labels"]).any()


def test_a_memory_that_never_updates_is_as_good_as_it_says():
    task, columns, *_ = examples("mqar_update", ROWS)
    kept = (task.groups(columns["input_ids"], columns["labels"])["overwrites"] == 0).mean()
    assert kept == pytest.approx(task.describe()["never_updating"], abs=0.01)


@given(seed=st.integers(0, 2**64 - 1), form=st.sampled_from(["mad", "mamba"]), tokens=st.integers(2, 19))
@settings(max_examples=30)
def test_content_is_copied_in_order(seed, form, tokens):
    task, columns, inputs, labels = examples("selective_copying", seed=seed, form=form, num_tokens=tokens)
    groups = task.groups(columns["input_ids"], columns["labels"])
    gap = groups["gap"].reshape(-1, tokens)
    for row, label, gaps in zip(inputs, labels, gap.tolist(), strict=True):
        tail = [7] * tokens if form == "mamba" else [7] + [0] * tokens
        body = row[: -len(tail)]
        assert row[-len(tail) :] == tail
        places = [t for t, token in enumerate(body) if token]
        assert label == [IGNORE_INDEX] * (40 - tokens) + [body[t] for t in places]
        assert 7 not in body
        assert len(places) == tokens
        assert gaps == [40 - tokens + i - t for i, t in enumerate(places)]


def test_content_may_stand_last():
    """MAD's generator never puts a blank behind the last token, and so never leaves the end of the body blank."""
    _, columns, *_ = examples("selective_copying", ROWS)
    shares = (columns["input_ids"][:, :33] > 0).mean(axis=0)
    np.testing.assert_allclose(shares, 6 / 33, atol=5 * np.sqrt(6 / 33 / ROWS))


@given(seed=st.integers(0, 2**64 - 1), length=st.integers(4, 60))
@settings(max_examples=30)
def test_the_token_after_the_special_one_is_the_answer(seed, length):
    task, columns, inputs, labels = examples("induction_heads", seed=seed, sequence_length=length)
    gaps = task.groups(columns["input_ids"], columns["labels"])["gap"].tolist()
    for row, label, gap in zip(inputs, labels, gaps, strict=True):
        assert [t for t, token in enumerate(row) if token == 0] == [length - 1 - gap, length - 1]
        assert label == [IGNORE_INDEX] * (length - 1) + [row[length - gap]]


def test_a_row_of_a_million_tokens():
    task = get_task("induction_heads", sequence_length=2**20)
    tracemalloc.start()
    columns = task.generate("test", 0, 0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (special, _), row = np.flatnonzero(columns["input_ids"][0] == 0), columns["input_ids"][0]
    assert columns["labels"][0, -1] == row[special + 1]
    assert peak < 2**20 * 150
    assert 1 / 15 < task.best_trivial < 0.0672


@given(
    seed=st.integers(0, 2**64 - 1), first=st.booleans(), sizes=st.sampled_from([(11, True), (11, False), (61, False)])
)
@settings(max_examples=30)
def test_the_queried_key_has_its_value(seed, first, sizes):
    length, distinct_keys = sizes
    task, columns, inputs, labels = examples(
        "associative_recall", seed=seed, sequence_length=length, distinct_keys=distinct_keys, query_first=first
    )
    gaps = task.groups(columns["input_ids"], columns["labels"])["gap"].tolist()
    for row, label, gap in zip(inputs, labels, gaps, strict=True):
        query, pairs = (row[0], row[1:]) if first else (row[-1], row[:-1])
        keys, values = pairs[::2], pairs[1::2]
        assert not distinct_keys or len(set(keys)) == len(keys)
        assert len(set(zip(keys, values, strict=True))) == len(set(keys))
        assert label == [IGNORE_INDEX] * (length - 1) + [dict(zip(keys, values, strict=True))[query]]
        assert gap == length - 1 - max(t for t in range(int(first), length - 1 + first, 2) if row[t] == query)


@given(
    seed=st.integers(0, 2**64 - 1),
    form=st.sampled_from(["copy", "duplicate", "prefix", "suffix"]),
    n=st.integers(1, 2),
    k=st.integers(1, 3),
    delimiters=st.booleans(),
)
@settings(max_examples=60)
def test_strings_are_copied_or_looked_up(seed, form, n, k, delimiters):
    task, columns, inputs, labels = examples(
        "input_copying", seed=seed, form=form, ngram=n, answer_length=k, delimiters=delimiters
    )
    lengths = iter(task.groups(columns["input_ids"], columns["labels"])["length"].tolist())
    for row, label in zip(inputs, labels, strict=True):
        at = scored(label)
        whole = [token for token in row if token] + [label[at[-1]]]
        assert label[at[0] : at[-1] + 1] == whole[at[0] + 1 :]
        assert not delimiters or (whole[0], whole[-1]) == (1, 3)
        parts = "".join(map(chr, whole[delimiters : len(whole) - delimiters])).split(chr(2))
        w = parts[form == "prefix"]
        assert {next(lengths) for _ in at} == {len(w)}
        assert 5 <= len(w) <= 8
        if form in ("copy", "duplicate"):
            assert parts == [w, w]
            assert len(at) == len(w) + delimiters
            assert form == "copy" or any(w[i : i + n] in w[i + n :] for i in range(len(w)))
        else:
            gram, answer = (parts[0], parts[2]) if form == "prefix" else (parts[1][:n], parts[1][n:])
            assert (len(gram), len(answer)) == (n, k)
            assert [i for i in range(len(w)) if w[i : i + n] == gram] == [w.index(gram)]
            assert w[w.index(gram) + n :][:k] == answer
            assert len(at) == k + delimiters


def test_copying_of_one_length_has_no_pads():
    task = get_task("input_copying", min_length=50)
    assert task.pad_token_id is None
    assert "attention_mask" not in task.generate("train", 0, 0, 3)


def most_frequent(tokens, bins):
    """The most frequent of the tokens of each row (b, m)."""
    return (tokens[:, :, None] == np.arange(bins)).sum(axis=1).argmax(axis=1)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("selective_copying", {}),
        ("selective_copying", {"form": "mamba", "num_tokens": 3}),
        ("induction_heads", {}),
        ("associative_recall", {}),
        ("associative_recall", {"sequence_length": 61, "distinct_keys": False, "query_first": True}),
    ],
    ids=str,
)
def test_the_most_frequent_candidate_reaches_best_trivial(name, sizes):
    task, columns, *_ = examples(name, ROWS, **sizes)
    inputs, labels = columns["input_ids"], columns["labels"]
    if name == "associative_recall":
        pairs = inputs[:, 1:] if task.query_first else inputs[:, :-1]
        value = np.zeros((ROWS, 6), int)
        np.put_along_axis(value, pairs[:, ::2], pairs[:, 1::2], axis=1)
        candidates = value
    else:
        candidates = np.where(np.isin(inputs, (0, task.vocab_size - 1 if "copy" in name else 0)), -1, inputs)
    right = (most_frequent(np.where(candidates > 0, candidates, -1), task.vocab_size)[:, None] == labels).sum(axis=1)
    asked = (labels != IGNORE_INDEX).sum(axis=1)
    error = 5 * (right / asked).std() / np.sqrt(ROWS)
    assert right.sum() / asked.sum() == pytest.approx(task.best_trivial, abs=error)


@pytest.mark.parametrize(
    "sizes", [{}, {"delimiters": False}, {"form": "suffix", "ngram": 1, "answer_length": 2}], ids=str
)
def test_the_most_frequent_letter_left_reaches_best_trivial_of_copying(sizes):
    rows = 3000
    task, _, inputs, labels = examples("input_copying", rows, vocab_size=8, **sizes)
    right = []
    for row, label in zip(inputs, labels, strict=True):
        bar = row.index(2)
        left, hits = row[int(task.delimiters) : bar], []
        for t in range(bar + 1, scored(label)[0] + 1):
            left.remove(row[t])  # the n-gram
        for t in scored(label):
            guess = 3 if label[t] == 3 else max(sorted(set(left)), key=left.count)
            hits.append(guess == label[t])
            left = left if label[t] == 3 else [x for i, x in enumerate(left) if i != left.index(label[t])]
        right.append((sum(hits), len(hits)))
    hits, asked = np.array(right).T
    error = 5 * (hits - task.best_trivial * asked).std() / np.sqrt(rows) / asked.mean()
    assert hits.sum() / asked.sum() == pytest.approx(task.best_trivial, abs=error)


def test_laws():
    shown = [len(set(throw)) for throw in product(range(3), repeat=4)]
    np.testing.assert_allclose(distinct_law(4, 3), np.bincount(shown, minlength=4) / 81, atol=1e-12)
    rng = np.random.default_rng(0)
    simulated = rng.multinomial(2**20, [1 / 15] * 15, 4000).max(axis=1) / 2**20
    assert expected_share(2**20, 15) == pytest.approx(simulated.mean(), abs=5 * simulated.std() / np.sqrt(4000))


@pytest.mark.parametrize(
    ("name", "sizes", "parts"),
    [
        ("mqar_update", {"num_updates": -1}, ("num_updates=-1", "0, which is mqar")),
        ("mqar_update", {"num_updates": 100}, ("num_updates=100", "at least 220")),
        ("mqar_update", {"num_updates": 20, "vocab_size": 40, "sequence_length": 90}, ("20 values", "at least 50")),
        ("selective_copying", {"form": "made"}, ("form='made'", "did you mean mad")),
        ("selective_copying", {"num_tokens": 20}, ("num_tokens=20", "41 tokens")),
        ("induction_heads", {"sequence_length": 3}, ("sequence_length=3", "at least 4")),
        ("associative_recall", {"sequence_length": 12}, ("sequence_length=12", "odd")),
        ("associative_recall", {"sequence_length": 15}, ("sequence_length=15", "at most 13", "distinct_keys=False")),
        ("input_copying", {"sequence_length": 17}, ("sequence_length=17", "18 tokens")),
        ("input_copying", {"form": "duplicate", "ngram": 3}, ("min_length=5", "at least 6")),
        (
            "input_copying",
            {"form": "prefix", "ngram": 1, "vocab_size": 6, "sequence_length": 20},
            ("ngram=1", "longer"),
        ),
    ],
    ids=str,
)
def test_errors_name_field_value_and_remedy(name, sizes, parts):
    with pytest.raises(ValueError, match=name) as error:
        get_task(name, **SMALL[name] | sizes)
    for part in parts:
        assert part in str(error.value)
