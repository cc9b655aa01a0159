"""The whole path on real text: reviews of films -> splits -> a tokenizer trained here -> rows, at hand and streamed."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from dsf_models.tasks.text import (
    KneserNey,
    PackedStream,
    deduplicate,
    encode,
    file_documents,
    pack,
    split_documents,
    train_tokenizer,
)

ROOT = Path(__file__).parents[3]
BLOCK = 256


@pytest.mark.slow
def test_reviews(tmp_path):
    file = tmp_path / "reviews.csv"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "reviews.py"), str(file)], check=True)
    fractions = {"validation": 0.1, "test": 0.1}
    splits = split_documents(deduplicate(file_documents(file)), fractions, seed=0)
    texts = {name: list(part["text"]) for name, part in splits.items()}
    assert len(set(chain.from_iterable(texts.values()))) == sum(map(len, texts.values()))
    tokenizer = train_tokenizer(texts["train"], 4096)
    assert len(tokenizer) == 4096

    # Not a token of the validation split is lost, and decoding gives its text back.
    packed = pack(splits["validation"], tokenizer, BLOCK)
    rows = packed.rows.with_format("numpy")[:]
    ids = list(chain.from_iterable(encode(tokenizer, texts["validation"])))
    assert rows["input_ids"].ravel().tolist() == ids[: len(ids) - packed.dropped_tokens]
    assert tokenizer.decode(ids).split(tokenizer.eos_token)[:-1] == texts["validation"]

    # Two processes that stream the file read every review of the split once, in the first epoch as in the second.
    streamed = split_documents(file_documents(file, streaming=True), fractions, seed=0)["validation"]
    for rank in (0, 1):
        stream = PackedStream(streamed, tokenizer, BLOCK, seed=0, window=1, rank=rank, world_size=2)
        count = len(ids) // BLOCK
        read = tokenizer.decode(stream.next_rows(count)["input_ids"].flatten()).split(tokenizer.eos_token)[:-1]
        mine = texts["validation"][rank::2]
        assert len(read) > 1.9 * len(mine)
        assert read == (mine * 3)[: len(read)]

    # The baseline is far below chance and above what it reaches on its own training text.
    train = pack(splits["train"], tokenizer, BLOCK).rows.with_format("numpy")[:]
    model = KneserNey.fit(train["input_ids"], train["position_ids"], len(tokenizer))
    seen = model.nats_per_token(train["input_ids"][:1000], train["position_ids"][:1000])
    assert seen < model.nats_per_token(rows["input_ids"], rows["position_ids"]) < 5
