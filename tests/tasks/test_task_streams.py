"""Streamed tasks: the rows of the map-style data set, in its order, shared by workers and processes."""

import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from dsf_models.tasks import get_task, list_tasks, load_task

SIZES = {"sequence_length": 64, "num_pairs": 4}


@pytest.mark.parametrize("name", list_tasks())
def test_a_stream_holds_the_rows_of_the_data_set_in_its_order(name):
    whole = load_task(name, split="test", seed=3, num_examples=150)
    stream = load_task(name, split="test", seed=3, num_examples=150, streaming=True)
    assert stream.features == whole.features
    assert stream.info.description == whole.info.description
    rows = list(stream.with_format("numpy"))
    for column in whole.column_names:
        np.testing.assert_array_equal([row[column] for row in rows], whole.with_format("numpy")[:][column])


@pytest.mark.parametrize("num_examples", [1, 63, 64, 65, 1000])
def test_shards_cut_the_examples_without_gap_or_overlap(num_examples):
    stream = load_task("mqar", num_examples=num_examples, streaming=True, **SIZES)
    assert stream.num_shards == min(num_examples, 64)
    assert len(list(stream)) == num_examples


def test_workers_share_the_rows():
    expected = get_task("mqar", **SIZES).generate("train", 0, 0, 200)["input_ids"]
    stream = load_task("mqar", num_examples=200, streaming=True, **SIZES).with_format("torch")
    batches = list(DataLoader(stream, batch_size=16, num_workers=2))
    rows = np.concatenate([batch["input_ids"].numpy() for batch in batches])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_processes_share_the_rows():
    expected = get_task("mqar", **SIZES).generate("train", 0, 0, 200)["input_ids"].tolist()
    stream = load_task("mqar", num_examples=200, streaming=True, **SIZES)
    parts = [[row["input_ids"] for row in split_dataset_by_node(stream, rank, 2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(expected)


def test_a_stream_resumes_where_it_stopped():
    stream = load_task("mqar", num_examples=300, streaming=True, **SIZES)
    rows = iter(stream)
    for _ in range(77):
        next(rows)
    state, rest = stream.state_dict(), list(rows)
    again = load_task("mqar", num_examples=300, streaming=True, **SIZES)
    again.load_state_dict(state)
    assert list(again) == rest


def test_a_stream_generates_no_more_than_is_read():
    """A data set of 2^40 rows would fit in no memory."""
    stream = load_task("mqar", num_examples=2**40, streaming=True, **SIZES)
    first = get_task("mqar", **SIZES).generate("train", 0, 0, 3)["input_ids"]
    np.testing.assert_array_equal([row["input_ids"] for row in stream.take(3)], first)


def test_streams_refuse_what_data_sets_refuse():
    with pytest.raises(ValueError, match="num_examples=0"):
        load_task("mqar", num_examples=0, streaming=True)
    with pytest.raises(ValueError, match="seed=-1"):
        load_task("mqar", seed=-1, streaming=True)
