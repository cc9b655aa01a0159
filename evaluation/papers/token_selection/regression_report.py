"""Report and figure of the regression study, from what was kept alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsf_models.analysis.plots import save, style
from evaluation.papers.outcome import distinct
from evaluation.reporting.blocks import Block, Heading, Image, Paragraph, Table
from evaluation.reporting.keep import findings_blocks
from evaluation.reporting.sections import provenance

FIGURE = "figure.png"
TITLE = "Regression of smooth functions of the most important tokens"
_TEXT = (
    Paragraph("How fast does the error fall with the number of examples where the input says which tokens count?"),
    Paragraph(
        "Nishikawa & Suzuki (arXiv 2405.19036) state that an SSM learns piecewise γ-smooth functions at the rate of a "
        "Transformer, up to logarithms. No regression experiment of theirs is known to this project, and neither are "
        "the constants and the power of the logarithm in their theorem. The exponent 2a†/(2a†+1) is that of the "
        "classes as this project understands them.",
        "paper",
    ),
    Paragraph(
        "All of the experiment: functions, law of the tokens, noise, sieve, networks, budgets. Errors are squared "
        "and taken against the function without noise, whose variance is 1; networks are selected by that error on a "
        "validation split. Intervals are at 95 % over functions: of slopes by the bootstrap, which is rough with few "
        "of them, of ratios Student's. Trained networks have an error of optimisation besides, so that their slope "
        "says nothing of the"
        "theorem's rate: only the comparison of the two, and the dependence on the number of tokens, are read.",
        "ours",
    ),
    Paragraph("No number can be compared with the paper: there is none.", "warning"),
)


def report(oracle: Mapping[str, Any], networks: Mapping[str, Any] | None, size: str, folder: Path) -> Iterator[Block]:
    """The report.

    Args:
        oracle: as `run_oracle` gives it, with `environment`.
        networks: as `network_outcome` gives it, or None before any.
        size: of the networks' sweep.
        folder: may hold what a person has concluded.
    """
    yield from _TEXT
    yield Image(FIGURE, "Squared error against the number of examples.")
    yield Heading(2, "Least squares that knows the smoothness")
    yield oracle_table(oracle)
    yield Paragraph(
        "The sorting sieve reads the tokens by importance. The position-wise one is the control: it reads the last "
        "tokens, learns nothing, and stays near the variance, 1."
    )
    if networks is not None:
        yield from _network_parts(networks, size)
    yield from findings_blocks(folder)
    yield Heading(2, "Where the numbers come from")
    hashes = len(oracle["data_hashes"])
    yield Paragraph(f"Oracle: seeds {_numbers(oracle['seeds'])}; {hashes} data hashes in `oracle.json`.")
    for environment in distinct([oracle["environment"], *(networks["environments"] if networks else [])]):
        yield Paragraph(provenance([environment]))


def _network_parts(networks: Mapping[str, Any], size: str) -> Iterator[Block]:
    runs = networks["runs"]
    yield Heading(2, f"Networks, {size} size")
    yield Paragraph(
        f"{runs['finished']} of {runs['planned']} runs have finished (seeds of the data {_numbers(networks['seeds'])}, "
        f"{networks['hours_of_training']:.1f} hours of training in all)."
    )
    yield cell_table(networks["cells"])
    for title, name, columns in (
        ("Slopes of log error on log n", "slopes", ("mixer", "tokens")),
        ("Error of the SSM over that of the Transformer", "ratios", ("tokens", "examples")),
        ("Error over that with fewest tokens", "by_tokens", ("mixer", "tokens", "over", "examples")),
    ):
        if networks[name]:
            yield estimate_table(networks[name], columns, title)
    intervals = [entry["interval"] for entry in networks["ratios"] if entry["interval"] is not None]
    if intervals:
        worse = sum(low > 1 for low, _ in intervals)
        yield Paragraph(
            f"The interval of the SSM's ratio lies above 1 at {worse} of {len(intervals)} places; without any "
            "difference one in forty would."
        )


def oracle_table(oracle: Mapping[str, Any]) -> Table:
    """Slopes against theory, and errors at the least and the greatest n."""
    sizes = oracle["config"]["sizes"]
    rows = []
    for case in oracle["cases"]:
        for name, errors in case["errors"].items():
            first, last = (f"{mean(row[i] for row in errors):.4g}" for i in (0, -1))
            theory = f"{case['theory']:.3f}" if name == "sorting" else "0"
            slope = _estimate(case["slopes"][name])
            rows.append((_numbers(case["exponents"]), name.replace("_", "-"), theory, slope, first, last))
    header = ("a", "sieve", "theory", "slope", f"error at n = {sizes[0]}", f"error at n = {sizes[-1]}")
    return Table(header, rows)


def cell_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Every place: mean, least and greatest error over the functions."""
    rows = [
        (
            cell["mixer"],
            str(cell["tokens"]),
            str(cell["examples"]),
            f"{mean(cell['mse']):.4g}",
            f"{min(cell['mse']):.4g}–{max(cell['mse']):.4g}",
            str(len(cell["mse"])),
            f"{cell['parameters']:,}",
        )
        for cell in cells
    ]
    header = ("mixer", "tokens V", "examples n", "mean error", "min–max", "functions", "parameters")
    return Table(header, rows)


def estimate_table(entries: Sequence[Mapping[str, Any]], columns: Sequence[str], caption: str) -> Table:
    """Numbers with their intervals."""
    rows = [(*(str(entry[column]) for column in columns), _estimate(entry)) for entry in entries]
    return Table((*columns, "value and interval"), rows, caption)


def draw(oracle: Mapping[str, Any], networks: Mapping[str, Any] | None, path: Path) -> None:
    """Draw squared error against n on log scales: the sieves, and a panel for each V of the networks.

    Args:
        oracle: as for `report`.
        networks: as for `report`.
        path: PNG file to write.
    """
    cells = networks["cells"] if networks else []
    tokens = distinct([cell["tokens"] for cell in cells])
    figure = Figure(figsize=(4.6 * (1 + len(tokens)), 4.4), layout="constrained")
    panels = list(figure.subplots(1, 1 + len(tokens), sharey=True, squeeze=False).flat)
    _draw_oracle(panels[0], oracle)
    for axes, number in zip(panels[1:], tokens, strict=True):
        _draw_networks(axes, [cell for cell in cells if cell["tokens"] == number])
        axes.set_title(f"networks, {number} tokens", fontsize=10)
    for axes in panels:
        axes.axhline(1, color="0.35", linestyle="--", linewidth=1.2, label="best constant")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("examples n")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("squared error")
    save(figure, path)


def _draw_oracle(axes: Axes, oracle: Mapping[str, Any]) -> None:
    sizes = oracle["config"]["sizes"]
    for i, case in enumerate(oracle["cases"]):
        a, look = _numbers(case["exponents"]), style(i)
        sorting, position_wise = (
            [mean(column) for column in zip(*case["errors"][name], strict=True)]
            for name in ("sorting", "position_wise")
        )
        label = f"a = {a}: slope {case['slopes']['sorting']['value']:.2f}, theory {case['theory']:.2f}"
        axes.plot(sizes, sorting, label=label, **look)
        axes.plot(sizes, position_wise, **look | {"linestyle": ":", "markersize": 3})
    axes.plot([], [], ":", color="0.35", label="position-wise (control)")
    axes.set_title("least squares that knows the smoothness", fontsize=10)


def _draw_networks(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    for i, mixer in enumerate(distinct([cell["mixer"] for cell in cells])):
        line, look = [cell for cell in cells if cell["mixer"] == mixer], style(i)
        axes.plot([cell["examples"] for cell in line], [mean(cell["mse"]) for cell in line], label=mixer, **look)
        dots = [(cell["examples"], error) for cell in line for error in cell["mse"]]
        axes.scatter(*zip(*dots, strict=True), s=14, color=look["color"], alpha=0.45)


def _estimate(found: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return f"{found['value']:.3f} (a single function)"
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
