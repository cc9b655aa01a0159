"""Text to language-model data: documents -> splits -> tokenizer -> packed rows, at hand (`pack`) or streamed."""

from dsf_models.tasks.text.baseline import KneserNey
from dsf_models.tasks.text.documents import (
    deduplicate,
    file_documents,
    hub_documents,
    split_documents,
    split_of,
)
from dsf_models.tasks.text.errors import TextError
from dsf_models.tasks.text.packing import Packed, pack
from dsf_models.tasks.text.stream import PackedStream
from dsf_models.tasks.text.tokenizers import (
    byte_tokenizer,
    encode,
    end_of_text_id,
    load_tokenizer,
    pad_id,
    train_tokenizer,
)
from dsf_models.tasks.text.units import CodeLength, code_length

__all__ = [
    "CodeLength",
    "KneserNey",
    "Packed",
    "PackedStream",
    "TextError",
    "byte_tokenizer",
    "code_length",
    "deduplicate",
    "encode",
    "end_of_text_id",
    "file_documents",
    "hub_documents",
    "load_tokenizer",
    "pack",
    "pad_id",
    "split_documents",
    "split_of",
    "train_tokenizer",
]
