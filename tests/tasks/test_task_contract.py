"""What every task owes its users, for each task of the registry."""

import json
import struct
from dataclasses import FrozenInstanceError, replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from dsf_models import S4DConfig, S4DForSequenceClassification
from dsf_models.tasks import (
    IGNORE_INDEX,
    SPLITS,
    RegressionTask,
    SyntheticTask,
    get_task,
    get_token_task,
    list_tasks,
    load_task,
)
from dsf_models.tasks.registry import TASKS

every_task = pytest.mark.parametrize("name", list_tasks())
token_task = pytest.mark.parametrize("name", list_tasks(SyntheticTask))
regression_task = pytest.mark.parametrize("name", list_tasks(RegressionTask))


def columns_of(task):
    if isinstance(task, RegressionTask):
        return {"inputs_values", "labels"}
    return {"input_ids", "labels"} | ({"attention_mask"} if task.pad_token_id is not None else set())


def inputs_of(columns):
    return columns["inputs_values" if "inputs_values" in columns else "input_ids"]


def test_every_task_is_of_one_kind():
    assert sorted(list_tasks(SyntheticTask) + list_tasks(RegressionTask)) == list_tasks() == sorted(TASKS)


@token_task
def test_columns_of_tokens(name):
    task = get_task(name)
    columns = task.generate("train", 0, 0, 100)
    assert columns.keys() == columns_of(task)
    for column in columns.values():
        assert column.shape == (100, task.sequence_length)
        assert column.dtype == np.int32
    scored = columns["labels"] != IGNORE_INDEX
    assert scored.any(axis=1).all()
    for tokens in (columns["input_ids"], columns["labels"][scored]):
        assert tokens.min() >= 0
        assert tokens.max() < task.vocab_size


@regression_task
def test_columns_of_numbers(name):
    task = get_task(name)
    columns = task.generate("train", 0, 0, 300)
    assert columns.keys() == columns_of(task)
    assert columns["inputs_values"].shape == (300, task.sequence_length, task.num_inputs)
    assert columns["labels"].shape == (300,)
    for column in columns.values():
        assert column.dtype == np.float32
        assert np.isfinite(column).all()
    # The variance of 300 labels strays by about a tenth.
    assert columns["labels"].var() == pytest.approx(task.constant_mse, rel=0.3)


@regression_task
def test_a_classification_head_learns_from_numbers(name):
    """One gradient of what `load_task` gives, as it comes."""
    task = get_task(name)
    batch = load_task(name, num_examples=4).with_format("torch")[:]
    config = S4DConfig(vocab_size=1, hidden_size=8, num_hidden_layers=1, input_size=task.num_inputs, num_labels=1)
    loss = S4DForSequenceClassification(config)(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)


@regression_task
def test_language_models_refuse_numbers(name):
    with pytest.raises(ValueError, match=f"task='{name}': its inputs and answers are real numbers.*mqar"):
        get_token_task(name)


@every_task
def test_examples_depend_on_their_address_alone(name, monkeypatch):
    task, other = get_task(name), get_task(name)
    whole = task.generate("train", 3, 0, 60)
    monkeypatch.setattr(TASKS[name], "_rows_per_block", 17)
    for start, stop in ((40, 60), (0, 1), (59, 60), (20, 20)):
        np.random.seed(start)
        torch.manual_seed(start)
        other.generate("test", start, 0, 2)
        part = task.generate("train", 3, start, stop)
        for column in whole:
            np.testing.assert_array_equal(part[column], whole[column][start:stop])
    some = np.array([59, 3, 3, 25])
    for column, values in other.examples("train", 3, some).items():
        np.testing.assert_array_equal(values, whole[column][some])


@token_task
def test_pads_are_masked_and_never_scored(name):
    task = get_task(name)
    columns = task.generate("train", 0, 0, 100)
    if task.pad_token_id is None:
        assert "attention_mask" not in columns
        return
    pads = columns["attention_mask"] == 0
    assert pads.any(), "a task with a pad has examples of different lengths"
    np.testing.assert_array_equal(pads, columns["input_ids"] == task.pad_token_id)
    assert (columns["labels"][pads] == IGNORE_INDEX).all()
    assert task.pad_token_id not in columns["labels"]


@every_task
def test_generation_leaves_the_global_generators_alone(name):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    load_task(name, num_examples=5)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


@every_task
def test_the_number_of_examples_changes_none_of_them(name):
    few, many = (load_task(name, split="test", seed=5, num_examples=n).with_format("numpy")[:7] for n in (7, 20))
    assert few.keys() == many.keys()
    for column in few:
        np.testing.assert_array_equal(few[column], many[column])


@every_task
def test_splits_and_seeds_are_disjoint(name):
    task = get_task(name)
    streams = [task.generate(split, seed, 0, 10) for split in SPLITS for seed in (0, 1, 2**64 - 1)]
    inputs = np.concatenate([inputs_of(columns) for columns in streams])
    if getattr(task, "pad_token_id", None) is not None:
        # Rows of a few tokens have to repeat.
        inputs = inputs[(inputs != task.pad_token_id).sum(axis=1) >= min(24, task.sequence_length)]
    assert len({row.tobytes() for row in inputs}) == len(inputs) >= 2 * len(streams)


@every_task
def test_far_examples_exist(name):
    task = get_task(name)
    far = inputs_of(task.generate("train", 0, 2**64 - 3, 2**64 - 1))
    assert not np.array_equal(far[0], far[1])


@every_task
def test_data_hash_is_the_documented_one(name, monkeypatch):
    task = get_task(name)
    columns = task.generate("validation", 1, 0, 20)
    monkeypatch.setattr(TASKS[name], "_rows_per_block", 7)
    digest = sha256()
    for row, labels in zip(inputs_of(columns), columns["labels"], strict=True):
        for value in (*np.ravel(row).tolist(), *np.ravel(labels).tolist()):
            digest.update(struct.pack("<i" if isinstance(value, int) else "<f", value))
    assert task.data_hash("validation", 1, 20) == digest.hexdigest()
    assert task.data_hash("validation", 1, 9) != task.data_hash("validation", 1, 8)


@every_task
def test_describe_is_json_and_rebuilds_the_task(name):
    task = get_task(name)
    card = json.loads(json.dumps(task.describe()))
    assert get_task(card["name"], **card["sizes"]) == task
    assert card["labels"]


@token_task
def test_baselines_of_tokens(name):
    task = get_task(name)
    card = task.describe()
    assert 0 < card["chance"] <= card["best_trivial"] < 1
    assert card["chance"] == task.chance
    assert card["best_trivial"] == task.best_trivial
    assert card["vocabulary"] == task.vocabulary()


@regression_task
def test_baselines_of_numbers(name):
    task = get_task(name)
    card = task.describe()
    assert 0 <= card["oracle_mse"] < card["constant_mse"]
    assert card["constant_mse"] == task.constant_mse
    assert card["oracle_mse"] == task.oracle_mse


@token_task
def test_groups_have_one_value_per_scored_position(name):
    task = get_task(name)
    columns = task.generate("train", 0, 0, 50)
    for facet in task.groups(columns["input_ids"], columns["labels"]).values():
        assert facet.shape == ((columns["labels"] != IGNORE_INDEX).sum(),)


@every_task
def test_tasks_are_frozen(name):
    task = get_task(name)
    assert hash(task) == hash(replace(task))
    with pytest.raises(FrozenInstanceError):
        task.sequence_length = 1


@every_task
def test_dataset_holds_the_examples_and_their_description(name):
    task = get_task(name)
    dataset = load_task(name, split="validation", seed=4, num_examples=20)
    assert set(dataset.column_names) == columns_of(task)
    assert str(dataset.split) == "validation"
    assert json.loads(dataset.info.description.split("\n")[1]) == json.loads(json.dumps(task.describe()))
    for column, expected in task.generate("validation", 4, 0, 20).items():
        feature = dataset.features[column]
        for length in expected.shape[1:]:
            assert feature.length == length
            feature = feature.feature
        assert feature.dtype == expected.dtype.name
        np.testing.assert_array_equal(dataset[column][:], expected)


@every_task
def test_default_number_of_examples(name, monkeypatch):
    assert get_task(name).default_examples.keys() == set(SPLITS)
    monkeypatch.setattr(TASKS[name], "default_examples", {"train": 5, "validation": 4, "test": 3})
    assert [len(load_task(name, split=split)) for split in SPLITS] == [5, 4, 3]


@every_task
def test_equal_datasets_have_equal_fingerprints(name):
    first, again, other = (load_task(name, seed=seed, num_examples=4)._fingerprint for seed in (0, 0, 1))
    assert first == again != other


@every_task
def test_torch_loader_reads_int64_and_float32(name):
    dataset = load_task(name, num_examples=10)
    batches = list(DataLoader(dataset.with_format("torch"), batch_size=4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    for column in dataset.column_names:
        assert batches[0][column].dtype == (
            torch.float32 if "float32" in str(dataset.features[column]) else torch.int64
        )
        assert torch.equal(batches[0][column], torch.tensor(dataset[:4][column]))


@token_task
@pytest.mark.parametrize("style", [None, "torch", "numpy"])
def test_default_collator_reads_int64(name, style):
    dataset = load_task(name, num_examples=4).with_format(style)
    batch = default_data_collator([dataset[i] for i in range(4)])
    task = get_task(name)
    embedded = torch.nn.Embedding(task.vocab_size, task.vocab_size // 1024 + 1)(batch["input_ids"])
    assert embedded.shape[:2] == (4, task.sequence_length)
    logits = torch.zeros(4 * task.sequence_length, task.vocab_size)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"].ravel(), ignore_index=IGNORE_INDEX)
    assert loss.item() == pytest.approx(np.log(task.vocab_size), rel=1e-4)


@every_task
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"split": "valid"}, ("split='valid'", "did you mean validation", "train")),
        ({"split": None}, ("split=None", "choose from train, validation, test")),
        ({"seed": -1}, ("seed=-1", "from 0")),
        ({"seed": 2**64}, (f"seed={2**64}", "2**64 - 1")),
        ({"seed": 0.5}, ("seed=0.5", "integer")),
        ({"num_examples": 0}, ("num_examples=0", "from 1")),
        ({"num_examples": -5}, ("num_examples=-5", "from 1")),
        ({"num_examples": 2.0}, ("num_examples=2.0", "integer")),
        ({"sequence_lengt": 9}, ("sequence_lengt=9", "did you mean sequence_length")),
        ({"sequence_length": "9"}, ("sequence_length='9'", "give int, not str")),
        ({"sequence_length": 0}, ("sequence_length=0", "give 1 to")),
    ],
)
def test_errors_name_field_value_and_remedy(name, arguments, parts):
    with pytest.raises(ValueError, match="=") as error:
        load_task(name, **arguments)
    for part in parts:
        assert part in str(error.value)


@token_task
def test_vocabularies_are_checked(name):
    with pytest.raises(ValueError, match="vocab_size=2147483648: give 1 to"):
        get_task(name, vocab_size=2**31)


@every_task
def test_ranges_are_checked(name):
    with pytest.raises(ValueError, match="start=-1: give an integer from 0"):
        get_task(name).generate("train", 0, -1, 3)
    with pytest.raises(ValueError, match="stop=2: give an integer from 3"):
        get_task(name).generate("train", 0, 3, 2)


@every_task
def test_unknown_names_offer_the_closest(name):
    with pytest.raises(ValueError, match=f"task='{name}x': unknown; did you mean {name}") as error:
        get_task(name + "x")
    assert ", ".join(list_tasks()) in str(error.value)
