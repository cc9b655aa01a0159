"""Sections of the report, each from the JSON files of one folder alone: an evaluation, a sweep, or a paper's study."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsf_models.hub.usage import UsageError
from evaluation.reporting.blocks import Block, Heading, Image, Paragraph, Picture, Table, blocks_from_json
from evaluation.reporting.svg import curve_svg
from evaluation.results import RESULTS, Curve, Point, curve_names, curves_named, read_results
from evaluation.tables import metric_rows, model_rows

OUTCOME, SWEEP_TABLE, FINDINGS, REPORT = "outcome.json", "table.json", "findings.md", "report.json"
_LEARNING_RATE = "optimizer.learning_rate"
_STATEMENTS = (("question", None), ("stated", "paper"), ("ours", "ours"), ("unknown", "warning"))
"""Fields of a study's outcome that are sentences, and where each comes from."""


def find_folders(paths: Sequence[Path]) -> list[Path]:
    """The folders under the paths that hold results, sorted within each path; sweeps that a report speaks for are not.

    Raises:
        UsageError: a path does not exist, or there are no results under any.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist: give folders of results.")
        own = {file.parent for name in (OUTCOME, REPORT) for file in path.rglob(name)}
        reported = {file.parent for file in path.rglob(REPORT)}
        sweeps = {file.parent for file in path.rglob(SWEEP_TABLE)}
        spoken_for = {folder for folder in sweeps if reported.intersection(folder.parents)}
        plain = {file.parent for file in path.rglob(RESULTS)} - spoken_for
        found += sorted((own | plain) - set(found))
    if not found:
        raise UsageError(f"There is no {RESULTS} under {', '.join(map(str, paths))}: evaluate something first.")
    return found


def section(folder: Path) -> list[Block]:
    """What a folder of results has to say.

    Raises:
        UsageError: a file is damaged, or of a form that is not known.
    """
    if (folder / OUTCOME).is_file():
        return list(study_section(folder))
    if (folder / REPORT).is_file():
        return list(kept_section(folder))
    content = read_json(folder / RESULTS)
    if isinstance(content, dict) and "runs" in content and (folder / SWEEP_TABLE).is_file():
        return list(sweep_section(folder))
    return list(evaluation_section(read_results(folder / RESULTS)))


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error


def kept_section(folder: Path) -> Iterator[Block]:
    """A report that its study has kept as blocks: its own headings become smaller ones."""
    content = read_json(folder / REPORT)
    try:
        title, blocks = content["title"], blocks_from_json(content["blocks"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{folder / REPORT} is no report of a study: {error!r}; write it again.") from error
    yield Heading(2, title)
    for block in blocks:
        match block:
            case Heading():
                yield Heading(block.level + 1, block.text)
            case Image():
                yield Image(str(folder / block.file), block.caption)
            case _:
                yield block


# ---- an evaluation --------------------------------------------------------------------------------------------------


def evaluation_section(results: Mapping[str, Any]) -> Iterator[Block]:
    """An evaluation: its numbers, its curves, where it comes from."""
    suite = results["suite"]
    names = ", ".join(model["label"] for model in results["models"])
    kind = results["config"].get("suite") or suite["name"]
    data = suite.get("dataset", suite["name"])
    of = data if kind == data else f"{kind}: {data}"
    yield Heading(2, f"{of} – {names}")
    yield Paragraph(what_was_asked(suite), "ours")
    yield Table(*metric_rows(results))
    yield Table(*model_rows(results))
    for name in curve_names(results):
        yield picture(results, name, f"{suite['name']}: {name}.")
    yield Paragraph(f"Intervals: {results['interval']}")
    models = "; ".join(f"{model['label']} `{model['model']}`" for model in results["models"])
    yield Paragraph(f"Loaded from: {models}.")
    yield Paragraph(provenance([results["environment"]]))


def what_was_asked(suite: Mapping[str, Any]) -> str:
    """The suite's data in a few sentences."""
    counted = [
        f"{suite[key]:,} {key.replace('num_', '')}"
        for key in ("num_examples", "documents", "bytes", "words")
        if key in suite
    ]
    parts = [f"Split {suite['split']}" + (f", {', '.join(counted)}" if counted else "")]
    for name, task in suite.get("tasks", {}).items():
        told = task["metadata"] or {}
        told = {key: told[key] for key in ("seed", "sizes") if key in told}
        described = "".join(f", {key} {shown(value)}" for key, value in told.items())
        parts.append(f"{name}: {task['documents']:,} documents{described}")
    if suite["seed"] is not None:
        parts.append(f"seed {suite['seed']}")
    if suite["data_hash"]:
        parts.append(f"SHA-256 of the data begins with `{suite['data_hash'][:16]}`")
    if sizes := suite.get("sizes"):
        parts.append("sizes: " + ", ".join(f"{name} {shown(value)}" for name, value in sizes.items()))
    return "; ".join(parts) + "."


def picture(results: Mapping[str, Any], name: str, caption: str) -> Picture:
    """A curve as a figure and as a table."""
    pairs = curves_named(results, name)
    rows = [point_row(model, curve, point) for model, curve in pairs for point in curve["points"]]
    first = pairs[0][1]
    y = f"{first['y']} (%)" if first["is_fraction"] else first["y"]
    header = ("model", first["x"], y, "interval", "best trivial rule", "note")
    used = [i for i in range(len(header)) if i < 3 or any(row[i] not in ("–", "") for row in rows)]
    table = Table(
        [header[i] for i in used], [[row[i] for i in used] for row in rows], caption=f"Numbers: {name}", folded=True
    )
    return Picture(curve_svg(results, name, caption), caption, table)


def point_row(model: Mapping[str, Any], curve: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[str, ...]:
    """Model, place, value, interval, best trivial rule and note of a point."""
    scale, form = (100, ".1f") if curve["is_fraction"] else (1, ".4g")

    def number(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:,.0f}" if not curve["is_fraction"] and abs(value) >= 1e4 else f"{scale * value:{form}}"

    place = f"{point['x']:,}" if isinstance(point["x"], int) else shown(point["x"])
    place = f"{place} (as trained)" if point["x"] == curve["trained_at"] else place
    interval = "–" if point["interval"] is None else " to ".join(map(number, point["interval"]))
    return model["label"], place, number(point["value"]), interval, number(point["best_trivial"]), point["note"] or ""


# ---- a sweep --------------------------------------------------------------------------------------------------------


def sweep_section(folder: Path) -> Iterator[Block]:
    """A sweep of training runs: the best point of each row, learning-rate curves, where it comes from."""
    runs, rows = read_json(folder / RESULTS)["runs"], read_json(folder / SWEEP_TABLE)
    finished = [run["result"] for run in runs if run["result"] is not None]
    yield Heading(2, f"Sweep: {folder.name.replace('_', ' ')}")
    yield Paragraph(
        f"{len(finished)} of {len(runs)} training runs have finished. The best point of each row is chosen on the "
        "validation split; accuracies in % on the test split, over seeds.",
        "ours",
    )
    axes = list(dict.fromkeys(name for row in rows for name in row["axes"]))
    header = [
        *map(short, axes),
        "parameters",
        "state, bytes",
        "mean",
        "min–max",
        "seeds > 99 %",
        "seeds",
        "best trivial rule",
    ]
    yield Table(header, [sweep_row(row, axes) for row in rows if row["best"] is not None])
    if edges := [row for row in rows if row["at_edge"]]:
        names = "; ".join(", ".join(map(shown, row["axes"].values())) for row in edges)
        yield Paragraph(f"The best learning rate is at the edge of the range for: {names}.", "warning")
    curves = rate_curves(rows)
    if curves["models"]:
        yield picture(curves, "accuracy by learning rate", "Mean validation accuracy by learning rate.")
    yield Paragraph(run_provenance(finished))


def sweep_row(row: Mapping[str, Any], axes: Sequence[str]) -> list[str]:
    """The best point of a row."""
    best, baselines = row["best"], row["baselines"]
    test = best["test"]
    return [
        *(shown(row["axes"].get(name)) for name in axes),
        f"{best['parameters']:,}",
        "–" if best["state_bytes"] is None else f"{best['state_bytes']:,}",
        sweep_score(best, test["mean"]),
        f"{sweep_score(best, test['min'])}–{sweep_score(best, test['max'])}",
        "–" if test["success_rate"] is None else f"{100 * test['success_rate']:.0f} %",
        str(best["finished"]),
        "–" if baselines is None else sweep_score(best, baselines["best_trivial"]),
    ]


def sweep_score(best: Mapping[str, Any], number: float) -> str:
    """An accuracy in %, or a loss as it is: a sweep of real numbers has no accuracy, and no share of solved seeds."""
    return f"{number:.4g} (loss)" if best["test"]["success_rate"] is None else f"{100 * number:.1f}"


def rate_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by learning rate of each row that has several, in the form of an evaluation."""
    models = []
    for row in rows:
        known = [
            point for point in row["points"] if _LEARNING_RATE in point["axes"] and point["validation"] is not None
        ]
        if len(known) > 1:
            points = [Point(x=point["axes"][_LEARNING_RATE], value=point["validation"]) for point in known]
            models.append(_line(", ".join(map(shown, row["axes"].values())), "learning rate", points))
    return {"suite": {"name": "sweep"}, "models": models}


# ---- a study --------------------------------------------------------------------------------------------------------


def study_section(folder: Path) -> Iterator[Block]:
    """A paper's study under its title."""
    found = read_json(folder / OUTCOME)
    missing = [key for key in ("title", "paper", "cells", "contrasts", "axes", "runs") if key not in found]
    if missing:
        raise UsageError(f"{folder / OUTCOME} is no outcome of a study: {', '.join(missing)} missing.")
    yield Heading(2, f"{found['title']} ({found['paper']}, {found.get('size', 'one')} size)")
    yield from study_blocks(found, folder)


def study_blocks(found: Mapping[str, Any], folder: Path) -> Iterator[Block]:
    """What the paper states, what was found here, contrasts, what a person has concluded.

    Args:
        found: content of the study's `outcome.json`.
        folder: of its results, which may hold `findings.md`.
    """
    for key, origin in _STATEMENTS:
        if found.get(key):
            yield Paragraph(found[key], origin)
    runs = found["runs"]
    yield Paragraph(f"{runs['finished']} of {runs['planned']} training runs have finished.", "ours")
    cells = found["cells"]
    for panel in dict.fromkeys(cell["panel"] for cell in cells):
        yield from panel_pictures(found, panel)
    yield Table(*cell_table(found))
    if edges := [cell for cell in cells if cell.get("at_edge")]:
        names = "; ".join(f"{cell['series']} at {shown(cell['x'])}" for cell in edges)
        yield Paragraph(f"The best learning rate is at the edge of the range for: {names}.", "warning")
    if any(cell.get("observations") for cell in cells):
        yield Table(*observation_table(found), caption="Read from the checkpoints, one value for each seed.")
    if found["contrasts"]:
        yield Table(*contrast_table(found), caption="Differences between runs of the same seed, in points.")
    if (file := folder / FINDINGS).is_file():
        yield Heading(3, "What follows")
        for part in file.read_text(encoding="utf-8").strip().split("\n\n"):
            yield Paragraph(" ".join(part.lstrip("# ").split()))
    seeds = ", ".join(map(str, found.get("seeds", []))) or "unknown"
    hours = found.get("hours_of_training")
    cost = "" if hours is None else f" {hours:.1f} hours of training."
    yield Paragraph(f"Seeds {seeds}.{cost} {provenance(found.get('environments', []))}")


def panel_pictures(found: Mapping[str, Any], panel: Any) -> Iterator[Picture]:
    """The figure of one panel of a study, where its axis is one of numbers with several places."""
    cells = [cell for cell in found["cells"] if cell["panel"] == panel]
    places = {cell["x"] for cell in cells}
    if len(places) < 2 or not all(isinstance(place, int | float) and place > 0 for place in places):
        return
    models = []
    for series in dict.fromkeys(str(cell["series"]) for cell in cells):
        own = sorted((cell for cell in cells if str(cell["series"]) == series), key=lambda cell: cell["x"])
        points = [
            Point(x=cell["x"], value=cell["accuracy"]["mean"], interval=_ends(cell["accuracy"]["interval"]))
            for cell in own
        ]
        models.append(_line(series, found["axes"]["x"]["label"], points))
    where = "" if panel is None else f" ({found['axes']['panel']['label']} {panel})"
    name = models[0]["curves"][0]["name"]
    yield picture(
        {"suite": {"name": found["title"]}, "models": models}, name, f"{found['title']}{where}: mean over seeds."
    )


def cell_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all cells."""
    axes = [name for name in ("panel", "series", "x") if found["axes"].get(name)]
    tuned = sorted({key for cell in found["cells"] for key in cell.get("tuned", {})})
    header = [*(found["axes"][name]["label"] for name in axes), "parameters", "state, bytes", *map(short, tuned)]
    rows = []
    for cell in found["cells"]:
        sizes = [f"{cell['parameters']:,}", "–" if cell["state_bytes"] is None else f"{cell['state_bytes']:,}"]
        chosen = [shown(cell["tuned"][key]) for key in tuned]
        solved = f"{100 * cell['success_rate']:.0f} %"
        rows.append([*(shown(cell[name]) for name in axes), *sizes, *chosen, *share_cells(cell["accuracy"]), solved])
    return [*header, "mean %", "interval", "min–max", "seeds", "seeds > 99 %"], rows


def observation_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was read from the checkpoints."""
    axes = [name for name in ("panel", "series", "x") if found["axes"].get(name)]
    cells = [cell for cell in found["cells"] if cell["observations"]]
    names = list(dict.fromkeys(name for cell in cells for seen in cell["observations"] for name in seen))
    rows = [
        [
            *(shown(cell[name]) for name in axes),
            *("; ".join(shown(seen[name]) for seen in cell["observations"] if name in seen) or "–" for name in names),
        ]
        for cell in cells
    ]
    return [*(found["axes"][name]["label"] for name in axes), *map(short, names)], rows


def contrast_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all differences."""
    axes = [name for name in ("panel", "x") if found["axes"].get(name)]
    header = ["difference", *(found["axes"][name]["label"] for name in axes), "mean", "interval", "min–max", "seeds"]
    rows = [
        [f"{entry['first']} minus {entry['second']}", *(shown(entry[name]) for name in axes), *share_cells(entry)]
        for entry in found["contrasts"]
    ]
    return header, rows


def share_cells(values: Mapping[str, Any]) -> list[str]:
    """Mean, interval and span in per cent, and the number of seeds."""
    interval = "–" if values["interval"] is None else " to ".join(f"{100 * end:.1f}" for end in values["interval"])
    span = f"{100 * values['min']:.1f} to {100 * values['max']:.1f}"
    return [f"{100 * values['mean']:.1f}", interval, span, str(len(values["values"]))]


# ---- what all share -------------------------------------------------------------------------------------------------


def run_provenance(finished: Sequence[Mapping[str, Any]]) -> str:
    """Seeds, hashes and environments of training runs."""
    seeds = sorted({result["seeds"]["run"] for result in finished})
    hashes = sorted({result["data"]["test_hash"] for result in finished})
    distinct = list(
        {json.dumps(result["environment"], sort_keys=True): result["environment"] for result in finished}.values()
    )
    hours = sum(result["seconds"] for result in finished) / 3600
    shown_hashes = ", ".join(f"`{one[:16]}`" for one in hashes)
    return (
        f"Seeds {', '.join(map(str, seeds))}; test data {shown_hashes}; {hours:.1f} hours of training. "
        + provenance(distinct)
    )


def provenance(environments: Sequence[Mapping[str, Any]]) -> str:
    """Commit, hardware, threads and versions of each environment."""
    lines = []
    for environment in environments:
        commit = (environment.get("commit") or "unknown")[:12]
        changed = " with uncommitted changes" if environment.get("uncommitted_changes") else ""
        machine = environment.get("hardware", {})
        devices = ", ".join(machine.get("accelerators") or [])
        device = devices or f"{machine.get('cpu', 'unknown processor')} ({machine.get('logical_cores', '?')} cores)"
        threads = environment.get("threads", {}).get("intra_op")
        versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
        lines.append(f"Commit `{commit}`{changed}; {device}{f', {threads} thread(s)' if threads else ''}; {versions}.")
    return " ".join(lines)


def short(name: str) -> str:
    """The last part of a dotted key, as words."""
    return name.rpartition(".")[2].replace("_", " ")


def shown(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, dict):
        return f"({', '.join(f'{name} {shown(part)}' for name, part in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _line(label: str, x: str, points: Sequence[Point]) -> dict[str, Any]:
    curve = Curve(name=f"accuracy by {x}", y="accuracy", x=x, points=points)
    return {"label": label, "curves": [curve.to_dict()]}


def _ends(interval: Sequence[float] | None) -> tuple[float, float] | None:
    # An interval of a mean of accuracies may reach beyond what an accuracy can be.
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))
