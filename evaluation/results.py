"""The one form of `results.json`, whatever was evaluated.

    schema          number of this form
    suite           name, split, seed, data_hash and whatever else says what the models were asked
    interval        what the intervals are
    models          one entry for each model: where it comes from, its sizes, and what was measured
        metrics         numbers, see `dsf_models.hub.metric.Metric`
        curves          numbers along an axis, see `Curve`
    config          of the evaluation
    environment     versions, commit, hardware, threads

A suite may add keys of its own to its `suite` and to the models; whoever reads all suites reads these alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dsf_models.hub.metric import Metric
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import UsageError

SCHEMA = 1
RESULTS = "results.json"
_KEYS = ("suite", "interval", "models", "config", "environment")
_SUITE_KEYS = ("name", "split", "seed", "data_hash")
_MODEL_KEYS = ("model", "label", "architecture", "parameters", "dtype", "state", "config", "metrics", "curves")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured number at a place on an axis."""

    x: float | str
    """The place: a number, or the name of a bin."""

    value: float | None
    """What was measured there, or None where `note` says why nothing was."""

    interval: tuple[float, float] | None = None
    """Its 95 % interval."""

    count: int | None = None
    """Number of examples, documents or repeats behind it."""

    chance: float | None = None
    """What guessing reaches there."""

    best_trivial: float | None = None
    """What the best simple rule reaches there."""

    note: str | None = None
    """Why there is no value."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Measured numbers along an axis."""

    name: str
    """Names the curve within its model; the same curve of several models is drawn in one figure."""

    y: str
    """What was measured, for the axis."""

    x: str
    """What changes, for the axis."""

    points: Sequence[Point]
    """In the order of the axis."""

    is_fraction: bool = True
    """Whether the numbers are fractions between 0 and 1, which are written in percent."""

    trained_at: float | None = None
    """Where on the axis the model was trained; None where that is not known, or nowhere."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return json.loads(json.dumps(asdict(self)))


def model_facts(model: PreTrainedModel, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What every suite says about a model.

    Args:
        model: any model.
        name: what it was loaded from.
        state: `bytes_per_sequence` and `after_tokens`, or a note.

    Returns:
        The entry of the model without what was measured.
    """
    return {
        "model": name,
        "architecture": model.config.model_type,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "state": dict(state),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
    }


def measured(metrics: Sequence[Metric], curves: Sequence[Curve] = ()) -> dict[str, Any]:
    """What was measured of a model, as its entry holds it."""
    return {"metrics": [metric.to_dict() for metric in metrics], "curves": [curve.to_dict() for curve in curves]}


def results(
    suite: Mapping[str, Any], interval: str, models: Sequence[dict[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        suite: what the models were asked.
        interval: what the intervals are.
        models: their entries, which are given their labels here.
        config: of the evaluation.
    """
    for model, label in zip(models, labels(models), strict=True):
        model["label"] = label
    return {
        "schema": SCHEMA,
        "suite": dict(suite),
        "interval": interval,
        "models": list(models),
        "config": dict(config),
        "environment": environment_facts(),
    }


def labels(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Short names that tell the models apart: their architectures, or where those repeat what they were loaded from."""
    short = [model["architecture"].removeprefix("dsf_") for model in models]
    return short if len(set(short)) == len(short) else [model["model"] for model in models]


def read_results(file: Path) -> dict[str, Any]:
    """Read a `results.json`.

    Raises:
        UsageError: it is damaged, or of another form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): evaluate again.") from error
    if problem := what_is_wrong(content):
        raise UsageError(f"{file} is no evaluation of this version: {problem}; evaluate again.")
    return content


def what_is_wrong(content: Any) -> str | None:
    """Why a value is not the content of a `results.json`, or None where it is."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return f"schema is {content.get('schema') if isinstance(content, dict) else None!r}, not {SCHEMA}"
    groups = [(content, _KEYS, ""), (content.get("suite", {}), _SUITE_KEYS, "suite.")]
    groups += [(model, _MODEL_KEYS, f"models.{i}.") for i, model in enumerate(content.get("models", []))]
    missing = [prefix + key for group, keys, prefix in groups for key in keys if key not in group]
    return f"{', '.join(missing)} missing" if missing else None


def curve_names(content: Mapping[str, Any]) -> list[str]:
    """The names of all curves of an evaluation, each once, in their order."""
    return list(dict.fromkeys(curve["name"] for model in content["models"] for curve in model["curves"]))


def curves_named(content: Mapping[str, Any], name: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The models that have a curve of this name, each with its curve."""
    return [(model, curve) for model in content["models"] for curve in model["curves"] if curve["name"] == name]
