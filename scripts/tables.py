#!/usr/bin/env python3
"""Renews what the documents say about every architecture: run it where dsf_models is installed.

From the registry the table of architectures in README.md and docs/architectures.md; from docs/compatibility.json,
which scripts/compatibility.sh makes from the tests' results, the table of features in README.md.
"""

import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from dsf_models.analysis import ConfigField, architecture_rows, config_fields, markdown_table
from dsf_models.backbone import DSFConfig, TimeInvariantConfig, get_architecture, list_architectures

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- architectures: made by scripts/tables.py -->\n", "<!-- end of architectures -->"
OUTCOMES = ROOT / "docs" / "compatibility.json"
BEGIN_FEATURES, END_FEATURES = "<!-- features: made by scripts/compatibility.sh -->\n", "<!-- end of features -->"
HEAD = """# The architectures

What each one computes, where it comes from, and what can be set. `dsf-models fields NAME` prints the same tables.
A field that an architecture declares again, mostly for a default of its own, stands with that architecture.

<!-- made by scripts/tables.py from the registry and the docstrings: change those, then run it -->
"""


def main() -> None:
    """Renew all."""
    text = README.read_text(encoding="utf-8")
    text = between(text, BEGIN, f"{markdown_table(architecture_rows())}\n", END)
    text = between(text, BEGIN_FEATURES, features_table(), END_FEATURES)
    README.write_text(text, encoding="utf-8")
    PAGE.write_text(architectures_page(), encoding="utf-8")


def between(text: str, begin: str, content: str, end: str) -> str:
    """Return the text with what stands between two marks replaced."""
    before, rest = text.split(begin)
    return f"{before}{begin}{content}{end}{rest.split(end)[1]}"


def features_table() -> str:
    """Return the table of features and architectures, with the reason where one has not the other."""
    outcomes = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    reasons: list[str] = []
    rows = [(title, *(_cell(row[name], reasons) for name in list_architectures())) for title, row in outcomes.items()]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    names = [f"`{name}`" for name in list_architectures()]
    return "\n".join([markdown_table(rows, ("feature", *names), code=False), "", *notes]).rstrip() + "\n"


def _cell(reason: str, reasons: list[str]) -> str:
    if not reason:
        return "✓"
    if reason not in reasons:
        reasons.append(reason)
    mark = "✓" if reason.startswith("in part: ") else "no"
    return f"{mark} ({reasons.index(reason) + 1})"


def architectures_page() -> str:
    """Return the text of docs/architectures.md."""
    parts = [HEAD, *map(_section, list_architectures())]
    parts += ["## Fields of every architecture", _table(config_fields(DSFConfig))]
    shared = [field for field in config_fields(TimeInvariantConfig) if field.owner is TimeInvariantConfig]
    parts += ["## Fields of every time-invariant architecture", _table(shared)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(name: str) -> str:
    config_class = get_architecture(name).config_class
    own = [field for field in config_fields(config_class) if field.owner not in (DSFConfig, TimeInvariantConfig)]
    note = (
        "\n\nTime-invariant: it can also be two-sided or windowed."
        if issubclass(config_class, TimeInvariantConfig)
        else ""
    )
    docstring = inspect.getdoc(sys.modules[config_class.__module__])
    return f"## `{name}`\n\n{docstring}{note}\n\n{_table(own)}"


def _table(fields: Iterable[ConfigField]) -> str:
    rows = [(field.name, f"`{field.shown}`", field.description) for field in fields]
    return markdown_table(rows, ("field", "default", "meaning"))


if __name__ == "__main__":
    main()
