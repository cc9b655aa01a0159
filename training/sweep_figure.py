"""The learning-rate curves of a sweep, drawn from its table alone."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsf_models.analysis.plots import draw_baselines, save, style, tidy
from training.sweep_config import LEARNING_RATE
from training.sweep_table import ARCHITECTURE, WINDOW, Point, Row

_COLUMNS = 3


def draw_learning_rates(rows: Sequence[Row], path: Path) -> None:
    """Draw validation accuracy against learning rate, one panel for each architecture, one line for each of its rows.

    Where answers are real numbers it is the loss, on a log scale. A line is the mean over the seeds on the validation
    split; dots are single seeds on the test split. The good window of a panel with a single line is shaded, and its
    width stands in the panel's title.

    Args:
        rows: of a sweep that swept the learning rate.
        path: PNG file to write.
    """
    architectures = list(dict.fromkeys(row.axes[ARCHITECTURE] for row in rows))
    columns = min(_COLUMNS, len(architectures))
    height = ceil(len(architectures) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * height + 0.8), layout="constrained")
    panels = list(figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, architecture in zip(panels, architectures, strict=False):
        _draw_panel(axes, [row for row in rows if row.axes[ARCHITECTURE] == architecture], architecture)
    for axes in panels[len(architectures) :]:
        axes.axis("off")
    labelled = [axes.get_legend_handles_labels() for axes in figure.axes]
    legend = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    figure.legend(legend.values(), legend.keys(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    save(figure, path)


def _draw_panel(axes: Axes, rows: Sequence[Row], architecture: str) -> None:
    for i, row in enumerate(rows):
        _draw_row(axes, row, i)
    if len(rows) == 1 and rows[0].window is not None:
        _shade_window(axes, rows[0])
    drawn = [row.baselines for row in rows if row.baselines is not None]
    by_loss = any(point.losses and not point.has_accuracy for row in rows for point in row.points)
    if drawn and not by_loss:
        draw_baselines(axes, drawn[0])
    widths = ["none" if row.window is None else f"{100 * row.window:.0f} %" for row in rows]
    axes.set_title(f"{architecture} (window {', '.join(dict.fromkeys(widths))})", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.tick_params(labelbottom=True)
    if by_loss:
        axes.set_yscale("log")
        axes.set_ylabel("loss")
        axes.grid(axis="y", color="0.9")
    else:
        axes.set_ylabel("accuracy (%)")
        tidy(axes)


def _draw_row(axes: Axes, row: Row, index: int) -> None:
    points = [point for point in row.points if point.test is not None]
    rates = [point.axes[LEARNING_RATE] for point in points]
    look = style(index)
    label = ", ".join(str(value) for name, value in row.axes.items() if name != ARCHITECTURE) or "mean over seeds"
    means, scores = zip(*map(_drawn, points), strict=True) if points else ((), ())
    axes.plot(rates, means, label=f"{label} (validation)", **look)
    seeds = [(rate, score) for rate, all_seeds in zip(rates, scores, strict=True) for score in all_seeds]
    if seeds:
        axes.scatter(*zip(*seeds, strict=True), s=14, color=look["color"], alpha=0.45, label="one seed (test)")


def _drawn(point: Point) -> tuple[float | None, list[float]]:
    """A point's mean on the validation split and its scores on the test split: accuracies in %, or losses."""
    if point.has_accuracy:
        return 100 * point.validation, [100 * accuracy for accuracy in point.accuracies]
    return point.validation_loss, list(point.losses)


def _shade_window(axes: Axes, row: Row) -> None:
    """Shade each learning rate of the good window, up to half the way to its neighbours."""
    rates = [point.axes[LEARNING_RATE] for point in row.points]
    best = max(point.validation for point in row.points if point.complete)
    edges = [rates[0], *((a * b) ** 0.5 for a, b in pairwise(rates)), rates[-1]]
    for i, point in enumerate(row.points):
        if point.complete and point.validation >= best - WINDOW:
            axes.axvspan(edges[i], edges[i + 1], color="0.93", zorder=0)
