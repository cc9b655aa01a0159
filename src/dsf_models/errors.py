"""The form of this project's error messages: the field, its value and the remedy, with the closest known names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = ["NotADynamicalSystemError", "did_you_mean", "require", "require_known", "suggest"]


class NotADynamicalSystemError(TypeError):
    """A mixer was asked for its (Λ, B, C, D), but its state is no linear function of the past state."""


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise ValueError "field=value: remedy" unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}={value!r}: {remedy}")


def require_known(field: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError with the closest of the known names unless the value is one of them."""
    require(value in known, field, value, f"unknown; {suggest(value, known)}")


def suggest(name: object, known: Sequence[str]) -> str:
    """Return the remedy for an unknown name: the closest of the known names, if any is close, and all of them."""
    return f"{did_you_mean(name, known)} choose from {', '.join(known)}".lstrip()


def did_you_mean(name: object, known: Iterable[str], similarity: float = 0.6) -> str:
    """Return "did you mean a or b?" with the closest of the known names, or nothing where none is that similar."""
    close = " or ".join(get_close_matches(str(name), list(known), n=2, cutoff=similarity))
    return f"did you mean {close}?" if close else ""
