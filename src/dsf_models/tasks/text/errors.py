"""The error of everything in this package that whoever chose the text can put right."""


class TextError(ValueError):
    """Text, a tokenizer or a size that cannot be used; the message names it and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise TextError with this message unless the condition holds."""
    if not condition:
        raise TextError(message)
