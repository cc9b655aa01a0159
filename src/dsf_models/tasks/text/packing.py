"""Documents to rows of equal length: joined by the end-of-text token and cut anywhere, no token lost or doubled.

    document tokens  t_1 .. t_n e, the next one behind it, cut into rows of block_size
    position_ids     0, 1, 2, .. from each document's first token in a row on
    labels           the token itself, -100 where position_ids is 0

Positions start again at a row's start, too: no state comes in from the row before. The language model's loss shifts the
labels, so that a token with position 0 is the one that nothing of its own document predicts.

Letters: b rows, t tokens of a row, n tokens of a stream.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dsf_models.tasks.base import IGNORE_INDEX, Int32s
from dsf_models.tasks.text.errors import require
from dsf_models.tasks.text.tokenizers import encode, end_of_text_id

COLUMNS = ("input_ids", "position_ids", "labels")
_BATCH = 256
_MISSING = -1


@dataclass(frozen=True)
class Tokens:
    """A piece of the joined documents."""

    ids: Int32s
    """(n,)."""
    starts: NDArray[np.bool_]
    """(n,), where a document starts."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.starts[part])


NO_TOKENS = Tokens(np.empty(0, np.int32), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Packed:
    """Rows, and what became of the documents."""

    rows: Dataset
    """Columns input_ids, position_ids and labels, each b lists of t int32."""
    tokens: int
    """Tokens of all documents, their ends included."""
    dropped_tokens: int
    """Tokens of the last, incomplete row, which is left out."""


def pack(documents: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Packed:
    """Pack documents into rows.

    A dataset that lies on disk gives rows on disk, which are found again the next time.

    Args:
        documents: column `text`.
        tokenizer: has an end-of-text token.
        block_size: t, at least 2.

    Raises:
        TextError: block_size is too small, or the documents do not fill one row.
    """
    require_block_size(block_size)
    end_of_text_id(tokenizer)
    rest = NO_TOKENS

    def rows_of(batch: dict[str, list], indices: list[int]) -> pa.Table:
        nonlocal rest
        rest = join(rest, tokens_of(tokenizer, batch["text"]))
        rows, rest = cut(rest, block_size)
        if indices[-1] == len(documents) - 1 and len(rest):
            rows = {name: np.vstack([rows[name], tail]) for name, tail in _unfinished(rest, block_size).items()}
        return _table(rows)

    packed = documents.map(
        rows_of,
        with_indices=True,
        batched=True,
        batch_size=_BATCH,
        remove_columns=documents.column_names,
        features=Features({name: List(Value("int32"), length=block_size) for name in COLUMNS}),
        # The hash of a closure that fills as it runs would tell nothing of what it makes.
        new_fingerprint=_fingerprint(documents, tokenizer, block_size),
        desc="packing",
    )
    return _without_the_unfinished(packed, block_size)


def require_block_size(block_size: int) -> None:
    """Raise TextError unless a row of this many tokens has something to predict."""
    require(
        isinstance(block_size, int) and block_size >= 2,
        f"block_size={block_size!r}: use at least 2 tokens, one to predict the next from",
    )


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | None]) -> Tokens:
    """The tokens of documents, one behind the other; of those without text (empty, white space, null), none."""
    encoded = encode(tokenizer, [text for text in texts if text and not text.isspace()])
    lengths = [len(ids) for ids in encoded]
    starts = np.zeros(sum(lengths), np.bool_)
    starts[np.cumsum(lengths, dtype=np.int64) - np.array(lengths, np.int64)] = True
    return Tokens(np.fromiter(chain.from_iterable(encoded), np.int32, len(starts)), starts)


def join(*parts: Tokens) -> Tokens:
    """Pieces one behind the other."""
    return Tokens(np.concatenate([part.ids for part in parts]), np.concatenate([part.starts for part in parts]))


def cut(tokens: Tokens, block_size: int) -> tuple[dict[str, Int32s], Tokens]:
    """Cut a stream into rows.

    Returns:
        input_ids, position_ids and labels (b, t) of all full rows, and what is left over.
    """
    whole = len(tokens) // block_size * block_size
    ids, starts = (array[:whole].reshape(-1, block_size) for array in (tokens.ids, tokens.starts))
    return columns(ids, starts), tokens[whole:]


def columns(ids: Int32s, starts: NDArray[np.bool_]) -> dict[str, Int32s]:
    """input_ids, position_ids and labels (b, t) of rows, from the ids (b, t) and where documents start (b, t)."""
    slots = np.arange(ids.shape[1], dtype=np.int32)
    positions = slots - np.maximum.accumulate(np.where(starts, slots, 0), axis=1, dtype=np.int32)
    return {"input_ids": ids, "position_ids": positions, "labels": np.where(positions == 0, IGNORE_INDEX, ids)}


def _unfinished(rest: Tokens, block_size: int) -> dict[str, Int32s]:
    """The last row, with position -1 where its tokens have run out: kept on disk so that they can be counted."""
    missing = block_size - len(rest)
    found = columns(rest.ids[None], rest.starts[None])
    return {name: np.pad(row, ((0, 0), (0, missing)), constant_values=_MISSING) for name, row in found.items()}


def _without_the_unfinished(packed: Dataset, block_size: int) -> Packed:
    last = np.asarray(packed[-1]["position_ids"]) if len(packed) else np.empty(0)
    dropped = int((last != _MISSING).sum()) % block_size
    full = len(packed) - bool(dropped)
    tokens = full * block_size + dropped
    require(
        full > 0,
        f"block_size={block_size}: the documents have {tokens} tokens in all, which do not fill one row; "
        "give more text, or a smaller block_size",
    )
    return Packed(packed.select(range(full)), tokens, dropped)


def _table(rows: dict[str, Int32s]) -> pa.Table:
    def lists(array: Int32s) -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1), pa.int32()), array.shape[1])

    return pa.table({name: lists(array) for name, array in rows.items()})


def _fingerprint(documents: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> str:
    parts = [documents._fingerprint, tokenizer_digest(tokenizer), block_size]
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides the ids: the vocabulary, its rules and the end-of-text token."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    rules |= {"truncation": None, "padding": None}  # left behind by whoever used the tokenizer last
    parts = [type(tokenizer).__name__, rules, end_of_text_id(tokenizer)]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
