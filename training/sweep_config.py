"""Everything that a sweep can be told, and the runs that it amounts to.

A sweep is a training configuration (`base`, `overrides`) times every combination of `axes`, times the samples of a
`random` search, times `seeds`. A field is named by its dotted key, as on the command line of `train.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import Path_fr

from dsf_models.hub.usage import UsageError, explain_parser_error

LEARNING_RATE = "optimizer.learning_rate"
"""The field whose curve is drawn, and which is chosen by validation wherever it is swept."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Values drawn at random: the same samples for every combination of the axes."""

    samples: int = 0
    """Number of samples; raising it keeps the earlier ones, and equal ones are run once. 0 for no search."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Field by field a list to choose from, or a range {from: 1e-4, to: 1e-1, scale: log} (or scale: linear)."""

    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        least = 1 if self.fields else 0
        require(self.samples >= least, "random.samples", self.samples, f"use at least {least}")
        require(self.seed >= 0, "random.seed", self.seed, "use an integer of 0 or more")
        named = bool(self.fields) or self.samples == 0
        require(named, "random.fields", self.fields, "name at least one field, or leave `random` out")


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What the table averages over; the two lists are combined with each other."""

    run: list[int] | None = None
    """Values of `run.seed`: initial weights, order, dropout. Null keeps that of the base."""

    data: list[int] | None = None
    """Values of `task.seed` (the examples) or `text.seed` (the splits). Null keeps that of the base."""

    def __post_init__(self) -> None:
        for name, seeds in (("run", self.run), ("data", self.data)):
            if seeds is not None:
                require(bool(seeds), f"seeds.{name}", seeds, "give at least one seed, or null")
                require(len(set(seeds)) == len(seeds), f"seeds.{name}", seeds, "give each seed once")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep."""

    base: Path_fr
    """YAML file of a training run; its path is relative to the sweep's file."""

    output_dir: str
    """Folder of the sweep: a folder for each run, logs, results, table and figure."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of every run, by dotted key, in place of those of the base."""

    axes: dict[str, Any] = field(default_factory=dict)
    """By field a list of values or a range {from: 1e-4, to: 1e-1, points: 9, scale: log}; a name without a dot stands
    for several fields at once: {small: {model.hidden_size: 64, training.batch_size: 128}, large: {…}}."""

    random: RandomSearch = field(default_factory=RandomSearch)
    """Random search besides."""

    seeds: Seeds = field(default_factory=Seeds)
    """Seeds of every combination."""

    launcher: Literal["local", "ray"] = "local"
    """"local": processes on this machine; "ray": on all machines of a Ray cluster, which share the output folder."""

    parallel: int | None = None
    """Runs at a time. Null: one for each GPU, without any as many as the cores hold at `run.threads` threads each."""

    hours: float | None = None
    """Stop after this time, so that the same command goes on later; null goes on to the end."""

    def __post_init__(self) -> None:
        require(self.output_dir != "", "output_dir", self.output_dir, "give a folder name")
        if self.parallel is not None:
            require(self.parallel > 0, "parallel", self.parallel, "use at least 1, or null")
        if self.hours is not None:
            require(self.hours > 0, "hours", self.hours, "use a positive number, or null")
        for name in self.random.fields.keys() & self.axes.keys():
            raise UsageError(f"{name} is in axes and in random.fields: name it in one of them.")

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return Path(self.output_dir)

    @property
    def tuned(self) -> list[str]:
        """The fields that validation chooses among, rather than rows of the table: learning rate and random search."""
        return [LEARNING_RATE] * (LEARNING_RATE in self.axes) + list(self.random.fields)


def parse_sweep(arguments: Sequence[str] | None = None) -> tuple[SweepConfig, str]:
    """Read a sweep from YAML files and the command line.

    Args:
        arguments: command line without the program's name; None reads that of this process.

    Returns:
        The sweep, and what to do: "run", "dry-run" or "table".

    Raises:
        UsageError: for an unreadable file, an unknown key, a value of the wrong type or out of range, a missing one.
    """
    parser = ArgumentParser(prog="sweep.py", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of the sweep; may be repeated.")
    parser.add_argument("--dry-run", action="store_true", help="Check and print every run's configuration, run none.")
    parser.add_argument("--table", action="store_true", help="Write table and figure from the results there are.")
    parser.add_class_arguments(SweepConfig)
    try:
        parsed = parser.parse_args(arguments)
        parsed.pop("config")
        dry_run, table = parsed.pop("dry_run"), parsed.pop("table")
        sweep = SweepConfig(**vars(parser.instantiate(parsed)))
    except ArgumentError as error:
        keys = [item.name for item in fields(SweepConfig)]
        raise UsageError(explain_parser_error(str(error), keys)) from error
    if dry_run and table:
        raise UsageError("--dry-run and --table are both given: give one.")
    return sweep, "dry-run" if dry_run else "table" if table else "run"


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise UsageError "name is value: remedy." unless the condition holds."""
    if not condition:
        raise UsageError(f"{name} is {value!r}: {remedy}.")
