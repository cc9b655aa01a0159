"""The fields of a configuration or a task, with defaults and meanings, read from the classes that declare them."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from ..backbone import DSFConfig

__all__ = ["ConfigField", "config_fields"]


@dataclass(frozen=True)
class ConfigField:
    """One field of a configuration or a task."""

    name: str
    default: Any
    description: str
    """The docstring below the field, in one line."""
    owner: type
    """The most special class that declares it."""

    @property
    def shared(self) -> bool:
        """Whether it is as in every architecture, default and all."""
        return self.owner is DSFConfig

    @property
    def shown(self) -> str:
        """The default as Python writes it, a word in double quotes."""
        return f'"{self.default}"' if isinstance(self.default, str) else repr(self.default)


def config_fields(config_class: type, root: type = DSFConfig) -> list[ConfigField]:
    """Return the project's own fields of a dataclass, the shared ones first.

    A field that a subclass declares again is the subclass's own; where that says nothing about it, its meaning is as
    before.

    Args:
        config_class: a configuration class, or that of a task.
        root: the base class whose fields are the first ones.
    """
    found: dict[str, tuple[str, type]] = {}
    for base in reversed(config_class.__mro__):
        if issubclass(base, root):
            for name, text in _declared(base).items():
                found[name] = (text or found.get(name, ("", base))[0], base)
    defaults = config_class.__dataclass_fields__
    return [ConfigField(name, defaults[name].default, text, owner) for name, (text, owner) in found.items()]


def _declared(config_class: type) -> dict[str, str]:
    """Return the fields that a class declares itself, with the docstrings below them."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    found: dict[str, str] = {}
    for node, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("ClassVar"):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            found[node.target.id] = " ".join(text.split())
    return found
