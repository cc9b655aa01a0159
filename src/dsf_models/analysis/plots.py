"""How every figure looks: colours, markers, baselines, frame. It alone needs matplotlib, an extra of the library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "draw_baselines", "save", "style", "tidy"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which stays distinct under the common kinds of colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers differ as well as colours do."""
_DOTS_PER_INCH = 160


def style(index: int) -> dict[str, Any]:
    """Return colour, marker and widths of the line number `index`, from 0."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 6,
        "linewidth": 1.6,
    }


def draw_baselines(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Draw in % the accuracies that say what a result is worth: `chance` and `best_trivial`."""
    for name, key, line in (("best trivial rule", "best_trivial", "--"), ("chance", "chance", ":")):
        level = 100 * baselines[key]
        axes.axhline(level, color="0.35", linestyle=line, linewidth=1.2, label=f"{name} ({level:.2g} %)")


def tidy(axes: Axes) -> None:
    """Give an axis of accuracies in % its range, grid and frame."""
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure made without pyplot, which keeps every figure that it makes until it is told to close it."""
    figure.savefig(path, dpi=_DOTS_PER_INCH)
