"""Help for a name that was misspelt."""

import difflib
from collections.abc import Iterable


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
