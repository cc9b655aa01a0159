"""From the kept files of a sweep to what a study found: one cell for each series, panel and place on the axis."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.papers.seeds import Summary, paired_difference, summary
from evaluation.papers.study import Axis, Study
from evaluation.papers.sweeps import observations, read_json


def outcome(study: Study, size: str) -> dict[str, Any]:
    """What a study has found so far.

    Args:
        study: the study.
        size: "small" or "full".

    Returns:
        Plain values: cells (accuracies on the test split at the tuned point that validation has chosen), contrasts, how
        much of it has been run, seeds, data hashes, commits, hardware and versions.

    Raises:
        UsageError: nothing of it has been run.
    """
    folder = study.results(size)
    rows, results = read_json(folder / "table.json"), read_json(folder / "results.json")["runs"]
    finished = [run["result"] for run in results if run["result"] is not None]
    seen = observations(folder)
    cells = [cell(study, row, results, seen) for row in rows if row["best"] is not None]
    return {
        "study": study.name,
        "paper": study.paper,
        "size": size,
        "title": study.title,
        "question": study.question,
        "stated": study.stated,
        "ours": study.ours,
        "unknown": study.unknown,
        "runs": {"finished": len(finished), "planned": len(results)},
        "axes": {name: axis and {"key": axis.key, "label": axis.label} for name, axis in axes_of(study).items()},
        "cells": cells,
        "contrasts": list(contrasts(study, cells)),
        **provenance(finished),
    }


def axes_of(study: Study) -> dict[str, Axis | None]:
    """The axes by which cells are told apart."""
    return {"panel": study.panels, "series": study.series, "x": study.x}


def cell(
    study: Study, row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], seen: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of the sweep's table, at its best point.

    Args:
        study: the study.
        row: of `table.json`.
        runs: of `results.json`.
        seen: observations by the name of the run.
    """
    best = row["best"]
    place = {name: axis and row["axes"].get(axis.key) for name, axis in axes_of(study).items()}
    names = [run["name"] for run in runs if run["axes"] == best["axes"]]
    return place | {
        "accuracy": summary(best["accuracies"]).to_dict(),
        "success_rate": best["test"]["success_rate"],
        "tuned": {key: value for key, value in best["axes"].items() if key not in row["axes"]},
        "window": row["window"],
        "at_edge": row["at_edge"],
        "parameters": best["parameters"],
        "state_bytes": best["state_bytes"],
        "steps": best["steps"],
        "observations": [seen[name] for name in names if name in seen],
    }


def contrasts(study: Study, cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Differences of accuracy between pairs of series at the same panel and place."""
    by_place = {(entry["panel"], entry["series"], entry["x"]): entry for entry in cells}
    for first, second in study.contrasts:
        for panel, series, x in by_place:
            other = by_place.get((panel, second, x))
            if series == first and other is not None:
                pair = [entry["accuracy"]["values"] for entry in (by_place[panel, first, x], other)]
                if len(pair[0]) == len(pair[1]):
                    difference: Summary = paired_difference(*pair)
                    yield {"first": first, "second": second, "panel": panel, "x": x, **difference.to_dict()}


def provenance(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where results come from: what differs between them is listed once each."""
    return {
        "seeds": sorted({result["seeds"]["run"] for result in results}),
        "test_hashes": sorted({result["data"]["test_hash"] for result in results}),
        "environments": distinct([result["environment"] for result in results]),
        "hours_of_training": sum(result["seconds"] for result in results) / 3600,
    }


def distinct(items: Sequence[Any]) -> list[Any]:
    """Each item once, in the order of the first of its kind."""
    found: list[Any] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
