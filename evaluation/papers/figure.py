"""The figure of a study, drawn from what it found alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsf_models.analysis.plots import save, style, tidy
from evaluation.papers.study import Study


def draw(study: Study, found: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy along the study's axis, a panel for each value of `panels`, a line for each of `series`.

    A line joins the means over the seeds; dots are single seeds. A study of heat maps has a matrix in each panel.

    Args:
        study: the study.
        found: as `outcome` gives it.
        path: PNG file to write.
    """
    if study.heat_map:
        save(heat_maps(study, found["cells"]), path)
        return
    cells = found["cells"]
    panels, series = values_of(cells, "panel"), values_of(cells, "series")
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False).flat, panels, strict=True):
        for i, name in enumerate(series):
            line = [cell for cell in cells if (cell["panel"], cell["series"]) == (panel, name)]
            draw_line(axes, line, str(name), i, values_of(cells, "x"))
        dress(axes, study, panel, values_of(cells, "x"))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=min(4, len(labels)))
    save(figure, path)


def heat_maps(study: Study, cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean accuracy in %, ">99" above 99, a row for each place of `x`, a column for each of `series`."""
    panels = values_of(cells, "panel")
    rows, columns = (sorted(values_of(cells, name)) for name in ("x", "series"))
    figure = Figure(figsize=(0.7 * len(panels) * (len(columns) + 1) + 1.2, 0.6 * len(rows) + 1.5), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        means = np.full((len(rows), len(columns)), np.nan)
        for cell in (cell for cell in cells if cell["panel"] == panel):
            means[rows.index(cell["x"]), columns.index(cell["series"])] = 100 * cell["accuracy"]["mean"]
        axes.imshow(means, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(means):
            words = "–" if np.isnan(value) else ">99" if value > 99 else f"{value:.0f}"
            axes.text(
                column, row, words, ha="center", va="center", color="black" if value > 55 else "white", fontsize=9
            )
        axes.set_xticks(range(len(columns)), [str(value) for value in columns])
        axes.set_yticks(range(len(rows)), [str(value) for value in rows])
        axes.set_xlabel(study.series.label)
        axes.set_title(str(panel), fontsize=9)
    grid[0].set_ylabel(study.x.label)
    return figure


def values_of(cells: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of an axis in the order in which they come."""
    return list(dict.fromkeys(cell[name] for cell in cells))


def draw_line(axes: Axes, cells: Sequence[Mapping[str, Any]], label: str, index: int, values: Sequence[Any]) -> None:
    """One series of one panel; `values` are those of the axis along it, where words stand at their ranks."""
    places = [cell["x"] if isinstance(cell["x"], int | float) else values.index(cell["x"]) for cell in cells]
    look = style(index)
    axes.plot(places, [100 * cell["accuracy"]["mean"] for cell in cells], label=label, **look)
    dots = [
        (place, 100 * value) for place, cell in zip(places, cells, strict=True) for value in cell["accuracy"]["values"]
    ]
    if dots:
        axes.scatter(*zip(*dots, strict=True), s=14, color=look["color"], alpha=0.45)


def dress(axes: Axes, study: Study, panel: Any, values: Sequence[Any]) -> None:
    """Labels, ticks and frame of a panel."""
    if study.x.log:
        axes.set_xscale("log", base=2)
    numbers = all(isinstance(value, int | float) for value in values)
    axes.set_xticks(values if numbers else range(len(values)), [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(study.x.label)
    axes.set_ylabel("accuracy (%)")
    axes.tick_params(labelleft=True)
    axes.set_title(study.title if panel is None else f"{study.panels.label} {panel}", fontsize=10)
    tidy(axes)
