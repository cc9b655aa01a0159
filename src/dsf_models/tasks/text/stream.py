"""Rows of packed documents without end, which a stopped run takes up again at exactly the row where it stopped.

    documents -> batches of them -> tokens -> windows of rows -> each window's rows in a random order

A window is read from the place where the one before ended; its order is a pure function of (seed, rank, window number).
So the state is the place at which the window starts and the number of its rows already given out: a few numbers, from
which the window is read again. A place is a place in the documents, and a number of tokens behind it.
"""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerBase

from dsf_models.tasks.base import Int32s
from dsf_models.tasks.counter_rng import RowRandom
from dsf_models.tasks.text.errors import require
from dsf_models.tasks.text.packing import NO_TOKENS, Tokens, cut, join, require_block_size, tokenizer_digest, tokens_of

_BATCH_CHARACTERS = 2**18
"""Documents are tokenised together until they have this many characters: large enough for speed."""


@dataclass(frozen=True)
class Place:
    """A place in the endless stream of tokens."""

    epoch: int = 0
    """Passes through the documents that were completed before."""
    documents: dict[str, Any] | None = None
    """The state of the document stream, None at its start."""
    tokens: int = 0
    """Tokens of the documents from there on that lie before the place."""


@dataclass(frozen=True)
class _Window:
    start: Place
    rows: dict[str, Int32s]
    """Columns (window, block_size), in their random order."""
    digest: str
    """SHA-256 of the rows' ids, which tells whether the documents are still the same."""


class PackedStream:
    """An endless stream of packed rows of one process.

    The processes share out the documents: none is read by two of them in one epoch, and all are read. The shards
    (files) come in another order in each epoch after the first; rows are shuffled within windows. While a window is
    given out, a thread reads the next one.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        seed: int,
        window: int = 4096,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Nothing is read until the first row is asked for.

        Args:
            documents: stream with a column `text`; the same on all processes, without a shuffle of its own.
            tokenizer: has an end-of-text token.
            block_size: tokens of a row, at least 2.
            seed: of the order of rows.
            window: rows that are shuffled together, and held in memory twice; 1 keeps the order of the documents.
            rank: number of this process.
            world_size: number of processes.

        Raises:
            TextError: a size out of range, or documents that are shuffled already.
        """
        require_block_size(block_size)
        require(window >= 1, f"window={window!r}: use at least 1 row")
        require(0 <= rank < world_size, f"rank={rank!r}: use 0 to world_size - 1 ({world_size - 1})")
        _require_unshuffled(documents)
        self._settings = {
            "tokenizer": tokenizer_digest(tokenizer),
            "block_size": block_size,
            "seed": seed,
            "window": window,
            "rank": rank,
            "world_size": world_size,
        }
        self._documents = split_dataset_by_node(documents, rank, world_size)
        self._tokenizer = copy.deepcopy(tokenizer)  # a thread of ours uses it: two threads cannot share one
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="packed-stream")
        self._begin(Place(), number=0, row=0)

    def _begin(self, start: Place, number: int, row: int) -> None:
        self._start, self._number, self._row = start, number, row
        self._window: _Window | None = None

    @property
    def epoch(self) -> int:
        """Passes through the documents that were completed when the current window was begun."""
        return self._current().start.epoch

    def next_rows(self, n: int) -> dict[str, torch.Tensor]:
        """The next n rows.

        Returns:
            input_ids, position_ids and labels, int64 (n, block_size).

        Raises:
            TextError: the documents cannot be read, or hold no text.
        """
        require(n >= 1, f"n={n!r}: ask for at least 1 row")
        parts: list[dict[str, Int32s]] = []
        while n > 0:
            if self._row == self._settings["window"]:
                self._window, self._row, self._number = self._following.result(), 0, self._number + 1
                self._read_ahead()
            rows = self._current().rows
            stop = min(self._row + n, self._settings["window"])
            parts.append({name: array[self._row : stop] for name, array in rows.items()})
            n, self._row = n - (stop - self._row), stop
        return {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts]).astype(np.int64)) for name in parts[0]
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; JSON-serialisable."""
        window = self._current()
        position = {"number": self._number, "row": self._row, "digest": window.digest}
        return copy.deepcopy({"settings": self._settings, "start": asdict(window.start), **position})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where the stream stood that gave this state; the rows from there on are the same.

        Raises:
            TextError: the state is that of other settings, or the documents have changed.
        """
        for name, value in self._settings.items():
            saved = state["settings"].get(name)
            require(
                saved == value,
                f"{name}={value!r}: the stream was saved with {saved!r}; resume with that, or start a new run.",
            )
        self._begin(Place(**state["start"]), state["number"], state["row"])
        require(
            self._current().digest == state["digest"],
            "The documents are no longer those that the stream was saved with: restore them, or start a new run.",
        )

    def _current(self) -> _Window:
        if self._window is None:
            self._window = self._thread.submit(self._read, self._number, self._start).result()
            self._read_ahead()
        return self._window

    def _read_ahead(self) -> None:
        self._following: Future[_Window] = self._thread.submit(self._read, self._number + 1)

    def _read(self, number: int, start: Place | None = None) -> _Window:
        """Read the next window, or the one at a place; the thread alone touches reader and tokenizer."""
        if start is not None:
            self._reader = _Reader(self._documents, self._tokenizer, start)
        return _read_window(self._reader, self._settings, number)


class _Reader:
    """Reads the tokens of the documents in order, from a place on."""

    def __init__(self, documents: IterableDataset, tokenizer: PreTrainedTokenizerBase, start: Place) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self._open(start.epoch, start.documents)
        self._batch_start, self._batch_length, self._rest = start, 0, NO_TOKENS
        if start.tokens:
            self._rest = self._next_batch()[start.tokens :]

    def place(self) -> Place:
        """Where the next token is."""
        return replace(self._batch_start, tokens=self._batch_length - len(self._rest))

    def take(self, count: int) -> Tokens:
        """The next `count` tokens."""
        parts = [self._rest]
        while sum(map(len, parts)) < count:
            parts.append(self._next_batch())
        tokens = join(*parts)
        # All of it lies in the last batch: the parts before it were too short.
        self._rest = tokens[count:]
        return tokens[:count]

    def _next_batch(self) -> Tokens:
        while True:
            self._batch_start = Place(self._epoch, self._state)
            if texts := self._next_texts():
                tokens = tokens_of(self._tokenizer, texts)
                self._found_text |= len(tokens) > 0
                self._batch_length = len(tokens)
                return tokens
            require(self._found_text, "The documents hold no text for this process: give at least one to each process.")
            self._open(self._epoch + 1, None)

    def _next_texts(self) -> list[str | None]:
        texts: list[str | None] = []
        characters = 0
        for example in self._iterator:
            texts.append(example["text"])
            characters += len(texts[-1] or "")
            if characters >= _BATCH_CHARACTERS:
                break
        self._state = self._stream.state_dict()
        return texts

    def _open(self, epoch: int, state: dict[str, Any] | None) -> None:
        """Go to a state of the document stream in an epoch; None is the epoch's start."""
        self._epoch, self._state, self._found_text = epoch, state, state is not None
        self._stream = split_dataset_by_node(self._documents, 0, 1)  # a copy, whose epoch and state are its own
        self._stream.set_epoch(epoch)
        if state is not None:
            self._stream.load_state_dict(state)
        self._iterator = iter(self._stream)


def _read_window(reader: _Reader, settings: dict[str, Any], number: int) -> _Window:
    start = reader.place()
    rows, _ = cut(reader.take(settings["window"] * settings["block_size"]), settings["block_size"])
    address = RowRandom(settings["seed"], f"text/rows/{settings['rank']}", np.array([number], np.uint64))
    order = np.argsort(address.bits("order", settings["window"])[0], kind="stable")
    return _Window(start, {name: array[order] for name, array in rows.items()}, sha256(rows["input_ids"]).hexdigest())


def _require_unshuffled(documents: IterableDataset) -> None:
    """A stream's state does not hold its shuffle buffer, so that it could not be resumed exactly."""
    layers = [documents._ex_iterable]
    while layers:
        layer = layers.pop()
        require(
            type(layer).__name__ != "BufferShuffledExamplesIterable",
            "The documents are shuffled by IterableDataset.shuffle, which cannot be resumed exactly: "
            "leave that out; the rows are shuffled in windows.",
        )
        layers += [layer.ex_iterable] if hasattr(layer, "ex_iterable") else getattr(layer, "ex_iterables", [])
