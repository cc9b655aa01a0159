"""Text -> rows: no token lost or doubled, positions and labels at every boundary, and no leak in any architecture."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsf_models import list_architectures
from dsf_models.tasks.text import TextError, byte_tokenizer, encode, file_documents, pack, train_tokenizer
from dsf_models.tasks.text.packing import NO_TOKENS, cut, join, tokens_of
from tests.consumers.tokenizers_of_text import english_text
from tests.contract import assert_close, fresh, variants

BYTES = byte_tokenizer()
DOCUMENTS = st.lists(st.text(max_size=9) | st.none(), min_size=1, max_size=8)


def has_text(text: str | None) -> bool:
    return bool((text or "").strip())


def documents_of(texts) -> Dataset:
    return Dataset.from_dict({"text": texts})


def expected_rows(texts, block_size: int) -> dict[str, list[list[int]]]:
    """The rows, token by token."""
    rows: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
    row: list[tuple[int, int, int]] = []
    for text in filter(has_text, texts):
        position = 0
        for token in [*text.encode(), 256]:
            row.append((token, position, token if position else -100))
            position += 1
            if len(row) == block_size:
                for name, column in zip(rows, zip(*row, strict=True), strict=True):
                    rows[name].append(list(column))
                row, position = [], 0
    return rows


@settings(max_examples=60)
@given(DOCUMENTS, st.integers(2, 12))
def test_rows_token_by_token(texts, block_size):
    expected = expected_rows(texts, block_size)
    total = sum(len(text.encode()) + 1 for text in filter(has_text, texts))
    if total < block_size:
        with pytest.raises(TextError, match=f"the documents have {total} tokens in all, which do not fill one row"):
            pack(documents_of(texts), BYTES, block_size)
        return
    packed = pack(documents_of(texts), BYTES, block_size)
    assert {name: list(packed.rows[name]) for name in packed.rows.column_names} == expected
    assert (packed.tokens, packed.dropped_tokens) == (total, total % block_size)


@given(DOCUMENTS, st.integers(2, 12), st.integers(0, 8))
def test_pieces_are_cut_like_the_whole(texts, block_size, middle):
    """Cutting in two goes = cutting at once: what is left over is carried on."""
    first, second = tokens_of(BYTES, texts[:middle]), tokens_of(BYTES, texts[middle:])
    whole, rest = cut(join(first, second), block_size)
    before, carried = cut(first, block_size)
    after, carried = cut(join(carried, second), block_size)
    for name, column in whole.items():
        assert np.array_equal(np.vstack([before[name], after[name]]), column)
    assert np.array_equal(carried.ids, rest.ids)
    assert np.array_equal(carried.starts, rest.starts)
    assert len(tokens_of(BYTES, [])) == len(NO_TOKENS) == 0


def test_more_documents_than_a_batch():
    texts = [f"document {number}" * (number % 5) for number in range(700)]
    tokenizer = train_tokenizer(texts, 300)
    packed = pack(documents_of(texts), tokenizer, 64)
    stream = [token for ids in encode(tokenizer, list(filter(has_text, texts))) for token in ids]
    assert [token for row in packed.rows["input_ids"] for token in row] == stream[: len(packed.rows) * 64]
    assert stream[len(packed.rows) * 64 :] == stream[len(stream) - packed.dropped_tokens :]
    batch = packed.rows.with_format("torch")[:3]
    assert list(batch) == ["input_ids", "position_ids", "labels"]
    assert {(column.dtype, column.shape) for column in batch.values()} == {(torch.int64, (3, 64))}


def test_rows_on_disk_are_found_again(tmp_path):
    (tmp_path / "a.txt").write_text(english_text()[:4000])
    documents = file_documents(tmp_path / "a.txt", separator="")
    packed, again = (pack(documents, BYTES, 128) for _ in range(2))
    assert packed.rows.cache_files == again.rows.cache_files != []
    assert (packed.tokens, packed.dropped_tokens, len(packed.rows)) == (again.tokens, again.dropped_tokens, 31)
    BYTES(["a", "long batch"], padding=True)  # how a tokenizer was used before plays no part
    assert pack(documents, BYTES, 128).rows.cache_files == packed.rows.cache_files
    other = pack(documents, train_tokenizer(documents["text"], 300), 128)
    assert other.rows.cache_files != packed.rows.cache_files


def test_errors():
    for block_size in (0, -3, 1, 2.0):
        with pytest.raises(TextError, match=f"block_size={block_size}: use at least 2 tokens"):
            pack(documents_of(["text"]), BYTES, block_size)
    for texts in ([], ["", None]):
        with pytest.raises(TextError, match="the documents have 0 tokens in all"):
            pack(documents_of(texts), BYTES, 8)


# ---- no leak: text -> pack -> model ---------------------------------------------------------------------------------

TEXTS = ["A fox ran.", "Rain", "Two cubs and a den", "Öl", "The end"]
BLOCK = 24
RUNNING_SUMS = ("gated_deltanet", "hybrid", "ssd")
"""Their kernel takes decays as differences of running sums of log λ over documents. What a document's loss sends into
these sums at its steps cancels in front of it but for the last bits of float64."""


def pieces(position_ids: Tensor) -> list[slice]:
    """Where the documents of a row lie."""
    starts = [*(position_ids == 0).nonzero().flatten().tolist(), len(position_ids)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


def model_of(name: str):
    """A small model of the architecture with all of its parts, for the ids of the byte tokenizer."""
    case = "rope" if "rope" in variants(name) else "full"
    return fresh(name, case, vocab_size=len(BYTES)).double()


@pytest.mark.parametrize("name", list_architectures())
def test_no_document_leaks_into_another(name):
    """Logits are those of the documents alone; no document's loss has a gradient at another's embeddings."""
    model = model_of(name)
    rows = pack(documents_of(TEXTS), BYTES, BLOCK).rows.with_format("torch")
    for row in rows:
        embeddings = model.get_input_embeddings()(row["input_ids"][None]).detach().requires_grad_()
        positions = row["position_ids"][None]
        logits = model(inputs_embeds=embeddings, position_ids=positions).logits[0]
        documents = pieces(row["position_ids"])
        with torch.no_grad():
            alone = torch.cat([model(row["input_ids"][None, piece], use_cache=False).logits[0] for piece in documents])
        assert_close(logits, alone, 1e-10, name)
        losses = torch.nn.functional.cross_entropy(logits[:-1], row["labels"][1:], reduction="none")
        for piece in documents:
            loss = losses[max(piece.start - 1, 0) : piece.stop - 1].sum()
            (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
            inside = gradient[0, piece].abs().max()
            outside = torch.cat([gradient[0, : piece.start], gradient[0, piece.stop :]]).abs()
            assert outside.max() <= (1e-15 * inside if name in RUNNING_SUMS else 0), f"{name}: a gradient gets out"
            assert inside > 1e-6 or piece.stop - piece.start == 1
        loss = model(**{key: value[None] for key, value in row.items()}).loss
        assert_close(loss, losses.sum() / (row["position_ids"] > 0).sum(), 1e-10, f"{name}, loss")
