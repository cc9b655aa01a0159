"""The figures of an evaluation, drawn from its results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dsf_models.analysis.plots import draw_baselines, save, style, tidy
from evaluation.results import curves_named

_DODGE = 0.06
_LABEL_ROOM = 40
"""Characters that stand beside each other under an axis."""


def draw(results: Mapping[str, Any], name: str, path: Path) -> None:
    """Draw one curve of all models that have it, with intervals and baselines.

    Args:
        results: the content of `results.json`.
        name: of the curve.
        path: PNG file to write.
    """
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    draw_curve(axes, results, name)
    axes.set_title(title(results["suite"], name))
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    save(figure, path)


def draw_curve(axes: Axes, results: Mapping[str, Any], name: str) -> None:
    """Draw one curve of all models that have it, without title and legend."""
    pairs = curves_named(results, name)
    first = pairs[0][1]
    places = place_of([point["x"] for _, curve in pairs for point in curve["points"]])
    for i, (model, curve) in enumerate(pairs):
        _draw_line(axes, model, curve, i, places, offset=i - (len(pairs) - 1) / 2)
    if first["is_fraction"]:
        _draw_levels(axes, first["points"], places)
        tidy(axes)
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    if first["trained_at"] is not None:
        axes.axvline(places[first["trained_at"]], color="0.7", linewidth=1, label="as trained")
    _label(axes, first, places)


def title(suite: Mapping[str, Any], name: str) -> str:
    """What stands above the figure of a curve."""
    count = f", {suite['num_examples']:,} {suite['split']} examples" if "num_examples" in suite else ""
    return f"{suite['name']}: {name}{count}"


def place_of(values: Sequence[Any]) -> dict[Any, float]:
    """Where each value stands on the axis: numbers at themselves, names of bins one after the other."""
    if all(isinstance(value, int | float) for value in values):
        return {value: float(value) for value in sorted(set(values))}
    return {value: float(i) for i, value in enumerate(dict.fromkeys(values))}


def is_numeric(places: Mapping[Any, float]) -> bool:
    """Whether an axis is one of numbers."""
    return not isinstance(next(iter(places)), str)


def _draw_line(
    axes: Axes,
    model: Mapping[str, Any],
    curve: Mapping[str, Any],
    index: int,
    places: Mapping[Any, float],
    offset: float,
) -> None:
    scale = 100 if curve["is_fraction"] else 1
    points = [point for point in curve["points"] if point["value"] is not None]
    if not points:
        return
    # Lines that coincide stand beside each other: on an axis of doublings by a factor, on one of bins by a step.
    numeric = is_numeric(places)
    x = [places[p["x"]] * 2 ** (_DODGE * offset) if numeric else places[p["x"]] + _DODGE * offset for p in points]
    values = [scale * point["value"] for point in points]
    ends = [point["interval"] or (point["value"], point["value"]) for point in points]
    below = [value - scale * low for value, (low, _) in zip(values, ends, strict=True)]
    above = [scale * high - value for value, (_, high) in zip(values, ends, strict=True)]
    label = model["label"]
    if "accuracy" in model and curve["is_fraction"]:
        label = f"{label} ({100 * model['accuracy']['accuracy']:.1f} % overall)"
    axes.errorbar(x, values, yerr=[below, above], label=label, capsize=3, **style(index))


def _draw_levels(axes: Axes, points: Sequence[Mapping[str, Any]], places: Mapping[Any, float]) -> None:
    """Draw the baselines: as levels where they are the same everywhere, else as lines."""
    known = [point for point in points if point["chance"] is not None and point["best_trivial"] is not None]
    if not known:
        return
    if len({(point["chance"], point["best_trivial"]) for point in known}) == 1:
        draw_baselines(axes, known[0])
        return
    x = [places[point["x"]] for point in known]
    for name, key, line in (("best trivial rule", "best_trivial", "--"), ("chance", "chance", ":")):
        values = [100 * point[key] for point in known]
        axes.plot(x, values, color="0.35", linestyle=line, linewidth=1.2, label=name)


def _label(axes: Axes, curve: Mapping[str, Any], places: Mapping[Any, float]) -> None:
    if is_numeric(places):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(list(places.values()))
    else:
        crowded = sum(map(len, places)) > _LABEL_ROOM
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(list(places.values()), list(places), **turned)
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(f"{curve['y']} (%)" if curve["is_fraction"] else curve["y"])
