#!/usr/bin/env python3
"""Renews what the documents say about every architecture: run it where dsf_models is installed.

From the registries the table of architectures in README.md, docs/architectures.md and docs/tasks.md; from
docs/compatibility.json, which scripts/compatibility.sh makes by running the tests, the table of features in README.md.
"""

import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from dsf_models.analysis import ConfigField, architecture_rows, config_fields, markdown_table
from dsf_models.backbone import DSFConfig, TimeInvariantConfig, get_architecture, list_architectures
from dsf_models.tasks import RegressionTask, SyntheticTask, Task, get_task, list_tasks

ROOT = Path(__file__).parents[1]
README, PAGE, TASKS_PAGE = ROOT / "README.md", ROOT / "docs" / "architectures.md", ROOT / "docs" / "tasks.md"
BEGIN, END = "<!-- architectures: made by scripts/tables.py -->\n", "<!-- end of architectures -->"
OUTCOMES = ROOT / "docs" / "compatibility.json"
BEGIN_FEATURES, END_FEATURES = "<!-- features: made by scripts/compatibility.sh -->\n", "<!-- end of features -->"
HEAD = """# The architectures

What each one computes, where it comes from, and what can be set. `dsf-models fields NAME` prints the same tables.
A field that an architecture declares again, mostly for a default of its own, stands with that architecture.

<!-- made by scripts/tables.py from the registry and the docstrings: change those, then run it -->
"""


TASKS_HEAD = """# The tasks

Synthetic tasks as data sets of `datasets`: generated when asked for, nothing is downloaded.

```python
from dsf_models.tasks import get_task, load_task

train = load_task("mqar", split="train", seed=0, num_examples=1000, sequence_length=64, num_pairs=4)
stream = load_task("mqar", split="train", seed=0, num_examples=10**9, streaming=True)
print(train[0]["input_ids"][:8], next(iter(stream))["labels"][:8])
print(get_task("mqar").describe()["best_trivial"])  # what the best rule without any recall reaches
```

Example i is a function of the sizes and of (seed, split, i): it depends on no order, batch, worker or number of
examples. `labels[t]` is the target of the output at position t, without a shift; -100 is not scored. Where examples
differ in length, pads fill them up and `attention_mask` tells. Every task knows what guessing reaches (`chance`) and
what the best rule of a simple kind reaches that does not solve it (`best_trivial`).

<!-- made by scripts/tables.py from the registry and the docstrings: change those, then run it -->
"""


def main() -> None:
    """Renew all."""
    text = README.read_text(encoding="utf-8")
    text = between(text, BEGIN, f"{markdown_table(architecture_rows())}\n", END)
    text = between(text, BEGIN_FEATURES, features_table(), END_FEATURES)
    README.write_text(text, encoding="utf-8")
    PAGE.write_text(architectures_page(), encoding="utf-8")
    TASKS_PAGE.write_text(tasks_page(), encoding="utf-8")


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


def tasks_page() -> str:
    """Return the text of docs/tasks.md."""
    tasks = [get_task(name) for name in list_tasks(SyntheticTask)]
    rows = [
        (f"[`{t.name}`](#{t.name})", _first_line(t), f"{100 * t.chance:.2f} %", f"{100 * t.best_trivial:.2f} %")
        for t in tasks
    ]
    baselines = markdown_table(rows, ("task", "what is asked", "chance", "best trivial rule"), code=False)
    numbers = [(f"[`{name}`](#{name})", _first_line(get_task(name))) for name in list_tasks(RegressionTask)]
    regression = markdown_table(numbers, ("task of real numbers", "what is asked"), code=False)
    note = "Baselines are those of the default sizes."
    return "\n\n".join([TASKS_HEAD.strip(), baselines, note, regression, *map(_task_section, list_tasks())]) + "\n"


def _first_line(task: Task) -> str:
    return inspect.getdoc(type(task)).split("\n")[0]


def _task_section(name: str) -> str:
    kind = type(get_task(name))
    docstring = inspect.getdoc(sys.modules[kind.__module__]) if _is_alone(kind) else ""
    table = _table(config_fields(kind, Task), "size")
    parts = [f"## `{name}`", docstring, inspect.getdoc(kind).split("\n\nRaises:")[0], table]
    return "\n\n".join(part for part in parts if part)


def _is_alone(kind: type[Task]) -> bool:
    """Whether a task has its module to itself."""
    return sum(kind.__module__ == type(get_task(name)).__module__ for name in list_tasks()) == 1


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


def _table(fields: Iterable[ConfigField], what: str = "field") -> str:
    rows = [(field.name, f"`{field.shown}`", field.description) for field in fields]
    return markdown_table(rows, (what, "default", "meaning"))


if __name__ == "__main__":
    main()
