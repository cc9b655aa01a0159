"""The report and the figure of the masking study, from its kept files alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsf_models.analysis import markdown_table
from dsf_models.analysis.plots import save, style
from dsf_models.hub.files import write_text
from dsf_models.hub.usage import UsageError
from evaluation.papers.report import FIGURE, environment_line
from evaluation.papers.sweeps import read_json
from evaluation.papers.token_selection.splice import MOTIFS

_TEXT = (
    "# Splice junctions: which tokens a classifier rests on",
    "How few nucleotides carry the answer, and do they differ from sequence to sequence?",
    "**The paper.** On sequences of the Genomic Benchmarks, important tokens are sparse and depend on the input, and "
    "SSMs focus on them. Probably a pretrained Hyena was fine-tuned there, which is no time-invariant SSM.",
    "**Ours.** Other data (primate splice junctions, where two positions are known to decide), other models, trained "
    "here with random masks so that masked inputs are not foreign to them, and a protocol of our own: importance is "
    "the loss of probability by masking one token. The own order is chosen on the model and the label that it is "
    "then measured on; the"
    "order of another model of the same kind is not.",
    "**Not comparable.** The paper's data sets, mask, order and numbers are not available to this project.",
)


def write_report(results: Path) -> str:
    """Write `report.md` and the figure, and return the text.

    Raises:
        UsageError: nothing has been computed yet.
    """
    found = [read_json(file) for file in sorted(results.glob("*.json"))]
    if not found:
        raise UsageError(f"{results} holds no results: run the study first.")
    findings = results / "findings.md"
    text = report(found, findings.read_text(encoding="utf-8") if findings.is_file() else None)
    draw(found, results / FIGURE)
    write_text(results / "report.md", text)
    return text


def report(found: Sequence[Mapping[str, Any]], findings: str | None) -> str:
    """The report in Markdown."""
    seeds = len(found[0]["accuracies"])
    parts = [
        *_TEXT,
        f"![Masking curves]({FIGURE})",
        f"Mean over {seeds} seeds and over the test sequences that all of them classify right; intervals are "
        "bootstrapped over sequences, at 95 %.",
        markdown_table([model_row(entry) for entry in found], _MODEL_HEADER, code=False),
        f"Known to decide: {', '.join(f'{name} {a} and {b}' for name, (a, b) in MOTIFS.items())} (counted from 0).",
    ]
    for entry in found:
        counts = tuple(f"k = {count}" for count in entry["counts"])
        parts += [
            f"## {entry['model']}: probability of the class with k of 60 tokens masked",
            markdown_table([curve_row(*item) for item in entry["curves"].items()], ("order", *counts), code=False),
            "By how much each order stays above the own one:",
            markdown_table([curve_row(*item) for item in entry["gaps"].items()], ("order", *counts), code=False),
        ]
        counts = tuple(f"k = {count}" for count in entry["greedy"]["counts"])
        rows = [curve_row(*item) for item in entry["greedy"]["curves"].items()]
        parts += ["Anew behind every masked token, on the first sequences:"]
        parts += [markdown_table(rows, ("order", *counts), code=False)]
    parts += ["## Findings", findings.strip() if findings else "None written yet."]
    parts += ["## Where the numbers come from"]
    parts += dict.fromkeys(environment_line(entry["environment"]) for entry in found)
    return "\n\n".join(parts) + "\n"


_MODEL_HEADER = ("model", "parameters", "accuracy %", "sequences", "kept fraction, quartiles", "top positions")


def model_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """A model in the table of models."""
    return (
        entry["model"],
        f"{entry['parameters']:,}",
        ", ".join(f"{100 * value:.1f}" for value in entry["accuracies"]),
        str(entry["sequences"]),
        " / ".join(f"{entry['kept_fraction'][name]:.2f}" for name in ("lower", "median", "upper")),
        "; ".join(f"{name} {' '.join(map(str, places))}" for name, places in entry["top_positions"].items()),
    )


def curve_row(name: str, curve: Mapping[str, Any]) -> tuple[str, ...]:
    """A curve as a row: means with half the width of their intervals."""
    ends = zip(curve["mean"], curve["interval"], strict=True)
    return (name, *(f"{mean:.3f} ± {(high - low) / 2:.3f}" for mean, (low, high) in ends))


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the curves of every model, a panel each, with their intervals."""
    figure = Figure(figsize=(4.6 * len(found), 4.4), layout="constrained")
    for axes, entry in zip(figure.subplots(1, len(found), sharey=True, squeeze=False).flat, found, strict=True):
        for i, (name, curve) in enumerate(entry["curves"].items()):
            look = style(i) | {"markersize": 4}
            axes.plot(entry["counts"], curve["mean"], label=name, **look)
            low, high = zip(*curve["interval"], strict=True)
            axes.fill_between(entry["counts"], low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.set_title(entry["model"], fontsize=10)
        axes.set_xlabel("masked tokens (of 60)")
        axes.set_ylabel("mean probability of the class")
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    save(figure, path)
