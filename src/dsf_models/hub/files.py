"""Files and folders that are either whole or absent: written under another name, then renamed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old file or the new one, never a part of it."""
    unfinished = unfinished_name(path)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, in one step.

    Raises:
        ValueError: where `content` holds NaN or infinity, which JSON cannot express.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the place of `path` only when the block ends without an error.

    Args:
        path: the final folder; one that is already there is replaced.

    Yields:
        The folder to write to, empty.
    """
    unfinished = unfinished_name(path)
    remove_folder(unfinished)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        remove_folder(unfinished)
        raise
    remove_folder(path)
    unfinished.rename(path)


def unfinished_name(path: Path) -> Path:
    """The name under which a file or folder is written before it takes its place at `path`."""
    return path.with_name(path.name + ".unfinished")


def remove_folder(path: Path) -> None:
    """Remove a folder and all that it holds, if it is there."""
    if path.exists():
        shutil.rmtree(path)
