"""Token ids as words, and back."""

import pytest
from transformers import AutoTokenizer

from dsf_models.tasks.words import parse, render, word_tokenizer


def test_ids_come_back_from_their_words(tmp_path):
    ids = [0, 5, 10, 0, 0, 11, 1]
    assert render(ids) == "w0 w5 w10 w0 w0 w11 w1"
    assert parse(render(ids)) == ids
    word_tokenizer(12).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 12
    assert tokenizer(render(ids)).input_ids == ids
    assert tokenizer.decode(ids) == render(ids)
    with pytest.raises(ValueError, match="give words such as w17"):
        parse("w1 v2")
