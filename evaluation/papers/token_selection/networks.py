"""What trained networks reach on smooth regression, from the `results.json` of their sweep alone."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from evaluation.papers.outcome import distinct
from evaluation.papers.token_selection.rates import ratio, slope

MIXER, TOKENS, EXAMPLES = "mixer", "task.sizes.sequence_length", "task.train_examples"
SSM, TRANSFORMER = "ssm", "transformer"


def network_outcome(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is known so far.

    Args:
        results: content of `results.json`.

    Returns:
        `cells`: mixer, tokens V, examples n, squared errors by seed of the data at the tuned point with the least mean
        validation error; `slopes`, `ratios` and `by_tokens` with bootstrap intervals; how much has been run, and where
        it comes from. A cell in which a run is missing is left out.
    """
    runs, tuned = results["runs"], results["tuned"]
    finished = [run["result"] for run in runs if run["result"] is not None]
    cells = [_best(group, tuned) for group in _grouped(runs, [MIXER, TOKENS, EXAMPLES]) if _candidates(group, tuned)]
    cells.sort(key=lambda cell: (cell["mixer"], cell["tokens"], cell["examples"]))
    return {
        "runs": {"finished": len(finished), "planned": len(runs)},
        "cells": cells,
        "slopes": list(_slopes(cells)),
        "ratios": list(_ratios(cells)),
        "by_tokens": list(_by_tokens(cells)),
        "seeds": sorted({run["seeds"]["data"] for run in runs if run["result"] is not None}),
        "data_hashes": sorted({result["data"]["test_hash"] for result in finished}),
        "environments": distinct([result["environment"] for result in finished]),
        "hours_of_training": sum(result["seconds"] for result in finished) / 3600,
    }


def _grouped(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["axes"].get(name) for name in names), []).append(run)
    return list(groups.values())


def _candidates(group: Sequence[Mapping[str, Any]], tuned: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """The tuned points at which every seed has a finite validation and test error."""
    points = _grouped(group, tuned)
    return [point for point in points if all(run["result"] and None not in _errors(run) for run in point)]


def _errors(run: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return run["result"]["validation"]["mse"], run["result"]["test"]["mse"]


def _best(group: Sequence[Mapping[str, Any]], tuned: Sequence[str]) -> dict[str, Any]:
    """One cell, at its best point."""
    point = min(_candidates(group, tuned), key=lambda runs: mean(_errors(run)[0] for run in runs))
    point = sorted(point, key=lambda run: run["seeds"]["data"])
    axes, first = point[0]["axes"], point[0]["result"]
    return {
        "mixer": axes[MIXER],
        "tokens": axes[TOKENS],
        "examples": axes[EXAMPLES],
        "seeds": [run["seeds"]["data"] for run in point],
        "mse": [_errors(run)[1] for run in point],
        "variance": first["baselines"]["best_trivial"],
        "parameters": first["parameters"],
        "tuned": {name: axes[name] for name in tuned},
        "seconds": mean(run["result"]["seconds"] for run in point),
    }


def _slopes(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each mixer and V the slope over all n whose seeds are the same."""
    for mixer, tokens in distinct([(cell["mixer"], cell["tokens"]) for cell in cells]):
        line = [cell for cell in cells if (cell["mixer"], cell["tokens"]) == (mixer, tokens)]
        line = [cell for cell in line if cell["seeds"] == line[0]["seeds"]]
        if len(line) > 1:
            errors = list(zip(*(cell["mse"] for cell in line), strict=True))
            estimate = slope([cell["examples"] for cell in line], errors)
            yield {"mixer": mixer, "tokens": tokens, **estimate.to_dict()}


def _ratios(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """SSM over Transformer at each V and n, function by function."""
    at = {(cell["mixer"], cell["tokens"], cell["examples"]): cell for cell in cells}
    for (mixer, tokens, examples), cell in at.items():
        other = at.get((TRANSFORMER, tokens, examples))
        if mixer == SSM and other is not None and other["seeds"] == cell["seeds"]:
            yield {"tokens": tokens, "examples": examples, **ratio(cell["mse"], other["mse"]).to_dict()}


def _by_tokens(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Error at each V over that at the least V, for each mixer and n, function by function."""
    least = min((cell["tokens"] for cell in cells), default=0)
    at = {(cell["mixer"], cell["tokens"], cell["examples"]): cell for cell in cells}
    for (mixer, tokens, examples), cell in at.items():
        base = at.get((mixer, least, examples))
        if tokens != least and base is not None and base["seeds"] == cell["seeds"]:
            estimate = ratio(cell["mse"], base["mse"])
            yield {"mixer": mixer, "tokens": tokens, "over": least, "examples": examples, **estimate.to_dict()}
