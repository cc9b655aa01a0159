"""The table of a sweep in Markdown, with what its reader has to be warned of."""

from collections.abc import Sequence
from typing import Any

from dsf_models.analysis.table import markdown_table
from training.sweep_config import LEARNING_RATE
from training.sweep_table import SOLVED, WINDOW, Point, Row, RunRecord

_TEST = ("mean", "min–max", f"success (> {100 * SOLVED:g})", "seeds")
_LEGEND = (
    f"Window: share of the learning rates whose mean validation accuracy is within {100 * WINDOW:g} points of the best."
)


def markdown(rows: Sequence[Row], runs: Sequence[RunRecord]) -> str:
    """The table as Markdown: the best point of each row, warnings, then every point."""
    finished = sum(run.result is not None for run in runs)
    best = [_best_cells(row) for row in rows]
    parts = [f"{finished} of {len(runs)} runs have finished.", "", markdown_table(best, _best_header(rows), code=False)]
    parts += ["", _legend(rows)]
    parts += [f"\nWarning: {warning}" for warning in warnings(rows)]
    if any(len(row.points) > 1 for row in rows):
        names = list(rows[0].points[0].axes)
        header = (*map(_short, names), "validation", *_TEST, "steps", "seconds")
        cells = [_point_cells(point, names) for row in rows for point in row.points]
        parts += ["", "## Every point", "", markdown_table(cells, header, code=False)]
    return "\n".join(parts) + "\n"


def _legend(rows: Sequence[Row]) -> str:
    """What the numbers are; the rows of a sweep are told in one kind of them, or have no result yet."""
    if any(point.losses and not point.has_accuracy for row in rows for point in row.points):
        return "Losses (squared errors), on the test split; the best point is chosen on the validation split."
    return f"Accuracies in %, on the test split; the best point is chosen on the validation split. {_LEGEND}"


def warnings(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table has to be told: best points at an edge, and runs without a result."""
    found = []
    for row in rows:
        name = ", ".join(map(_text, row.axes.values()))
        if row.at_edge:
            rate = _text(row.best.axes[LEARNING_RATE])
            found.append(f"{name}: the best {LEARNING_RATE}, {rate}, is at the edge of the range: widen the range.")
        if missing := sum(point.planned - point.finished for point in row.points):
            found.append(f"{name}: {missing} runs have no result; their points count as not solved.")
    return found


def _best_header(rows: Sequence[Row]) -> tuple[str, ...]:
    tuned = [name for name in rows[0].points[0].axes if name not in rows[0].axes]
    names = (*map(_short, rows[0].axes), "parameters", "state bytes", *map(_short, tuned), "validation", *_TEST)
    return (*names, "steps", "window", "best trivial")


def _best_cells(row: Row) -> tuple[str, ...]:
    tuned = [name for name in row.points[0].axes if name not in row.axes]
    names = [*row.axes, *tuned]
    if row.best is None:
        return (*map(_text, row.axes.values()), *["–"] * (len(_best_header([row])) - len(row.axes)))
    cells = _point_cells(row.best, names)
    state_bytes = "–" if row.best.state_bytes is None else f"{row.best.state_bytes:,}"
    sizes = (f"{row.best.parameters:,}", state_bytes)
    window = "–" if row.window is None else f"{100 * row.window:.0f} %"
    first, rest = cells[: len(row.axes)], cells[len(row.axes) : -1]
    trivial = "–" if row.baselines is None else _score(row.best, row.baselines["best_trivial"])
    return (*first, *sizes, *rest, window, trivial)


def _point_cells(point: Point, names: Sequence[str]) -> tuple[str, ...]:
    """Axes, validation, mean, min–max, success rate, seeds, steps, seconds."""
    axes = [_text(point.axes[name]) for name in names]
    test = point.test
    if test is None:
        return (*axes, "–", "–", "–", "–", f"{point.finished}/{point.planned}", "–", "–")
    return (
        *axes,
        _score(point, point.validation if point.has_accuracy else point.validation_loss),
        _score(point, test["mean"]),
        f"{_score(point, test['min'])}–{_score(point, test['max'])}",
        f"{100 * test['success_rate']:.0f} %" if point.has_accuracy else "–",
        f"{point.finished}/{point.planned}",
        f"{point.steps:,.0f}",
        f"{point.seconds:,.0f}",
    )


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _score(point: Point, number: float | None) -> str:
    """An accuracy in %, or a loss as it is."""
    if number is None:
        return "–"
    return f"{100 * number:.2f}" if point.has_accuracy else f"{number:.4g}"
