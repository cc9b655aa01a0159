"""The figure of an evaluation, drawn from its results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsf_models.analysis.plots import draw_baselines, save, style, tidy

_DODGE = 0.06


def draw(results: Mapping[str, Any], facet: str, path: Path) -> None:
    """Draw accuracy by facet, one line per model, with intervals and both baselines.

    Args:
        results: the content of `results.json`.
        facet: a facet that all models were scored by.
        path: PNG file to write.
    """
    models = results["models"]
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    for i, model in enumerate(models):
        _draw_model(axes, model, facet, i, offset=_DODGE * (i - (len(models) - 1) / 2))
    draw_baselines(axes, results["suite"])
    _label(axes, results["suite"], facet, models[0]["by"][facet])
    save(figure, path)


def _draw_model(axes: Axes, model: Mapping[str, Any], facet: str, index: int, offset: float) -> None:
    bins = model["by"][facet]
    values = [100 * entry["accuracy"] for entry in bins]
    below = [100 * (entry["accuracy"] - entry["interval"][0]) for entry in bins]
    above = [100 * (entry["interval"][1] - entry["accuracy"]) for entry in bins]
    axes.errorbar(
        [position + offset for position in range(len(bins))],
        values,
        yerr=[below, above],
        label=f"{model['label']} ({100 * model['accuracy']['accuracy']:.1f} % overall)",
        capsize=3,
        **style(index),
    )


def _label(axes: Axes, suite: Mapping[str, Any], facet: str, bins: Sequence[Mapping[str, Any]]) -> None:
    ranges = [(entry["from"], entry["to"]) for entry in bins]
    axes.set_xticks(range(len(bins)), [str(first) if first == last else f"{first}–{last}" for first, last in ranges])
    axes.set_xlabel(f"{facet} (tokens)" if facet == "gap" else facet)
    axes.set_ylabel("accuracy (%)")
    tidy(axes)
    axes.set_title(f"{suite['name']}: accuracy by {facet}, {suite['num_examples']:,} {suite['split']} examples")
    axes.figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
