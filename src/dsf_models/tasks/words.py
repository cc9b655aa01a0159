"""Token ids of synthetic tasks as words, for tools that speak text alone: id 17 is the word w17.

A model that was trained on ids has no tokenizer; `word_tokenizer` gives its ids back, one for each word.
Any other model reads the same words by its own tokenizer, in as many tokens as that makes of them.
"""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dsf_models.errors import require

_WORD = re.compile(r"w(\d+)")


def word(token_id: int) -> str:
    """The word of a token id."""
    return f"w{int(token_id)}"


def render(ids: Iterable[int]) -> str:
    """The words of token ids, with a space between two."""
    return " ".join(map(word, ids))


def parse(text: str) -> list[int]:
    """The ids of words, back from `render`.

    Raises:
        ValueError: a word that stands for no id.
    """
    found = []
    for part in text.split():
        match = _WORD.fullmatch(part)
        require(match is not None, "text", part, "give words such as w17")
        found.append(int(match[1]))
    return found


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer that makes of `render(ids)` these ids again, for a model of that vocabulary.

    It adds nothing in front or behind. Word w0 also fills up batches and stands for the end of text, since tools
    ask for such tokens and all ids are taken: use it to score texts, and stop generation by length.

    Args:
        vocab_size: number of ids.

    Returns:
        The tokenizer; `save_pretrained(folder)` keeps it beside the model's weights.
    """
    require(vocab_size >= 1, "vocab_size", vocab_size, "give at least 1")
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(vocab_size)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=word(0),
        eos_token=word(0),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
