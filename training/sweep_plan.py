"""From a sweep to its runs: axes, random search and seeds, each run with its resolved configuration."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from dsf_models.hub.usage import UsageError, closest
from training.config import TrainConfig, config_to_dict, parse_config
from training.sweep_config import RandomSearch, SweepConfig, require

_RANGE_EXAMPLE = "{from: 1e-4, to: 1e-1, points: 9, scale: log}"
_RESERVED = ("run.output_dir", "run.resume", "run.overwrite")


@dataclass(frozen=True)
class Choice:
    """One value of an axis."""

    value: Any
    """What the table shows."""

    settings: Mapping[str, Any]
    """The fields that it sets, by dotted key."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Name of its folder."""

    axes: Mapping[str, Any]
    """Its value on every axis and of every field of the random search."""

    settings: Mapping[str, Any]
    """The fields in which it departs from the base, seeds left out, by dotted key."""

    config: TrainConfig
    """Its resolved configuration."""


def base_config(sweep: SweepConfig) -> TrainConfig:
    """What all runs start from: the base with the overrides, on one thread unless it names a number.

    Raises:
        UsageError: naming the file.
    """
    overrides = flat(sweep.overrides)
    _check_fields(overrides, "overrides")
    config = _resolve(sweep, overrides, f"The base {str(sweep.base)!r} with the overrides")
    # A number that followed from `parallel` would change the last bits of a sweep that goes on with another one.
    return config if config.run.threads else replace(config, run=replace(config.run, threads=1))


def plan(sweep: SweepConfig) -> list[PlannedRun]:
    """All runs of a sweep, in order; nothing is written.

    Raises:
        UsageError: for axes that make no sense, for runs of one name, and for a run whose configuration is refused.
    """
    base = base_config(sweep)
    axes = [(name, axis_choices(name, content)) for name, content in sweep.axes.items()]
    samples = random_choices(sweep.random)
    runs = []
    for combination in itertools.product(*(choices for _, choices in axes)):
        for sample in samples:
            chosen = dict(zip((name for name, _ in axes), combination, strict=True)) | sample
            runs += _runs_of_cell(sweep, base, chosen)
    repeated = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
    if repeated:
        raise UsageError(f"Several runs would be named {repeated[0]!r}: let the axes hold each value once.")
    return runs


def record_of(sweep: SweepConfig, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """What `sweep.json` says about a sweep; equal records mean equal runs."""
    base = config_to_dict(base_config(sweep))
    # The folder may be moved, and the tracker has no influence on a run.
    base["run"] = {name: value for name, value in base["run"].items() if f"run.{name}" not in _RESERVED}
    base.pop("tracker", None)
    return {
        "base": base,
        "tuned": sweep.tuned,
        "runs": {
            run.name: {
                "axes": dict(run.axes),
                "seeds": {"run": run.config.run.seed, "data": run.config.data_seed},
                "settings": dict(run.settings),
            }
            for run in runs
        },
    }


def axis_choices(name: str, content: Any) -> list[Choice]:
    """The values of one axis.

    Args:
        name: a dotted field; or, without a dot, a name for several fields.
        content: a list or a range; or a mapping of labels to fields.

    Raises:
        UsageError: where it is none of them.
    """
    where = f"axes.{name}"
    if "." not in name:
        return _labelled_choices(where, content)
    _check_fields([name], "axes")
    if isinstance(content, Mapping):
        _check_range(where, content, {"from", "to", "points", "scale"})
        points = content["points"]
        valid = isinstance(points, int) and not isinstance(points, bool) and points >= 2
        require(valid, f"{where}.points", points, "use an integer of at least 2")
        values = [_at(content, i / (points - 1)) for i in range(points)]
    else:
        values = _checked_list(where, content)
    return [Choice(value, {name: value}) for value in values]


def random_choices(search: RandomSearch) -> list[dict[str, Choice]]:
    """The different samples of a random search, one without a field where there is none.

    Each field has a stream of its own, so that more samples keep the first ones.
    """
    _check_fields(search.fields, "random.fields")
    drawn = {}
    for name, content in search.fields.items():
        where = f"random.fields.{name}"
        uniform = np.random.default_rng([search.seed, *name.encode()]).random(search.samples).tolist()
        if isinstance(content, Mapping):
            _check_range(where, content, {"from", "to", "scale"})
            drawn[name] = [_at(content, u) for u in uniform]
        else:
            values = _checked_list(where, content)
            drawn[name] = [values[int(u * len(values))] for u in uniform]
    samples = [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)] or [{}]
    samples = [sample for i, sample in enumerate(samples) if sample not in samples[:i]]
    return [{name: Choice(value, {name: value}) for name, value in sample.items()} for sample in samples]


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping) and value
        result |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return result


def _runs_of_cell(sweep: SweepConfig, base: TrainConfig, chosen: Mapping[str, Choice]) -> list[PlannedRun]:
    """One run for each combination of seeds; the seeds' values were checked when the sweep was read."""
    settings = {key: value for choice in chosen.values() for key, value in choice.settings.items()}
    axes = {name: choice.value for name, choice in chosen.items()}
    cell_name = "-".join(_name_part(name, value) for name, value in axes.items())
    cell = _resolve(sweep, flat(sweep.overrides) | settings, f"Run {cell_name!r}")
    runs = []
    for run_seed, data_seed in itertools.product(sweep.seeds.run or [None], sweep.seeds.data or [None]):
        parts = [cell_name] * bool(cell_name)
        parts += [f"seed_{run_seed}"] * (run_seed is not None) + [f"data_{data_seed}"] * (data_seed is not None)
        name = "-".join(parts) or "run"
        run = replace(
            cell.run,
            output_dir=str(sweep.folder / "runs" / name),
            threads=cell.run.threads or base.run.threads,
            seed=cell.run.seed if run_seed is None else run_seed,
        )
        runs.append(PlannedRun(name, axes, settings, _with_data_seed(replace(cell, run=run), data_seed)))
    return runs


def _with_data_seed(config: TrainConfig, seed: int | None) -> TrainConfig:
    if seed is None:
        return config
    section = config.data_section
    if config.data_seed is None:
        raise UsageError(f"seeds.data is given, but the splits of `{section}` are always the same: leave it out.")
    return replace(config, **{section: replace(getattr(config, section), seed=seed)})


def _resolve(sweep: SweepConfig, settings: Mapping[str, Any], what: str) -> TrainConfig:
    words = [word for key, value in settings.items() for word in (f"--{key}", _word(value))]
    try:
        return parse_config(["--config", sweep.base.absolute, *words])
    except UsageError as error:
        raise UsageError(f"{what} is refused: {error}") from error


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name_part(axis: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else _word(value)
    short = axis.rpartition(".")[2]
    return re.sub(r"[^\w.+-]+", "_", text if isinstance(value, str) else f"{short}_{text}")


def _labelled_choices(where: str, content: Any) -> list[Choice]:
    if not (isinstance(content, Mapping) and content and all(isinstance(v, Mapping) for v in content.values())):
        raise UsageError(
            f"{where} is {content!r}: a name without a dot stands for several fields, so give labels with their fields "
            "({small: {model.hidden_size: 64}, large: {…}}); a single field is named with its section "
            "(model.hidden_size)."
        )
    for label, settings in content.items():
        require(isinstance(label, str), f"A label of {where}", label, "put it in quotes (YAML reads 64_4 as a number)")
        _check_fields(flat(settings), f"{where}.{label}")
    return [Choice(label, flat(settings)) for label, settings in content.items()]


def _checked_list(where: str, content: Any) -> list[Any]:
    valid = isinstance(content, list) and len(content) > 0
    require(valid, where, content, f"give a list of values, or a range such as {_RANGE_EXAMPLE}")
    return content


def _check_range(where: str, content: Mapping[str, Any], keys: set[str]) -> None:
    for key in content.keys() - keys:
        raise UsageError(f"Unknown key {f'{where}.{key}'!r}. {closest(str(key), keys)}")
    for key in sorted(keys - content.keys()):
        raise UsageError(f"{where}.{key} is missing: write a range as {_RANGE_EXAMPLE}, `points` only on an axis.")
    for key in ("from", "to"):
        value = content[key]
        valid = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        require(valid, f"{where}.{key}", value, "use a number")
    require(content["scale"] in ("log", "linear"), f"{where}.scale", content["scale"], 'use "log" or "linear"')
    require(content["from"] < content["to"], f"{where}.from", content["from"], f"use less than to ({content['to']})")
    if content["scale"] == "log":
        require(content["from"] > 0, f"{where}.from", content["from"], "a log scale starts above 0")


def _at(content: Mapping[str, Any], fraction: float) -> float:
    """The number at a fraction of a range, to six significant digits, so that names and files stay readable."""
    first, last = content["from"], content["to"]
    if content["scale"] == "log":
        first, last = math.log(first), math.log(last)
    value = first + (last - first) * fraction
    return float(f"{math.exp(value) if content['scale'] == 'log' else value:.6g}")


def _check_fields(names: Iterable[Any], where: str) -> None:
    for name in names:
        require(isinstance(name, str) and "." in name, f"A field of {where}", name, "write section.field")
        require(name not in _RESERVED, f"A field of {where}", name, "the sweep sets it: remove it")
        seed = {"run.seed": "seeds.run", "task.seed": "seeds.data", "text.seed": "seeds.data"}.get(name)
        require(seed is None or where == "overrides", f"A field of {where}", name, f"list its values in {seed}")
