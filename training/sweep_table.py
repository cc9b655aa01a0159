"""What a sweep's runs amount to, as pure functions of their results.

Runs that differ in their seeds alone are one point. Of the points that differ in tuned fields alone (the learning rate,
the fields of a random search) validation chooses the best, and its test scores are what is reported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from dsf_models.hub.usage import UsageError
from training.result import RESULT
from training.sweep_config import LEARNING_RATE

SOLVED = 0.99
"""Test accuracy above which a seed counts as a success."""

WINDOW = 0.02
"""How far the accuracy of a point of the good window may lie below the best."""

ARCHITECTURE = "model.architecture"

RESULTS = "results.json"
"""Every result of a sweep in one file."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of a sweep, with its result if it has finished."""

    name: str
    """Name of its folder."""

    axes: Mapping[str, Any]
    """Its value on every axis, the architecture always among them."""

    seeds: Mapping[str, int]
    """Its seeds."""

    result: Mapping[str, Any] | None
    """Content of its `result.json`."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """All runs that differ in their seeds alone."""

    axes: Mapping[str, Any]
    """Their value on every axis."""

    planned: int
    """Number of runs."""

    finished: int
    """Number of those with a result."""

    validation: float | None = None
    """Mean validation accuracy of the selected weights; None where answers are real numbers."""

    validation_loss: float | None = None
    """Their mean loss; None where a run has no finite one."""

    accuracies: Sequence[float] = ()
    """Test accuracy of each finished run; empty where answers are real numbers."""

    losses: Sequence[float] = ()
    """Test loss of each finished run; empty where one is not finite."""

    selected_by: str | None = None
    """What the runs select their weights by: "accuracy" or "loss"."""

    parameters: int | None = None
    """Of the model."""

    state_bytes: int | None = None
    """Of the model's cache for one sequence of the task."""

    steps: float | None = None
    """Mean number of optimiser steps."""

    seconds: float | None = None
    """Mean time of training."""

    @property
    def complete(self) -> bool:
        """Whether every seed has a result; a point at which a run failed is no candidate for the best."""
        return self.finished == self.planned

    @property
    def has_accuracy(self) -> bool:
        """Whether the point is told in accuracies; otherwise in losses, which are squared errors of real numbers."""
        return self.validation is not None

    @property
    def test(self) -> dict[str, float | None] | None:
        """Mean, least and greatest test score over the seeds, and the share of seeds whose accuracy is above `SOLVED`.

        Scores are accuracies, or losses where there is no accuracy and so no share either.
        """
        scores = self.accuracies if self.has_accuracy else self.losses
        if not scores:
            return None
        solved = mean(accuracy > SOLVED for accuracy in self.accuracies) if self.has_accuracy else None
        return {"mean": mean(scores), "min": min(scores), "max": max(scores), "success_rate": solved}

    def rank(self) -> tuple[float, ...]:
        """Higher is better: what the runs select their weights by, accuracy before a low loss, or a low loss alone."""
        loss = float("inf") if self.validation_loss is None else self.validation_loss
        return (-loss,) if self.selected_by == "loss" else (self.validation, -loss)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"test": self.test}


@dataclass(frozen=True, kw_only=True)
class Row:
    """All points that differ in tuned fields alone."""

    axes: Mapping[str, Any]
    """Their value on every other axis."""

    points: Sequence[Point]
    """Sorted by the learning rate where it is swept."""

    best: Point | None
    """The best complete point by validation, or None before there is one."""

    baselines: Mapping[str, float] | None
    """Accuracy of guessing and of the best trivial rule, where these are known; for losses, that of the rule alone."""

    window: float | None
    """Width of the good window, see `window_width`; None where no learning rate was swept or none is any good."""

    at_edge: bool
    """Whether the best learning rate is the least or the greatest one tried: then the range is too narrow."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "axes": dict(self.axes),
            "best": self.best and self.best.to_dict(),
            "baselines": self.baselines,
            "window": self.window,
            "at_edge": self.at_edge,
            "points": [point.to_dict() for point in self.points],
        }


def read_runs(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """Read a sweep's folder.

    Returns:
        Its runs, and the tuned fields.

    Raises:
        UsageError: where the folder is none of a sweep, or a file of it is damaged.
    """
    record = _read_json(folder / "sweep.json")
    kept = kept_results(folder)
    runs = []
    for name, run in record["runs"].items():
        file = folder / "runs" / name / RESULT
        result = kept[name] if name in kept else _read_json(file, required=False)
        axes = {ARCHITECTURE: run["settings"].get(ARCHITECTURE, record["base"]["model"]["architecture"])} | run["axes"]
        runs.append(RunRecord(name=name, axes=axes, seeds=run["seeds"], result=result))
    return runs, record["tuned"]


def kept_results(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Results that a sweep's `results.json` holds of runs whose own folders are gone or emptied, by name.

    Raises:
        UsageError: where the file is damaged.
    """
    results = _read_json(folder / RESULTS, required=False) or {"runs": []}

    def is_gone(name: str) -> bool:
        run = folder / "runs" / name
        return not (run / RESULT).is_file() and not any(run.glob("checkpoints/*"))

    return {run["name"]: run["result"] for run in results["runs"] if run["result"] is not None and is_gone(run["name"])}


def table_rows(runs: Sequence[RunRecord], tuned: Sequence[str]) -> list[Row]:
    """Group runs into points and points into rows, in the order in which they come.

    Args:
        runs: of one sweep.
        tuned: fields that validation chooses among.
    """
    points = [(_point(group), group) for group in _grouped(runs, lambda run: run.axes)]
    rows = _grouped(points, lambda pair: {k: v for k, v in pair[0].axes.items() if k not in tuned})
    return [_row(row, tuned) for row in rows]


def window_width(scores: Sequence[float | None], trivial: float) -> float | None:
    """Width of the good window: the fraction of learning rates whose accuracy is within `WINDOW` of the best one's.

        |{i : a_i >= max_j a_j - 0.02}| / number of learning rates

    Args:
        scores: mean validation accuracy at each learning rate; None where a run is missing, which is not good.
        trivial: accuracy of the best trivial rule.

    Returns:
        The fraction, or None where the best is no better than the trivial rule: there is no good window then.
    """
    known = [score for score in scores if score is not None]
    if not known or max(known) <= trivial:
        return None
    return sum(score >= max(known) - WINDOW for score in known) / len(scores)


def _row(pairs: Sequence[tuple[Point, Sequence[RunRecord]]], tuned: Sequence[str]) -> Row:
    swept = LEARNING_RATE in tuned
    points = [point for point, _ in pairs]
    if swept:
        points.sort(key=lambda point: point.axes[LEARNING_RATE])
    results = [run.result for _, group in pairs for run in group if run.result is not None]
    by_accuracy = any(point.has_accuracy for point in points)
    baselines = results[0]["baselines"] if results else None
    if baselines is not None and baselines["of"] != ("accuracy" if by_accuracy else "mse"):
        baselines = None
    trivial = 0.0 if baselines is None else baselines["best_trivial"]
    complete = [point for point in points if point.complete]
    best = max(complete, key=Point.rank, default=None)
    rates = [point.axes.get(LEARNING_RATE) for point in points]
    scores = [point.validation if point.complete else None for point in points]
    return Row(
        axes={name: value for name, value in points[0].axes.items() if name not in tuned},
        points=points,
        best=best,
        baselines=baselines,
        window=window_width(scores, trivial) if swept and best and by_accuracy else None,
        at_edge=swept and best is not None and best.axes[LEARNING_RATE] in (min(rates), max(rates)),
    )


def _point(runs: Sequence[RunRecord]) -> Point:
    results = [run.result for run in runs if run.result is not None]
    common = {"axes": runs[0].axes, "planned": len(runs), "finished": len(results)}
    if not results:
        return Point(**common)
    accuracy, accuracies = _numbers(results, "validation", "accuracy"), _numbers(results, "test", "accuracy")
    loss = _numbers(results, "validation", "loss")
    return Point(
        **common,
        validation=mean(accuracy) if accuracy else None,
        validation_loss=mean(loss) if loss else None,
        accuracies=accuracies,
        losses=_numbers(results, "test", "loss"),
        selected_by=results[0]["selected_by"],
        parameters=results[0]["parameters"],
        state_bytes=results[0]["state_bytes"],
        steps=mean(result["steps"] for result in results),
        seconds=mean(result["seconds"] for result in results),
    )


def _numbers(results: Sequence[Mapping[str, Any]], split: str, name: str) -> list[float]:
    """A number of every result; nothing where one of them lacks it or it is not finite."""
    found = [result[split].get(name) for result in results]
    return [] if None in found else found


def _grouped(items: Sequence[Any], key: Any) -> list[list[Any]]:
    """Items of equal keys together, in the order of their first."""
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item)), []).append(item)
    return list(groups.values())


def _read_json(file: Path, required: bool = True) -> Any:
    if not required and not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): give the output_dir of a sweep that has begun.") from error
