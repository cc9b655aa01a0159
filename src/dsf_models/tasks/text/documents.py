"""Documents, as datasets with one column `text`: of the Hub or of local files, at hand or streamed; and their splits.

    .txt .text .md .rst         plain text: one document a file, or documents parted by a line of your choice
    .jsonl .ndjson .json        JSON: one object a line (.json: or one list of objects)
    .csv                        a table with a header
    .parquet                    Arrow's table
    ... .gz                     any of these but Parquet, compressed

A document without text (empty, white space, null) is none.
"""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob, has_magic
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from dsf_models.errors import did_you_mean
from dsf_models.tasks.base import SPLITS
from dsf_models.tasks.text.errors import TextError, require
from dsf_models.version import __version__

Documents = Dataset | IterableDataset
Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
_FEATURES = Features({"text": Value("large_string")})


def hub_documents(
    dataset_id: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str = "text",
    revision: str | None = None,
    streaming: bool = False,
) -> Documents:
    """Documents of a dataset of the Hub.

    Args:
        dataset_id: such as "owner/name".
        config: its configuration, where it has several.
        split: its split; the whole dataset's own name, not one of `split_documents`.
        column: the column that holds the text.
        revision: branch, tag or commit.
        streaming: read while training instead of downloading first.

    Returns:
        One column `text`.

    Raises:
        TextError: no such dataset, configuration, split or column; the Hub cannot be reached.
    """
    what = f"dataset {dataset_id!r}"
    require(not Path(dataset_id).exists(), f"The {what} is a path on this machine: read its files as local files.")
    try:
        validate_repo_id(dataset_id)
        documents = load_dataset(dataset_id, config, split=split, revision=revision, streaming=streaming)
    except (DatasetNotFoundError, HFValidationError) as error:
        raise TextError(
            f"No {what} on the Hub that you can read: check the id (owner/name), or log in with `hf auth login` "
            f"if it is private. {error}"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise TextError(
            f"The Hub cannot be reached for the {what}: check the network and HF_HUB_OFFLINE, load it once where there "
            f"is a network, or give local files. {error}"
        ) from error
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise TextError(f"The {what} cannot be loaded with config={config!r}, split={split!r}: {error}") from error
    return _only_text(documents, what, column)


def file_documents(
    paths: Paths, *, column: str = "text", separator: str | None = None, streaming: bool = False
) -> Documents:
    """Documents of local files.

    Args:
        paths: files, folders (with their subfolders, holding one known type of files) and globs ("**" stands for
            subfolders), sorted by name; several of them in the order given, each file once.
        column: the column of JSON, CSV and Parquet files that holds the text.
        separator: the line that parts the documents of a plain text file ("" for an empty line); by default a file is
            one document.
        streaming: read while training instead of copying to the cache of `datasets` first; one shard a file.

    Returns:
        One column `text`.

    Raises:
        TextError: a path that leads to no file, an unknown type of file, a file without documents, that cannot be read,
            or without the column.
    """
    files = find_files(paths)
    arguments = {"files": [str(file) for file in files], "column": column, "separator": separator}
    if streaming:
        first_document(files, column, separator)
        return IterableDataset.from_generator(read_documents, features=_FEATURES, gen_kwargs=arguments)
    state = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    fingerprint = sha256(json.dumps([__version__, state, column, separator]).encode()).hexdigest()[:16]
    try:
        return Dataset.from_generator(read_documents, features=_FEATURES, gen_kwargs=arguments, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, TextError):
            raise error.__cause__ from None
        raise


def find_files(paths: Paths) -> list[Path]:
    """The files that paths, folders and globs lead to; see `file_documents`."""
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    require(bool(given), "No paths of text files given: name files, folders or globs.")
    found = dict.fromkeys(file.absolute() for path in given for file in _expand(str(path)))
    return list(found)


def read_documents(files: list[str], column: str, separator: str | None) -> Iterator[dict[str, str]]:
    """The documents of files, in order."""
    unreadable = OSError, EOFError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid
    for file in map(Path, files):
        read = _reader(file)
        count = 0
        try:
            for text in read(file, column, separator):
                if text and not text.isspace():
                    count += 1
                    yield {"text": text}
        except unreadable as error:  # a local name: modules may be gone when an open stream is closed at exit
            raise TextError(f"{file} cannot be read as {_suffix(file)} (text in UTF-8): {error}") from error
        require(count > 0, f"{file} holds no text: remove it from the paths.")


def first_document(files: Sequence[Path], column: str, separator: str | None) -> str:
    """The first document of the files, which shows early whether a stream can be read."""
    return next(read_documents([str(file) for file in files], column, separator))["text"]


def deduplicate(documents: Dataset) -> Dataset:
    """Keep the first of documents with the same text.

    Raises:
        TextError: the documents are streamed, so that what has been seen is not known when a run is resumed.
    """
    require(
        isinstance(documents, Dataset),
        "Streamed documents cannot be de-duplicated: use streaming=false, or de-duplicate the files beforehand.",
    )
    seen: dict[bytes, int] = {}
    for index, text in enumerate(_texts(documents)):
        seen.setdefault(sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], index)
    return documents.select(list(seen.values()))


def split_of(text: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of a document, a function of its text alone, so that no other document moves it.

    u = first 8 bytes of SHA-256("seed/text") as an integer / 2^64 is uniform on [0, 1); test takes the lowest u, then
    validation, and train what is left. Documents with the same text share a split.

    Args:
        text: the whole document.
        fractions: of "validation" and "test", summing to less than 1.
        seed: of the split.
    """
    digest = sha256(f"{seed}/{text}".encode("utf-8", "surrogatepass")).digest()
    u = int.from_bytes(digest[:8], "little") / 2**64
    for split in ("test", "validation"):
        u -= fractions.get(split, 0.0)
        if u < 0:
            return split
    return "train"


def split_documents(documents: Documents, fractions: Mapping[str, float], seed: int) -> dict[str, Documents]:
    """Split by document; see `split_of`.

    Returns:
        "train" and each split of `fractions`, in the documents' order.

    Raises:
        TextError: unknown splits, fractions that leave nothing for training, or (not streamed) an empty split.
    """
    _require_fractions(fractions)
    names = [split for split in SPLITS if split == "train" or split in fractions]
    if isinstance(documents, IterableDataset):
        return {name: documents.filter(_is_of, fn_kwargs=_split_arguments(name, fractions, seed)) for name in names}
    found = np.array([split_of(text, fractions, seed) for text in _texts(documents)])
    splits = {name: documents.select(np.flatnonzero(found == name)) for name in names}
    for name, part in splits.items():
        require(
            len(part) > 0,
            f"The split {name!r} is empty: {len(documents)} documents are too few for {dict(fractions)}; give more "
            "documents (separator parts those of a text file) or other fractions.",
        )
    return splits


def _split_arguments(name: str, fractions: Mapping[str, float], seed: int) -> dict[str, Any]:
    return {"name": name, "fractions": dict(fractions), "seed": seed}


def _is_of(example: dict[str, str], name: str, fractions: Mapping[str, float], seed: int) -> bool:
    return split_of(example["text"] or "", fractions, seed) == name


def _require_fractions(fractions: Mapping[str, float]) -> None:
    for name, fraction in fractions.items():
        require(name in ("validation", "test"), f"fractions: unknown split {name!r}; choose from validation, test")
        require(0 < fraction < 1, f"fractions.{name}={fraction!r}: use a number between 0 and 1")
    require(sum(fractions.values()) < 1, f"fractions={dict(fractions)}: leave something for training")


def _texts(documents: Dataset) -> Iterator[str]:
    for batch in documents.iter(batch_size=1000):
        for text in batch["text"]:
            yield text or ""


def _only_text(documents: Documents, what: str, column: str) -> Documents:
    known = documents.column_names
    if known is None:  # a stream that does not say; its first example does
        known = list(next(iter(documents), {}))
    require(column in known, _no_column(what, column, known))
    kind = documents.features[column].dtype if documents.features else "string"
    require(
        kind in ("string", "large_string"),
        f"column={column!r} of the {what} holds {kind}, not text; its columns: {', '.join(known)}",
    )
    documents = documents.select_columns([column])
    return documents if column == "text" else documents.rename_column(column, "text")


def _no_column(what: str, column: str, known: Sequence[str]) -> str:
    remedy = f"{did_you_mean(column, known)} choose from {', '.join(map(str, known))}".lstrip()
    return f"column={column!r}: the {what} has no such column; {remedy}"


# ---- files ----------------------------------------------------------------------------------------------------------


def _expand(path: str) -> list[Path]:
    if Path(path).is_file():
        _reader(Path(path))
        return [Path(path)]
    if Path(path).is_dir():
        return _inside(Path(path))
    matches = sorted(Path(match) for match in glob(path, recursive=True)) if has_magic(path) else []
    files = [file for file in matches if file.is_file()]
    require(bool(files), f"No file at {path!r}: check the path (relative ones start from {Path.cwd()}).")
    for file in files:
        _reader(file)
    return files


def _inside(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders that are of a known type, one for all; hidden ones are left out."""
    inside = sorted(file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder)))
    known = [file for file in inside if _suffix(file) in _READERS]
    others = sorted({file.suffix for file in inside})
    require(bool(known), f"The folder {folder} holds no file of a known type ({_known()}), only {others}.")
    types = {_READERS[_suffix(file)]: _suffix(file) for file in known}
    require(
        len(types) == 1,
        f"The folder {folder} holds files of several types ({', '.join(types.values())}): name those that you mean, "
        f"as in {folder / '**' / '*'}{next(iter(types.values()))}.",
    )
    return known


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix.lower() if file.suffix.lower() == ".gz" else file.suffix.lower()


def _known() -> str:
    return ", ".join(_READERS) + ", and .gz of them"


def _reader(file: Path) -> Callable[[Path, str, str | None], Iterator[str | None]]:
    require(_suffix(file) in _READERS, f"{file} is of no known type: use {_known()}.")
    return _READERS[_suffix(file)]


def _open(file: Path, newline: str | None = None) -> IO[str]:
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", newline=newline)


def _plain(file: Path, column: str, separator: str | None) -> Iterator[str]:
    with _open(file) as lines:
        if separator is None:
            yield lines.read()
            return
        document: list[str] = []
        for line in lines:
            if line.rstrip("\n") == separator:
                yield "".join(document).removesuffix("\n")
                document = []
            else:
                document.append(line)
        yield "".join(document).removesuffix("\n")


def _json_lines(file: Path, column: str, separator: str | None) -> Iterator[str | None]:
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                where = f"{file}, line {number}"
                yield _field(_parse(line, where), column, where)


def _json(file: Path, column: str, separator: str | None) -> Iterator[str | None]:
    with _open(file) as lines:
        is_list = lines.read(64).lstrip().startswith("[")
    if not is_list:
        yield from _json_lines(file, column, separator)
        return
    with _open(file) as lines:
        for number, record in enumerate(_parse(lines.read(), str(file)), 1):
            yield _field(record, column, f"{file}, entry {number}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TextError(f"{where}: not JSON ({error})") from error


def _field(record: object, column: str, where: str) -> str | None:
    require(isinstance(record, dict), f"{where}: use an object with a key {column!r}, not {type(record).__name__}")
    require(column in record, _no_column(f"object in {where}", column, list(record)))
    value = record[column]
    require(value is None or isinstance(value, str), f"{where}: {column!r} is {type(value).__name__}, not text")
    return value


def _csv(file: Path, column: str, separator: str | None) -> Iterator[str | None]:
    csv.field_size_limit(sys.maxsize)
    with _open(file, newline="") as lines:
        table = csv.DictReader(lines)
        require(column in (table.fieldnames or []), _no_column(f"table {file}", column, table.fieldnames or []))
        for row in table:
            yield row[column]


def _parquet(file: Path, column: str, separator: str | None) -> Iterator[str | None]:
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        require(column in schema.names, _no_column(f"table {file}", column, schema.names))
        kind = schema.field(column).type
        require(
            pa.types.is_string(kind) or pa.types.is_large_string(kind),
            f"column={column!r} of {file} holds {kind}, not text; its columns: {', '.join(schema.names)}",
        )
        for batch in table.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()


_READERS = {
    ".txt": _plain,
    ".text": _plain,
    ".md": _plain,
    ".rst": _plain,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
