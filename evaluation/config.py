"""What an evaluation can be told, and the command line that fills it in."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from dsf_models.hub.usage import UsageError, explain_parser_error

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Documents, and how a language model reads them."""

    name: str = "text"
    """What the documents are called in results and cards."""

    files: str | list[str] = field(default_factory=list)
    """A file, folder or glob of text, JSON lines, CSV or Parquet, or several of them."""

    column: str = "text"
    """Column that holds the text."""

    label: str = "label"
    """Column that holds the class, where texts are classified."""

    separator: str | None = None
    """Line that parts the documents of a plain text file ("" for an empty line); a file is one document without it."""

    tokenizer: str | None = None
    """Folder or id of the tokenizer, or "bytes"; that of the checkpoint where left out."""

    window: int | None = None
    """Most tokens that a model reads at once; its own limit where left out, and whole documents where it has none."""

    stride: int | None = None
    """Tokens between the starts of two windows of a longer document; half a window where left out."""

    end_of_text: bool = True
    """Whether the end-of-text token behind a document is scored too."""


@dataclass(frozen=True, kw_only=True)
class LraOptions:
    """Which task of the suite `lra`, and where its data lie."""

    data: Literal["listops", "listops_small", "pathfinder", "text", "pixels"] | None = None
    """The task; that of the checkpoint's task record where left out."""

    folder: str | None = None
    """Folder of the pixels' idx files; that of scripts/fashion_mnist.py where left out."""


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is timed."""

    lengths: list[int] = field(default_factory=lambda: [256, 1024, 4096])
    """Tokens of a sequence, for prefill and training steps."""

    tokens: int = 4096
    """Tokens of a batch, the same at every length."""

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Sequences that are decoded together."""

    context: int = 256
    """Tokens in front of the decoded ones."""

    repeats: int = 10
    """Timed repeats of each measurement."""

    memory: bool = True
    """Whether the memory of each measurement is measured too, on a CPU in a process of its own."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation: some checkpoints, one suite."""

    model: list[str]
    """Folders or ids on the Hub; several are evaluated on the same examples and drawn in one figure."""

    output_dir: str
    """Folder for `results.json` and the figures; it appears only when all are complete."""

    suite: str | None = None
    """Name of a task or of a suite (lra, perplexity, selection, speed); the task of the checkpoints' own task records
    where left out."""

    sizes: dict[str, Any] = field(default_factory=dict)
    """Sizes of the task; those of the task records where left out, and the task's defaults where there is no record."""

    split: str = "test"
    """Split of the task."""

    seed: int | None = None
    """Seed of the examples; that of the task records where left out, and 0 where there is no record."""

    num_examples: int | None = None
    """Number of examples or documents; of a task that of the task records where left out, and 1,000 where there is no
    record; of documents so many chosen at random, and all where left out."""

    batch_size: int = 64
    """Examples per forward pass; changes memory, not the result."""

    factors: list[float] = field(default_factory=lambda: [1, 2, 4, 8])
    """Of the suite `selection`: multiples of the trained length, and of the trained difficulty."""

    text: TextOptions = field(default_factory=TextOptions)
    """Of the suites `perplexity` and `lra`: the documents."""

    lra: LraOptions = field(default_factory=LraOptions)
    """Of the suite `lra`: its task."""

    speed: SpeedOptions = field(default_factory=SpeedOptions)
    """Of the suite `speed`: what is timed."""

    record: bool = False
    """Write what was found into the checkpoints too, so that their cards and the Hub carry it."""

    overwrite: bool = False
    """Replace the results of an earlier evaluation in `output_dir`."""

    def __post_init__(self) -> None:
        at_least = {"num_examples": 1, "batch_size": 1}
        values = [(name, getattr(self, name), least) for name, least in at_least.items()]
        values += [(f"text.{name}", getattr(self.text, name), 1) for name in ("window", "stride")]
        values += [(f"speed.{name}", getattr(self.speed, name), 1) for name in ("tokens", "context", "repeats")]
        for name in ("lengths", "batch_sizes"):
            values += [(f"speed.{name}", value, 1) for value in getattr(self.speed, name)]
        for name, value, least in values:
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}: use at least {least}.")
        if not self.factors or min(self.factors) <= 0:
            raise UsageError(f"factors is {self.factors}: give at least one, each above 0.")


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
        raise UsageError(explain_parser_error(str(error), known_keys(EvaluationConfig))) from error


def known_keys(section: type) -> list[str]:
    """Every key that a configuration can be told, with those of its sections after a dot."""
    keys = []
    for item in fields(section):
        keys.append(item.name)
        if is_dataclass(item.type):
            keys += [f"{item.name}.{key}" for key in known_keys(item.type)]
    return keys
