"""The stream goes on exactly where it stood, at any row, through epochs, for every kind of source and any processes."""

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, disable_progress_bars, load_dataset

from dsf_models.tasks.text import PackedStream, TextError, byte_tokenizer, file_documents, pack, split_documents
from dsf_models.tasks.text import stream as stream_module

BYTES = byte_tokenizer()
BLOCK, WINDOW = 16, 5
FILES = 3

disable_progress_bars()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Documents are tokenised a few at a time, so that places lie inside of batches and between them."""
    monkeypatch.setattr(stream_module, "_BATCH_CHARACTERS", 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    for file in range(FILES):
        texts = [f"{file}.{number}: " + f"{number:02}" * (number * 5 % 17) for number in range(9 + file)]
        rows = Dataset.from_dict({"text": texts})
        rows.to_json(folder / f"{file}.jsonl")
        rows.to_parquet(folder / f"{file}.parquet", batch_size=4)
        (folder / f"{file}.txt").write_text("\n\n".join(texts))
    return folder


SOURCES = {
    "text": lambda folder: file_documents(f"{folder}/*.txt", separator="", streaming=True),
    "json": lambda folder: file_documents(f"{folder}/*.jsonl", streaming=True),
    "parquet": lambda folder: file_documents(f"{folder}/*.parquet", streaming=True),
    "json of datasets": lambda folder: load_dataset(
        "json", data_files=f"{folder}/*.jsonl", split="train", streaming=True
    ),
    "parquet of datasets": lambda folder: load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True
    ),
    "memory": lambda folder: file_documents(f"{folder}/*.jsonl").to_iterable_dataset(num_shards=4),
    "a split": lambda folder: split_documents(
        file_documents(f"{folder}/*.jsonl", streaming=True), {"validation": 0.2, "test": 0.2}, seed=0
    )["train"],
}


def stream_of(documents: IterableDataset, **options) -> PackedStream:
    return PackedStream(documents, BYTES, BLOCK, **({"seed": 3, "window": WINDOW} | options))


def rows_of(stream: PackedStream, count: int) -> torch.Tensor:
    """Rows (count, 3, t) of all columns."""
    columns = stream.next_rows(count)
    return torch.stack([columns[name] for name in ("input_ids", "position_ids", "labels")], dim=1)


@pytest.mark.parametrize(
    ("source", "world_size"),
    [(source, 1) for source in SOURCES] + [("text", 2), ("text", 3), ("memory", 2), ("memory", 3), ("a split", 2)],
)
def test_goes_on_exactly(folder, source, world_size):
    """From the state at each row of two epochs and more, the rows are those of the stream that was not stopped."""
    documents = SOURCES[source](folder)
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size}
        stream, states, rows, epoch = stream_of(documents, **options), [], [], 0
        while stream.epoch < 2:
            states.append(json.dumps(stream.state_dict()))
            rows.append(rows_of(stream, 1))
        last = rows_of(stream, 2 * WINDOW)
        whole = torch.cat([*rows, last])
        resumed = stream_of(SOURCES[source](folder), **options)
        for row in range(0, len(states), 2 * world_size + 1):
            resumed.load_state_dict(json.loads(states[row]))
            count = min(2 * WINDOW + 2, len(whole) - row)
            assert torch.equal(rows_of(resumed, count), whole[row : row + count]), f"row {row}"
            epoch = max(epoch, resumed.epoch)
        assert epoch >= 1
        assert len(states) > 2 * WINDOW


def test_resumed_twice_and_read_in_any_amounts(folder):
    whole = rows_of(stream_of(SOURCES["json"](folder)), 60)
    stream, found = stream_of(SOURCES["json"](folder)), []
    for count in (1, 7, 2, 13, 5, 22, 10):
        state = json.loads(json.dumps(stream.state_dict()))
        stream = stream_of(SOURCES["json"](folder))
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        found.append(rows_of(stream, count))
    assert torch.equal(torch.cat(found), whole)


@pytest.mark.parametrize(("source", "world_size"), [("text", 3), ("a split", 2), ("memory", 4), ("memory", 3)])
def test_processes_share_out_the_documents(folder, source, world_size):
    """In the first epoch and in the second, each process reads whole documents, and together they read each once."""
    documents = SOURCES[source](folder)
    texts = [example["text"] for example in documents]
    epochs: list[list[str]] = [[], []]
    for rank in range(world_size):
        stream = stream_of(documents, rank=rank, world_size=world_size, window=1)
        ids = stream.next_rows(50)["input_ids"].flatten().tolist()
        seen = "".join("|" if token == 256 else chr(token) for token in ids).split("|")
        first = next(index for index, text in enumerate(seen) if text in seen[:index])
        epochs[0] += seen[:first]
        epochs[1] += seen[first : 2 * first]
    assert [sorted(found) for found in epochs] == [sorted(texts)] * 2


def test_windows_hold_the_rows_of_packing_in_a_new_order(folder):
    documents = file_documents(f"{folder}/*.jsonl")
    packed = pack(documents, BYTES, BLOCK).rows.with_format("torch")[:]
    expected = torch.stack([packed[name] for name in ("input_ids", "position_ids", "labels")], dim=1)
    stream = documents.to_iterable_dataset()
    assert torch.equal(rows_of(stream_of(stream, window=1), len(expected)), expected)
    windows = len(expected) // WINDOW
    shuffled = rows_of(stream_of(stream), windows * WINDOW)
    orders = []
    for window in range(windows):
        part = slice(window * WINDOW, (window + 1) * WINDOW)
        order = [int((expected[part] == row).flatten(1).all(1).nonzero()[0]) for row in shuffled[part]]
        assert sorted(order) == list(range(WINDOW))
        orders.append(tuple(order))
    assert len(set(orders)) > windows // 2
    assert not torch.equal(rows_of(stream_of(stream, seed=4), windows * WINDOW), shuffled)


def test_the_order_stays_what_it_is(folder):
    """Golden: a resumed run of an earlier version must find its rows."""
    rows = stream_of(SOURCES["json"](folder), window=8).next_rows(20)["input_ids"]
    assert (
        sha256(rows.numpy().astype("<i4").tobytes()).hexdigest()
        == "2d8f24eb18bd1bbda46b28dd8880c79c06f6bc002a7bc0b20632e65b52ee43a7"
    )


def test_errors(folder, tmp_path):
    documents = SOURCES["json"](folder)
    for options, message in [
        ({"window": 0}, "window=0: use at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank=2: use 0 to world_size - 1 \(1\)"),
    ]:
        with pytest.raises(TextError, match=message):
            stream_of(documents, **options)
    with pytest.raises(TextError, match="block_size=0: use at least 2"):
        PackedStream(documents, BYTES, 0, seed=0)
    with pytest.raises(TextError, match=r"shuffled by IterableDataset.shuffle"):
        stream_of(documents.filter(bool).shuffle(seed=0, buffer_size=4).select_columns("text"))
    with pytest.raises(TextError, match="hold no text for this process"):
        stream_of(Dataset.from_dict({"text": ["", " "]}).to_iterable_dataset()).next_rows(1)
    with pytest.raises(TextError, match="n=0: ask for at least 1 row"):
        stream_of(documents).next_rows(0)


def test_a_state_of_something_else_is_refused(folder, tmp_path):
    state = stream_of(SOURCES["json"](folder)).state_dict()
    for options in ({"seed": 4}, {"window": 6}, {"world_size": 2}):
        (name,) = options
        with pytest.raises(TextError, match=f"{name}=.*: the stream was saved with .*; resume with that"):
            stream_of(SOURCES["json"](folder), **options).load_state_dict(state)
    file = tmp_path / "a.jsonl"
    file.write_bytes((folder / "0.jsonl").read_bytes())
    stream = stream_of(file_documents(file, streaming=True))
    stream.next_rows(WINDOW + 1)
    file.write_bytes(file.read_bytes().replace(b"0.", b"7."))
    with pytest.raises(TextError, match="no longer those that the stream was saved with"):
        stream_of(file_documents(file, streaming=True)).load_state_dict(stream.state_dict())


def test_an_error_in_a_later_file_is_told(folder, tmp_path):
    (tmp_path / "a.jsonl").write_bytes((folder / "0.jsonl").read_bytes())
    (tmp_path / "b.jsonl").write_text("{")
    stream = stream_of(file_documents(tmp_path, streaming=True))
    stream.next_rows(3)
    with pytest.raises(TextError, match=r"b\.jsonl, line 1: not JSON"):
        stream.next_rows(50)


def test_tokenizer_in_use_elsewhere(folder):
    """The caller may pad batches with the tokenizer while the stream's thread is at work."""
    stream = stream_of(SOURCES["json"](folder), window=200)
    for _ in range(3):
        stream.next_rows(200)
        assert np.shape(BYTES(["a", "long"] * 50, padding=True).input_ids) == (100, 4)
