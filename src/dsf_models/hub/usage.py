"""Errors that whoever gave a command can put right, and help for names that were misspelt."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn


class UsageError(ValueError):
    """Something that the user can put right; the message names the field, its value and the remedy."""


class CommandParser(argparse.ArgumentParser):
    """Raises UsageError with one line on what is wrong; shows descriptions as they are, and takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def closest(name: str, known: Iterable[str]) -> str:
    """End of an error message about an unknown name: the closest known name, or all of them where none is close.

    Args:
        name: what was given.
        known: what would have been accepted.

    Returns:
        A sentence such as "Did you mean 'mqar'?" or "Known: 'copying', 'mqar'."
    """
    names = sorted(set(known))
    matches = difflib.get_close_matches(name, names, n=1)
    if not matches:
        return "Known: " + ", ".join(map(repr, names)) + "."
    return f"Did you mean {matches[0]!r}?"


_UNKNOWN_KEY = (
    r"Group '(?P<group>[^']+)' does not accept option '(?P<option>[^']+)'",
    r"Option '(?P<option>[^']+)' is not accepted",
    r"unrecognized arguments: --(?P<option>[^\s=]+)",
)


def explain_parser_error(message: str, known_keys: Iterable[str]) -> str:
    """Turn a message of jsonargparse into one that names the closest known key where a key was unknown.

    Args:
        message: what the parser said.
        known_keys: all dotted keys that it accepts.

    Returns:
        The message to show.
    """
    for pattern in _UNKNOWN_KEY:
        if match := re.search(pattern, message):
            key = ".".join(part for part in match.groupdict().values() if part)
            return f"Unknown key {key!r}. {closest(key, known_keys)}"
    # YAML reads the bare words no, off, yes and on as truth values, also where a string such as "no" is meant.
    hint = " YAML reads a bare no or yes as a truth value: write it in quotes." if "Literal['no'" in message else ""
    return re.sub(r'Parser key "([^"]+)":\s*', r"\1: ", message) + hint
