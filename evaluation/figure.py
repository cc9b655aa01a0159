"""The figure of an evaluation, drawn from its results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's palette, which stays distinct under the common kinds of colour blindness; markers differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DODGE = 0.06


def draw(results: Mapping[str, Any], facet: str, path: Path) -> None:
    """Draw accuracy by facet, one line per model, with intervals and both baselines.

    Args:
        results: the content of `results.json`.
        facet: a facet that all models were scored by.
        path: PNG file to write.
    """
    models = results["models"]
    figure, axes = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
    for i, model in enumerate(models):
        _draw_model(axes, model, facet, i, offset=_DODGE * (i - (len(models) - 1) / 2))
    _draw_baselines(axes, results["suite"])
    _label(axes, results["suite"], facet, models[0]["by"][facet])
    figure.savefig(path, dpi=160)
    plt.close(figure)


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
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=6,
        linewidth=1.6,
        capsize=3,
    )


def _draw_baselines(axes: Axes, suite: Mapping[str, Any]) -> None:
    for name, key, style in (("best trivial rule", "best_trivial", "--"), ("chance", "chance", ":")):
        level = 100 * suite[key]
        axes.axhline(level, color="0.35", linestyle=style, linewidth=1.2, label=f"{name} ({level:.2g} %)")


def _label(axes: Axes, suite: Mapping[str, Any], facet: str, bins: Sequence[Mapping[str, Any]]) -> None:
    ranges = [(entry["from"], entry["to"]) for entry in bins]
    axes.set_xticks(range(len(bins)), [str(first) if first == last else f"{first}–{last}" for first, last in ranges])
    axes.set_xlabel(f"{facet} (tokens)" if facet == "gap" else facet)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{suite['name']}: accuracy by {facet}, {suite['num_examples']:,} {suite['split']} examples")
    axes.figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
