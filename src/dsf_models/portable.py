"""Code that travels with a checkpoint: loaded with trust_remote_code=True, it does without this package.

The Hub takes flat folders of modules that import one another as `from .name import ...`. The modules that an
architecture needs are found by their import statements, and these alone are rewritten, where the syntax tree says that
they stand.
"""

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .version import __version__

__all__ = ["ENTRY", "FLAT", "IS_COPY", "auto_map", "code_files", "is_own", "is_portable", "write_code"]

PACKAGE = "dsf_models"
ENTRY = "modeling_dsf"
"""The module that transformers loads first."""
FLAT = "dsf_"
"""What the names of all other modules in the folder begin with."""
IS_COPY = __name__.startswith("transformers_modules.")
"""Whether this module is itself one that travelled with a checkpoint."""


def is_own(module: str) -> bool:
    """Return whether a module lies beside this one: in the package, or in the same checkpoint's code."""
    return _root(module) == _root(__name__)


def auto_map(classes: Mapping[str, str]) -> dict[str, str]:
    """Return what config.json says about the code beside it, by the names of Auto classes and ours."""
    return {auto: f"{ENTRY}.{name}" for auto, name in classes.items()}


def is_portable(found: Mapping[str, str] | None) -> bool:
    """Return whether an auto_map, of a folder or of the Hub, leads to code that this module wrote."""
    return bool(found) and all(str(value).rpartition("--")[2].startswith(f"{ENTRY}.") for value in found.values())


def write_code(folder: Path, modules: Iterable[str], classes: Iterable[str]) -> None:
    """Write the code of a checkpoint beside its weights; a copy hands itself on.

    Args:
        folder: the checkpoint's folder.
        modules: full names of the modules that define its architecture, and those of its layers.
        classes: names of the classes that Auto classes ask for, all defined in the first module.
    """
    if IS_COPY:
        beside = Path(__file__).parent
        files = {path.name: path.read_text(encoding="utf-8") for path in beside.glob("*.py") if _travels(path.stem)}
    else:
        files = code_files(list(modules), sorted(classes))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def code_files(modules: list[str], classes: list[str]) -> dict[str, str]:
    """Return the files of an architecture's code, by name.

    Args:
        modules: full names of the modules that register its architectures; the first one defines `classes`.
        classes: names that the entry offers.

    Raises:
        ValueError: a module imports all names of another by a star, which cannot be followed.
    """
    files, waiting = {}, list(modules)
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if name not in files:
            files[name], needed = _flattened(module)
            waiting += needed
    files[f"{ENTRY}.py"] = _entry(modules, classes)
    return dict(sorted(files.items()))


def _root(module: str) -> str:
    return module.rpartition(".")[0] if IS_COPY else module.partition(".")[0]


def _travels(stem: str) -> bool:
    return stem == ENTRY or stem.startswith(FLAT)


def _entry(modules: list[str], classes: list[str]) -> str:
    names = "".join(f"        {name},\n" for name in classes)
    bundled = "".join(
        f"    from .{_flat(module)} import __name__ as _  # registers its mixer\n" for module in modules[1:]
    )
    return (
        '"""The model of this checkpoint: by dsf_models where a version is installed that can read it, else by the\n'
        'files beside this one."""\n\n'
        "from packaging.version import Version\n\n"
        "try:\n"
        f"    import {PACKAGE}\n\n"
        f'    if Version({PACKAGE}.__version__) < Version("{__version__}"):\n'
        f'        raise ImportError("this checkpoint is of dsf_models {__version__}")\n'
        f"    from {modules[0]} import (\n{names}    )\n"
        "except ImportError:\n"
        f"{bundled}"
        f"    from .{_flat(modules[0])} import (\n{names}    )\n\n"
        f"__all__ = {classes!r}\n"
    )


def _flat(module: str) -> str:
    """Return the name of a module in the folder: dsf_models.backbone.cache is dsf_backbone_cache."""
    return FLAT + module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def _flattened(module: str) -> tuple[str, list[str]]:
    """Return the text of a module with its imports of ours rewritten, and the modules that they lead to."""
    text, tree = _source(module)
    lines, needed = text.splitlines(keepends=True), []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        origin = _origin(module, node)
        if _is_ours(origin):
            statements = list(_statements(origin, node, needed))
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = [f"{indent}{statement}\n" for statement in statements]
    return "".join(lines), needed


def _statements(origin: str, node: ast.ImportFrom, needed: list[str]) -> Iterator[str]:
    """Yield flat imports of what one statement imports, from where it is defined."""
    names: dict[str, list[str]] = {}
    for alias in node.names:
        module, name = _defined(origin, alias.name)
        needed.append(module)
        bound = alias.asname or alias.name
        if name is None:
            # `from . import name` is not seen by transformers, which would leave the file behind.
            yield "import sys"
            yield f"from .{_flat(module)} import __name__ as {bound}"
            yield f"{bound} = sys.modules[{bound}]"
        else:
            names.setdefault(module, []).append(name if name == bound else f"{name} as {bound}")
    for module, found in names.items():
        yield f"from .{_flat(module)} import ({', '.join(found)})"


def _defined(module: str, name: str) -> tuple[str, str | None]:
    """Return the module that defines a name, behind packages that hand it on; None for the name of a module itself."""
    if name == "*":
        raise ValueError(f"{module} is imported by a star: name what is needed.")
    if not _is_package(module):
        return module, name
    for node in _source(module)[1].body:
        if isinstance(node, ast.ImportFrom) and _is_ours(_origin(module, node)) and _origin(module, node) != module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _defined(_origin(module, node), alias.name)
    return (f"{module}.{name}", None) if _path(f"{module}.{name}") else (module, name)


def _origin(module: str, node: ast.ImportFrom) -> str:
    """Return the full name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + _is_package(module)]
    return ".".join([*parts, *([node.module] if node.module else [])])


@functools.cache
def _source(module: str) -> tuple[str, ast.Module]:
    text = Path(_path(module)).read_text(encoding="utf-8")
    return text, ast.parse(text)


def _is_package(module: str) -> bool:
    return Path(_path(module)).name == "__init__.py"


@functools.cache
def _path(module: str) -> str | None:
    """Return the file of a module that is imported, or could be."""
    if module in sys.modules:
        return sys.modules[module].__file__
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return spec.origin if spec else None
