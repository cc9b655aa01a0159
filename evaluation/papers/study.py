"""What a study is: the sweep that answers its question, and how its results are laid out and compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of the sweep, as a reader sees it."""

    key: str
    """Its name in the sweep."""

    label: str
    """Its name in tables and figures."""

    log: bool = False
    """Whether a figure shows it on a log scale."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One experiment of a paper, or one of ours in its place."""

    name: str
    """Its name on the command line and in folders."""

    paper: str
    """Folder of its configurations, `configs/papers/<paper>`."""

    title: str
    """Its title."""

    question: str
    """What it asks."""

    stated: str
    """What the paper says, as far as it is known."""

    ours: str
    """What is different here."""

    unknown: str
    """What cannot be compared, and why."""

    series: Axis
    """What the lines of the figure differ in."""

    x: Axis
    """What stands along the figure."""

    panels: Axis | None = None
    """What its panels differ in, where the sweep has that axis."""

    heat_map: bool = False
    """Whether its figure shows a panel as a matrix: a row for each place of `x`, a column for each of `series`."""

    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of series whose accuracies are subtracted, seed by seed."""

    observe: Callable[[Path], Mapping[str, Any]] | None = field(default=None)
    """What is read from the checkpoint of each finished run besides its scores, as plain values."""

    def config(self, size: str) -> Path:
        """The file of its sweep."""
        return ROOT / "configs" / "papers" / self.paper / f"{self.name}_{size}.yaml"

    def results(self, size: str) -> Path:
        """The folder of its results, which is kept under version control."""
        return ROOT / "evaluation" / "results" / f"{self.paper}_{self.name}_{size}"
