"""Tokenizers: of the Hub, of a folder, of single bytes, or trained here; all of them `PreTrainedTokenizerFast`.

A document is text and nothing else: the name of a special token in it is encoded like any other text. Behind its last
token comes the end-of-text token.
"""

from collections.abc import Iterable, Sequence
from os import PathLike

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dsf_models.tasks.text.errors import TextError, require

BYTES = "bytes"
"""Name of the tokenizer of single bytes."""
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
_SPECIAL = [END_OF_TEXT, PAD]


def load_tokenizer(source: str | PathLike[str], revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer by name, with an end-of-text token.

    Args:
        source: "bytes", a folder, or an id of the Hub.
        revision: branch, tag or commit of the Hub.

    Raises:
        TextError: there is none, the Hub cannot be reached, or it has no end-of-text token.
    """
    if source == BYTES:
        return byte_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # a damaged tokenizer.json raises no kind of its own
        raise TextError(
            f'No tokenizer in {str(source)!r}: give "{BYTES}", a folder that a tokenizer was saved to, or the id of a '
            f"repository of the Hub that can be reached from here. {_first_line(error)}"
        ) from error
    end_of_text_id(tokenizer)
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer whose ids 0..255 are the bytes of UTF-8, followed by end of text (256) and pad (257).

    Every text comes back as it was.
    """
    return _byte_level(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_characters())}, merges=[]), False)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts give the same merges.

    The vocabulary is smaller than asked for where the texts hold too few different pairs: `len(tokenizer)` counts.

    Args:
        texts: documents of the training split, and of no other.
        vocab_size: tokens, with the 256 bytes and 2 special tokens among them.

    Returns:
        The tokenizer; `save_pretrained(folder)` keeps it, and `load_tokenizer(folder)` reads it.

    Raises:
        TextError: vocab_size leaves no room for the bytes.

    Source: R. Sennrich, B. Haddow, A. Birch, arXiv 1508.07909, on bytes as in GPT-2.
    """
    least = 256 + len(_SPECIAL)
    require(
        isinstance(vocab_size, int) and vocab_size >= least,
        f"vocab_size={vocab_size!r}: use an integer of at least {least}, the bytes, {END_OF_TEXT} and {PAD}",
    )
    tokenizer = _byte_level(models.BPE(), True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.backend_tokenizer.train_from_iterator(filter(None, texts), trainer)
    return _wrapped(tokenizer.backend_tokenizer)


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a document.

    Raises:
        TextError: the tokenizer has none.
    """
    require(
        tokenizer.eos_token_id is not None,
        f"The tokenizer {tokenizer.name_or_path!r} has no end-of-text token, which documents are joined by: "
        "name one of its tokens, as in tokenizer.eos_token = tokenizer.sep_token, and save it to a folder.",
    )
    return tokenizer.eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up a batch of documents of different lengths; packed rows need none.

    Raises:
        TextError: the tokenizer has none.
    """
    require(
        tokenizer.pad_token_id is not None,
        f"The tokenizer {tokenizer.name_or_path!r} has no padding token: set tokenizer.pad_token = tokenizer.eos_token "
        "(pads are masked, so any token does), or pack the documents, which needs no pads.",
    )
    return tokenizer.pad_token_id


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each document, with the end-of-text token behind them."""
    end = end_of_text_id(tokenizer)
    if not texts:
        return []  # tokenizers stumble over an empty batch
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    ).input_ids
    return [[*ids, end] for ids in encoded]


def _byte_level(model: models.Model, words: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte: itself where it prints, else one from 256 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
