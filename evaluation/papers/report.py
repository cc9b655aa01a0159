"""The report of a study in Markdown: what is the paper's, what is ours, what was found, what cannot be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from dsf_models.analysis import markdown_table
from evaluation.papers.study import Study

FIGURE = "figure.png"


def report(study: Study, found: Mapping[str, Any], findings: str | None) -> str:
    """A study's report.

    Args:
        study: the study.
        found: as `outcome` gives it.
        findings: what a person has concluded, in Markdown; None where nobody has yet.
    """
    runs = found["runs"]
    parts = [
        f"# {study.title}",
        study.question,
        f"**The paper.** {study.stated}",
        f"**Ours.** {study.ours}",
        f"**Not comparable.** {study.unknown}",
        f"{runs['finished']} of {runs['planned']} runs have finished ({found['size']} size, seeds "
        f"{', '.join(map(str, found['seeds']))}, {found['hours_of_training']:.1f} hours of training in all).",
        f"![{study.title}]({FIGURE})",
        "## Accuracy on the test split",
        accuracy_table(study, found["cells"]),
        "Of the tuned fields the point with the best mean validation accuracy is shown. Intervals are Student's, over "
        "seeds, at 95 %; outcomes are often bimodal, which they do not describe: see least and greatest.",
    ]
    if found["contrasts"]:
        parts += ["## Differences, seed by seed", contrast_table(study, found["contrasts"])]
    if any(cell["observations"] for cell in found["cells"]):
        parts += ["## Seen in the checkpoints", observation_table(study, found["cells"])]
    parts += ["## Findings", findings.strip() if findings else "None written yet."]
    parts += ["## Where the numbers come from", *(f"* {environment_line(one)}" for one in found["environments"])]
    return "\n\n".join(parts) + "\n"


def place_header(study: Study, entries: Sequence[Mapping[str, Any]], series: str | None = None) -> tuple[str, ...]:
    """Headings of the cells that say where a row belongs; a panel's only where there are several."""
    return (*([study.panels.label] if has_panels(entries) else []), series or study.series.label, study.x.label)


def place_cells(entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], series: str) -> tuple[str, ...]:
    """Cells that say where a row belongs."""
    return (*([str(entry["panel"])] if has_panels(entries) else []), series, str(entry["x"]))


def has_panels(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything lies in a panel with a name."""
    return any(entry["panel"] is not None for entry in entries)


def accuracy_table(study: Study, cells: Sequence[Mapping[str, Any]]) -> str:
    """Every cell of a study."""
    tuned = sorted({key for cell in cells for key in cell["tuned"]})
    header = (*place_header(study, cells), "parameters", "state bytes", *(key.rpartition(".")[2] for key in tuned))
    rows = [
        (
            *place_cells(cell, cells, str(cell["series"])),
            f"{cell['parameters']:,}",
            "–" if cell["state_bytes"] is None else f"{cell['state_bytes']:,}",
            *(f"{cell['tuned'][key]:g}" for key in tuned),
            *share_cells(cell["accuracy"]),
            f"{100 * cell['success_rate']:.0f} %",
        )
        for cell in cells
    ]
    return markdown_table(rows, (*header, "mean %", "interval", "min–max", "seeds", "> 99 %"), code=False)


def share_cells(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Mean, interval, min–max in per cent, and the number of seeds."""
    interval = "–" if values["interval"] is None else " to ".join(f"{100 * end:.1f}" for end in values["interval"])
    span = f"{100 * values['min']:.1f}–{100 * values['max']:.1f}"
    return f"{100 * values['mean']:.1f}", interval, span, str(len(values["values"]))


def contrast_table(study: Study, contrasts: Sequence[Mapping[str, Any]]) -> str:
    """Every difference of a study, in points."""
    rows = [
        (*place_cells(entry, contrasts, f"{entry['first']} minus {entry['second']}"), *share_cells(entry))
        for entry in contrasts
    ]
    header = (*place_header(study, contrasts, "difference"), "mean, points", "interval", "min–max", "seeds")
    return markdown_table(rows, header, code=False)


def observation_table(study: Study, cells: Sequence[Mapping[str, Any]]) -> str:
    """What was seen in the checkpoints, one column for each quantity, values of the seeds beside each other."""
    names = list(dict.fromkeys(name for cell in cells for seen in cell["observations"] for name in seen))
    rows = [
        (
            *place_cells(cell, cells, str(cell["series"])),
            *("; ".join(shown(seen[name]) for seen in cell["observations"] if name in seen) or "–" for name in names),
        )
        for cell in cells
    ]
    return markdown_table(rows, (*place_header(study, cells), *names), code=False)


def shown(value: Any) -> str:
    """A number, or several, in few digits."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def environment_line(environment: Mapping[str, Any]) -> str:
    """Commit, versions and hardware."""
    commit = environment["commit"] or "unknown"
    state = " with uncommitted changes" if environment["uncommitted_changes"] else ""
    machine = environment["hardware"]
    devices = ", ".join(machine["accelerators"]) or f"{machine['cpu']} ({machine['logical_cores']} cores)"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"commit {commit}{state}; {devices}; {versions}"
