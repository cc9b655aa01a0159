"""What an evaluation can be told, and the command line that fills it in."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from dsf_models.hub.usage import UsageError, explain_parser_error

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation: some checkpoints, one suite."""

    model: list[str]
    """Folders or ids on the Hub; several are evaluated on the same examples and drawn in one figure."""

    output_dir: str
    """Folder for `results.json` and the figure; it appears only when both are complete."""

    suite: str | None = None
    """Name of a task; that of the checkpoints' own task records where left out."""

    sizes: dict[str, Any] = field(default_factory=dict)
    """Sizes of the task; those of the task records where left out, and the task's defaults where there is no record."""

    split: str = "test"
    """Split of the task."""

    seed: int | None = None
    """Seed of the examples; that of the task records where left out, and 0 where there is no record."""

    num_examples: int | None = None
    """Number of examples; that of the task records where left out, and 1,000 where there is no record."""

    batch_size: int = 64
    """Examples per forward pass; changes memory, not the result."""

    overwrite: bool = False
    """Replace the results of an earlier evaluation in `output_dir`."""

    def __post_init__(self) -> None:
        for name in ("num_examples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: use at least 1.")


def parse_config(arguments: Sequence[str] | None = None) -> EvaluationConfig:
    """Read the command line.

    Args:
        arguments: without the program's name; None reads those of this process.

    Returns:
        The configuration.

    Raises:
        UsageError: for an unknown argument (naming the closest known one), a missing one or a value of the wrong type.
    """
    parser = ArgumentParser(prog="evaluate.py", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", type=str, required=True, help="Folders or ids on the Hub.")
    parser.add_class_arguments(EvaluationConfig, skip={"model"})
    try:
        return EvaluationConfig(**vars(parser.instantiate(parser.parse_args(arguments))))
    except ArgumentError as error:
        keys = [item.name for item in fields(EvaluationConfig)]
        raise UsageError(explain_parser_error(str(error), keys)) from error
