"""Documents with a class each, split by their own text."""

import csv
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from dsf_models.tasks.text.documents import Paths, find_files, split_of
from dsf_models.tasks.text.errors import TextError, require

LENGTH = 4096
"""Bytes of a document that a classifier reads where nobody says otherwise, as in the Long Range Arena."""
FRACTIONS = {"validation": 0.1, "test": 0.2}
"""Shares of the documents that select the weights of a classifier and that it is tested on, wherever one is made."""


@dataclass(frozen=True)
class LabelledDocuments:
    """The documents of a split, and their classes."""

    texts: list[str]
    """In a random order that follows from the seed and the texts: files are often sorted by class."""

    labels: list[int]
    """The class of each, an index into `classes`."""

    classes: tuple[str, ...]
    """Names of the classes of all splits together, sorted, so that an index means the same in each of them."""


def labelled_documents(
    paths: Paths,
    split: str,
    fractions: Mapping[str, float] = FRACTIONS,
    *,
    column: str = "text",
    label: str = "label",
    seed: int = 0,
) -> LabelledDocuments:
    """The documents of one split of CSV files, and their classes.

    A document's own text decides which split it belongs to, see `split_of`, and one that occurs twice counts once: who
    trains on "train" of the same fractions and seed has seen no document of "test".

    Args:
        paths: CSV files with a header, folders or globs of them.
        split: "train", "validation" or "test".
        fractions: of "validation" and "test".
        column: holds the text.
        label: holds the class.
        seed: of the split.

    Raises:
        TextError: no CSV file, a file without these columns, or an empty split.
    """
    csv.field_size_limit(sys.maxsize)
    found: dict[str, str] = {}
    for file in find_files(paths):
        require(file.suffix.lower() == ".csv", f"{file} is no CSV file: classes are read from CSV files.")
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                table = csv.DictReader(lines)
                for name in (column, label):
                    known = table.fieldnames or []
                    require(name in known, f"{file} has no column {name!r}; its columns: {', '.join(known)}")
                for row in table:
                    if (row[column] or "").strip():
                        where = f"{file}, line {table.line_num}"
                        require(bool((row[label] or "").strip()), f"{where}: no class in column {label!r}")
                        found.setdefault(row[column], row[label])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TextError(f"{file} cannot be read as CSV: {error}") from error
    chosen = {text: name for text, name in found.items() if split_of(text, fractions, seed) == split}
    require(bool(chosen), f"The split {split!r} of the documents is empty: give more documents.")
    texts = sorted(chosen, key=lambda text: sha256(f"order {seed}/{text}".encode("utf-8", "surrogatepass")).digest())
    classes = tuple(sorted(set(found.values())))
    return LabelledDocuments(texts, [classes.index(chosen[text]) for text in texts], classes)


def byte_ids(text: str, length: int) -> list[int]:
    """The first `length` bytes of a text, as `byte_tokenizer` numbers them, without an end of text."""
    return list(text.encode("utf-8", "replace")[:length])
