"""Losses in units that do not depend on the tokenizer: bits per byte and per word of the documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dsf_models.tasks.text.errors import require


@dataclass(frozen=True)
class CodeLength:
    """The length of a code that gives the documents back, by their size."""

    bits_per_byte: float
    """Bits per byte of UTF-8."""
    bits_per_word: float
    """Bits per word between white space."""
    num_bytes: int
    """Bytes of UTF-8."""
    num_words: int
    """Words between white space."""


def code_length(nats: float, texts: Sequence[str], vocab_size: int) -> CodeLength:
    """The code length of whole documents from their negative log-likelihood.

        require(num_words > 0, "Bits per byte and per word: the documents hold no text.")
    bits = (nats + number of documents * log(vocab_size)) / log 2

    The first token of a document is not scored, so it is paid for at the uniform distribution; the end of text is
    scored. What a document costs is therefore all that is needed to write it down.

    Args:
        nats: sum over all scored tokens of the documents, each document scored as one piece.
        texts: the documents.
        vocab_size: of the tokenizer.

    Raises:
        TextError: there is not one word in the documents.
    """
    num_bytes = sum(len(text.encode()) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    require(num_words > 0, "Bits per byte and per word: the documents hold no text.")
    bits = (nats + len(texts) * math.log(vocab_size)) / math.log(2)
    return CodeLength(bits / num_bytes, bits / num_words, num_bytes, num_words)
