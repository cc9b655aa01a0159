"""The report and the figure on eigenvalues, from the kept files of all tasks alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from dsf_models.analysis import BINS
from dsf_models.analysis.legacy import LABEL, RADII
from dsf_models.analysis.plots import COLOURS, save
from dsf_models.hub.usage import UsageError
from evaluation.papers.outcome import distinct
from evaluation.papers.seeds import summary
from evaluation.papers.sweeps import observations, read_json
from evaluation.reporting.blocks import Block, Image, Paragraph, Table
from evaluation.reporting.keep import findings_blocks, keep_report
from evaluation.reporting.sections import provenance

FIGURE = "figure.png"
TASKS = {
    "mqar": "multi-query associative recall",
    "listops": "ListOps",
    "text": "film reviews, byte by byte",
    "pixels": "Fashion-MNIST, pixel by pixel",
}
REGIONS = {
    "forgets": ("|λ| < 0.1", slice(0, 1)),
    "fades": ("0.1 ≤ |λ| < 0.9", slice(1, 3)),
    "keeps": ("0.9 ≤ |λ| ≤ 1", slice(3, 5)),
    "grows": ("|λ| > 1", slice(5, 8)),
}
"""What a state does under eigenvalues of an interval, and which of `BINS` these are."""

_TITLE = "Eigenvalues by task and mixer"
_TEXT = (
    Paragraph("Where do the eigenvalues of a mixer lie before and after training, and does it depend on the task?"),
    Paragraph(
        "Tasks of long memory go with eigenvalues near 1, tasks of selection with eigenvalues near 0 as well; linear "
        "attention keeps the shape of its first spectrum; LRU and SSD develop small eigenvalues on ListOps; Mamba-2 is "
        "the best on associative recall, attention is weak on long-range tasks (arXiv 2510.09379, in words).",
        "paper",
    ),
    Paragraph(
        "Six mixers in one shell: the same width, network, short convolution and learning rate, no positions, gates or "
        "norms of their own; SSD and normalized attention have a SiLU behind the convolution, and S4D, LRU and SSD a "
        "learned D. The weights are those that validation has selected. |λ| is that of the Λ which the mixer applies "
        "at its true input, in float64, λ_0 left out; for attention λ_i = η_{i-1} / η_i. Another realisation of the "
        "same Φ has other eigenvalues, see the table. The text is classified by its first bytes, the images are "
        "clothes: data and sizes are ours.",
        "ours",
    ),
    Paragraph(
        "The study's numbers are not available to this project, and its released code computes other numbers than |λ| "
        "for softmax attention, which the last table shows beside these.",
        "warning",
    ),
)


@dataclass(frozen=True)
class Runs:
    """All finished runs of one mixer on one task."""

    task: str
    """A key of `TASKS`."""

    mixer: str
    """Its name in the sweep."""

    accuracies: tuple[float, ...]
    """On the test split, one for each seed."""

    initial: np.ndarray
    """(seeds, layers, heads, bins): fractions of |λ| before training."""

    trained: np.ndarray
    """(seeds, layers, heads, bins): the same behind it."""

    legacy: np.ndarray | None
    """(seeds, layers, heads, intervals) of `RADII`, where the released code computes something."""

    realisation: str
    """Whose eigenvalues these are."""

    environments: tuple[Mapping[str, Any], ...]
    """Where the runs come from."""

    def share(self, region: str, when: str) -> list[float]:
        """The share of eigenvalues in a region, mean over layers and heads, for each seed."""
        _, bins = REGIONS[region]
        return getattr(self, when)[..., bins].sum(-1).mean((1, 2)).tolist()

    @property
    def change(self) -> list[float]:
        """½ Σ |trained - initial| over the bins, mean over layers and heads, for each seed: 0 none, 1 all has moved."""
        return (0.5 * np.abs(self.trained - self.initial).sum(-1)).mean((1, 2)).tolist()


def write_report(results: Path) -> str:
    """Write the report and the figure, and return the report in Markdown.

    Raises:
        UsageError: no run has finished yet.
    """
    found = [runs for task in TASKS for runs in read_runs(results / task, task)]
    if not found:
        raise UsageError(f"{results} holds no finished run: run the study first, or give it more time.")
    draw(found, results / FIGURE)
    return keep_report(results, _TITLE, list(blocks(found, results)))


def read_runs(folder: Path, task: str) -> Iterator[Runs]:
    """The finished runs of a task that were looked at, by mixer; none where the folder is missing."""
    if not (folder / "results.json").is_file():
        return
    seen = observations(folder)
    done = [run for run in read_json(folder / "results.json")["runs"] if run["result"] and run["name"] in seen]
    for mixer in dict.fromkeys(run["axes"]["mixer"] for run in done):
        own = [run for run in done if run["axes"]["mixer"] == mixer]
        spectra = [seen[run["name"]] for run in own]
        yield Runs(
            task=task,
            mixer=mixer,
            accuracies=tuple(run["result"]["test"]["accuracy"] for run in own),
            initial=np.array([one["initial"] for one in spectra]),
            trained=np.array([one["trained"] for one in spectra]),
            legacy=np.array([one["legacy"] for one in spectra]) if "legacy" in spectra[0] else None,
            realisation=spectra[0]["realisation"],
            environments=tuple(run["result"]["environment"] for run in own),
        )


def blocks(found: Sequence[Runs], folder: Path) -> Iterator[Block]:
    """The report; the folder may hold what a person has concluded."""
    yield from _TEXT
    yield Image(
        FIGURE,
        "Share of eigenvalues by |λ|, mean over layers, heads and seeds; whiskers: one standard deviation over seeds.",
    )
    words = ", ".join(f"{name}: {interval}" for name, (interval, _) in REGIONS.items())
    yield Paragraph(
        f"Mean over layers and heads; ± is half of Student's interval at 95 % over the seeds. {words}. Change: the "
        "share of eigenvalues that training has moved to another interval."
    )
    yield Table(["task", "mixer", "accuracy %", *REGIONS, "change", "seeds"], [trained_row(runs) for runs in found])
    yield Table(["task", "mixer", *REGIONS], [initial_row(runs) for runs in found], "Before training, in %.")
    yield Table(
        ["task", "runs", *REGIONS],
        list(correlation_rows(found)),
        "Rank correlation of share and accuracy over runs, of which those of a mixer are not independent.",
    )
    realisations = dict.fromkeys((runs.mixer, runs.realisation) for runs in found)
    yield Table(["mixer", "realisation"], list(realisations), "Whose eigenvalues they are.")
    if legacy := [row for runs in found if runs.legacy is not None for row in legacy_rows(runs)]:
        names = [f"{low:g}–{high:g}" for low, high in RADII]
        yield Table(["task", "softmax attention", *names], legacy, f"Shares in %. Released code: {LABEL}.")
    yield from findings_blocks(folder)
    for environment in distinct([one for runs in found for one in runs.environments]):
        yield Paragraph(provenance([environment]))


def percent(values: Sequence[float]) -> str:
    """Mean over seeds in %, with half the width of its interval."""
    found = summary(values)
    half = "" if found.interval is None else f" ± {50 * (found.interval[1] - found.interval[0]):.1f}"
    return f"{100 * found.mean:.1f}{half}"


def trained_row(runs: Runs) -> list[str]:
    """What a mixer has become."""
    shares = [percent(runs.share(region, "trained")) for region in REGIONS]
    seeds = str(len(runs.accuracies))
    return [runs.task, runs.mixer, percent(runs.accuracies), *shares, percent(runs.change), seeds]


def initial_row(runs: Runs) -> list[str]:
    """What a mixer began as."""
    return [runs.task, runs.mixer, *(percent(runs.share(region, "initial")) for region in REGIONS)]


def correlation_rows(found: Sequence[Runs]) -> Iterator[list[str]]:
    """Whether the runs with more eigenvalues in a region are the more accurate ones, by task."""
    for task in dict.fromkeys(runs.task for runs in found):
        own = [runs for runs in found if runs.task == task]
        accuracies = [value for runs in own for value in runs.accuracies]
        cells = []
        for region in REGIONS:
            shares = [value for runs in own for value in runs.share(region, "trained")]
            varied = len(set(shares)) > 1 and len(set(accuracies)) > 1
            cells.append(f"{spearmanr(shares, accuracies).statistic:+.2f}" if varied else "–")
        yield [task, str(len(accuracies)), *cells]


def legacy_rows(runs: Runs) -> Iterator[list[str]]:
    """Shares of softmax attention in the released code's intervals, of |λ| and of what that code computes."""
    mean = runs.trained.mean((0, 1, 2))
    # The intervals of the released code have none for exactly 1, which [1, 10] holds.
    merged = [*mean[:4], mean[4] + mean[5], *mean[6:]]
    yield [runs.task, "|λ|", *(f"{100 * share:.1f}" for share in merged)]
    yield [runs.task, "released code", *(f"{100 * share:.1f}" for share in runs.legacy.mean((0, 1, 2)))]


def draw(found: Sequence[Runs], path: Path) -> None:
    """Draw the spectra before and after training, a row for each task and a column for each mixer."""
    tasks, mixers = (list(dict.fromkeys(getattr(runs, name) for runs in found)) for name in ("task", "mixer"))
    figure = Figure(figsize=(2.7 * len(mixers) + 0.4, 2.3 * len(tasks) + 0.6), layout="constrained")
    grid = figure.subplots(len(tasks), len(mixers), sharex=True, sharey=True, squeeze=False)
    for runs in found:
        axes = grid[tasks.index(runs.task), mixers.index(runs.mixer)]
        for place, (when, label) in enumerate((("initial", "before training"), ("trained", "trained"))):
            shares = 100 * getattr(runs, when).mean((1, 2))
            centre, spread = shares.mean(0), shares.std(0, ddof=1) if len(shares) > 1 else np.zeros(shares.shape[1])
            positions = np.arange(len(BINS)) + 0.4 * (place - 0.5)
            whiskers = np.stack([np.minimum(spread, centre), spread])
            axes.bar(positions, centre, 0.38, color=COLOURS[place], label=label, yerr=whiskers, ecolor="0.3")
        axes.set_title(f"{runs.mixer}, {100 * np.mean(runs.accuracies):.0f} %", fontsize=9)
    for axes in grid.flat:
        axes.set_xticks(range(len(BINS)), BINS, rotation=60, fontsize=7)
        axes.set_ylim(0, 105)
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    for task, axes in zip(tasks, grid[:, 0], strict=True):
        axes.set_ylabel(f"{task}: % of |λ|")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    save(figure, path)
