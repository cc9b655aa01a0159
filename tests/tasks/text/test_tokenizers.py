"""Tokenizers give every text back, keep special tokens apart from text, and are the same however they are trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dsf_models.tasks.text import (
    TextError,
    byte_tokenizer,
    encode,
    end_of_text_id,
    load_tokenizer,
    pad_id,
    train_tokenizer,
)
from dsf_models.tasks.text.tokenizers import END_OF_TEXT, PAD
from tests.consumers.tokenizers_of_text import english_text

BYTES, BPE = byte_tokenizer(), train_tokenizer(english_text().split("\n\n"), 400)
HARD = st.text() | st.sampled_from([END_OF_TEXT, f"a {PAD}b", "\r\n\u2028", " ' s", "🦊\u0301"])


@given(HARD)
def test_every_text_comes_back(text):
    for tokenizer in (BYTES, BPE):
        (ids,) = encode(tokenizer, [text])
        assert tokenizer.decode(ids[:-1]) == text
        assert ids[-1] == tokenizer.eos_token_id
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids[:-1])


@given(HARD)
def test_bytes_are_bytes(text):
    (ids,) = encode(BYTES, [text])
    assert bytes(ids[:-1]) == text.encode()
    assert (len(BYTES), BYTES.eos_token_id, BYTES.pad_token_id) == (258, 256, 257)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = english_text()[:3000] + f"„Füchse“ {END_OF_TEXT} 🦊"
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))):
        assert isinstance(loaded, PreTrainedTokenizerFast)
        assert encode(loaded, [text, "short"]) == encode(tokenizer, [text, "short"])
        assert loaded.decode(encode(loaded, [text])[0][:-1]) == text
        assert loaded(["a", "abc"], padding=True).keys() == {"input_ids", "attention_mask"}
        assert (loaded.eos_token, loaded.pad_token) == (END_OF_TEXT, PAD)


def test_training_is_deterministic_and_knows_its_texts_alone(monkeypatch):
    texts = english_text().split("\n\n")
    again = train_tokenizer(iter(texts), 400)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    parallel = train_tokenizer(texts[::-1], 400)
    rules = BPE.backend_tokenizer.to_str()
    assert again.backend_tokenizer.to_str() == rules
    assert parallel.backend_tokenizer.to_str() == rules
    assert len(BPE) == 400
    assert train_tokenizer(texts[:30], 400).backend_tokenizer.to_str() != rules
    assert len(train_tokenizer(["aaa", None, ""], 400)) < 300


def test_errors(tmp_path):
    for size in (0, 257, 300.0):
        with pytest.raises(TextError, match=f"vocab_size={size}: use an integer of at least 258"):
            train_tokenizer(["text"], size)
    (tmp_path / "tokenizer.json").write_text("{")
    for source in (tmp_path, tmp_path / "nowhere", "nobody/nothing", "no id!"):
        with pytest.raises(TextError, match=r"No tokenizer in .*: give .bytes., a folder .* or the id"):
            load_tokenizer(source)
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(TextError, match=r"no padding token: set tokenizer\.pad_token = tokenizer\.eos_token"):
        pad_id(bare)
    with pytest.raises(TextError, match=r"no end-of-text token.*tokenizer\.eos_token ="):
        end_of_text_id(bare)
    bare.save_pretrained(tmp_path)
    with pytest.raises(TextError, match="no end-of-text token"):
        load_tokenizer(str(tmp_path))
    assert pad_id(BYTES) == 257
    assert encode(load_tokenizer("bytes"), ["a"]) == [[97, 256]]
