"""Functions of packages that need not be installed."""

import functools
import importlib
from collections.abc import Callable

from torch import Tensor

__all__ = ["load", "missing"]


@functools.cache
def load(name: str) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """Return a function by its full name, importing its module."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)


@functools.cache
def missing(name: str) -> str | None:
    """Return what the import of a function fails of, None where it succeeds."""
    try:
        load(name)
    except ImportError as error:
        return str(error)
    return None
