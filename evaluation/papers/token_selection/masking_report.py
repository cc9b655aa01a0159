"""The report and the figure of the masking study, from its kept files alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsf_models.analysis.plots import save, style
from dsf_models.hub.usage import UsageError
from evaluation.papers.sweeps import read_json
from evaluation.papers.token_selection.splice import MOTIFS
from evaluation.reporting.blocks import Block, Heading, Image, Paragraph, Table
from evaluation.reporting.keep import findings_blocks, keep_report
from evaluation.reporting.sections import REPORT, provenance

FIGURE = "figure.png"

_TITLE = "Splice junctions: which tokens a classifier rests on"
_TEXT = (
    Paragraph("How few nucleotides carry the answer, and do they differ from sequence to sequence?"),
    Paragraph(
        "On sequences of the Genomic Benchmarks, important tokens are sparse and depend on the input, and SSMs focus "
        "on them.",
        "paper",
    ),
    Paragraph(
        "Other data (primate splice junctions, where two positions are known to decide), other models, trained here "
        "with random masks so that masked inputs are not foreign to them, and a protocol of our own: importance is the "
        "loss of probability by masking one token. The own order is chosen on the model and the label that it is then "
        "measured on; the order of another model of the same kind is not.",
        "ours",
    ),
    Paragraph("The paper's data sets, model, mask, order and numbers are not available to this project.", "warning"),
)


def write_report(results: Path) -> str:
    """Write the report and the figure, and return the report in Markdown.

    Raises:
        UsageError: nothing has been computed yet.
    """
    files = [file for file in sorted(results.glob("*.json")) if file.name != REPORT]
    if not files:
        raise UsageError(f"{results} holds no results: run the study first.")
    found = [read_json(file) for file in files]
    draw(found, results / FIGURE)
    return keep_report(results, _TITLE, list(blocks(found, results)))


def blocks(found: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Block]:
    """The report; the folder may hold what a person has concluded."""
    yield from _TEXT
    yield Image(FIGURE, "Mean probability of the class against the number of masked tokens.")
    yield Paragraph(
        f"Mean over {len(found[0]['accuracies'])} seeds and over the test sequences that all of them classify right; "
        "intervals are bootstrapped over sequences, at 95 %."
    )
    yield Table(_MODEL_HEADER, [model_row(entry) for entry in found])
    known = ", ".join(f"{name} {a} and {b}" for name, (a, b) in MOTIFS.items())
    yield Paragraph(f"Known to decide: {known} (counted from 0).")
    for entry in found:
        counts = [f"k = {count}" for count in entry["counts"]]
        few = [f"k = {count}" for count in entry["greedy"]["counts"]]
        yield Heading(2, f"{entry['model']}: probability of the class with k of 60 tokens masked")
        yield Table(["order", *counts], rows_of(entry["curves"]))
        yield Table(["order", *counts], rows_of(entry["gaps"]), "By how much each order stays above the own one.")
        caption = "Chosen anew behind every masked token, on the first sequences."
        yield Table(["order", *few], rows_of(entry["greedy"]["curves"]), caption)
    yield from findings_blocks(folder)
    yield Heading(2, "Where the numbers come from")
    for line in dict.fromkeys(provenance([entry["environment"]]) for entry in found):
        yield Paragraph(line)


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


def rows_of(curves: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each curve: means with half the width of their intervals."""
    return [
        (name, *(f"{m:.3f} ± {(high - low) / 2:.3f}" for m, (low, high) in zip(c["mean"], c["interval"], strict=True)))
        for name, c in curves.items()
    ]


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
