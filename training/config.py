"""Everything that a run can be told: one dataclass per section of the YAML file, and the command line that fills them.

The sections are `run` (folder and seed), `model` (architecture and its configuration fields), `task`, `text` or
`labelled` (what is learned), `optimizer`, `schedule`, `training` (the loop) and `tracker`. A YAML file gives them, and
the command line overrides it: `--section.field value`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from dsf_models.hub.usage import UsageError, explain_parser_error
from dsf_models.tasks.images import SIDE

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives and what it starts from."""

    output_dir: str
    """Folder of this run: checkpoints, metrics, records and the final model. One run per folder."""

    seed: int = 0
    """Seed of the initial weights, of the order of the training examples and of dropout."""

    threads: int | None = None
    """Threads of each process on the CPU, which decide the last bits of a result; null leaves the choice to torch."""

    resume: bool = False
    """Continue the run in `output_dir` from its last checkpoint; a run without a checkpoint starts at step 0."""

    overwrite: bool = False
    """Delete the run in `output_dir` and start again."""

    def __post_init__(self) -> None:
        _require(self.output_dir != "", "run.output_dir", self.output_dir, "give a folder name")
        _require(0 <= self.seed < 2**32, "run.seed", self.seed, "use an integer from 0 to 2**32 - 1")
        if self.threads is not None:
            _require(self.threads > 0, "run.threads", self.threads, "use at least 1, or null")
        if self.resume and self.overwrite:
            raise UsageError("run.resume and run.overwrite are both true, which contradict each other: give one.")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which examples the model learns from, is selected by and is tested on."""

    name: str
    """Name of a task of `dsf_models.tasks`."""

    sizes: dict[str, Any] = field(default_factory=dict)
    """Sizes of the task, such as its sequence length; the task's own defaults where left out."""

    seed: int = 0
    """Seed of the examples; apart from `run.seed`, so that both can be varied alone."""

    train_examples: int = 20_000
    """Examples in the training split, which is passed through in a new order in every epoch."""

    validation_examples: int = 1_000
    """Examples in the split that selects the weights and stops the run."""

    test_examples: int = 1_000
    """Examples in the split that is looked at once, with the selected weights."""

    def __post_init__(self) -> None:
        for name in ("train_examples", "validation_examples", "test_examples"):
            _require(getattr(self, name) > 0, f"task.{name}", getattr(self, name), "use at least 1")
        _require(self.seed >= 0, "task.seed", self.seed, "use an integer of 0 or more")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text that a language model learns: documents, their tokens, and rows of these."""

    name: str = "text"
    """What the text is called, in reports and on the model's card."""

    files: list[str] = field(default_factory=list)
    """Local files, folders and globs: plain text, JSON lines, CSV or Parquet."""

    dataset: str | None = None
    """Id of a dataset of the Hub, in place of files."""

    dataset_config: str | None = None
    """Configuration of that dataset, where it has several."""

    dataset_split: str = "train"
    """Split of that dataset whose documents are taken."""

    revision: str | None = None
    """Branch, tag or commit of that dataset."""

    column: str = "text"
    """Column that holds the text."""

    separator: str | None = None
    """Line that parts the documents of a plain text file ("" for an empty line); null: a file is one document."""

    streaming: bool = False
    """Read documents while training, in place of reading and packing all of them before."""

    deduplicate: bool = False
    """Keep the first of documents with the same text; not for streams."""

    validation_fraction: float = 0.05
    """Share of the documents that selects the weights; a document's own text decides its split."""

    test_fraction: float = 0.05
    """Share of the documents that the selected weights are tested on, once."""

    seed: int = 0
    """Seed of the splits."""

    tokenizer: str = "bytes"
    """"bytes", "train" (byte-level BPE, on the training split), a folder, or an id of the Hub."""

    vocab_size: int | None = None
    """Tokens of a tokenizer that is trained."""

    tokenizer_documents: int | None = None
    """Documents that a tokenizer is trained on, from the first on; null: all of them."""

    block_size: int = 512
    """Tokens of a row; documents are packed into rows one behind the other."""

    evaluation_rows: int | None = None
    """Rows of the validation and of the test split that are scored, from the first on; null: all of them."""

    shuffle_window: int = 1024
    """Rows of a stream that are brought into a random order together."""

    ngram_baseline: bool = False
    """Score a Kneser-Ney 3-gram on the same rows, for comparison; not for streams."""

    def __post_init__(self) -> None:
        if bool(self.files) == (self.dataset is not None):
            raise UsageError(
                f"text.files is {self.files!r} and text.dataset is {self.dataset!r}: give one of them, not both."
            )
        for name in ("block_size", "shuffle_window"):
            _require(getattr(self, name) >= 2, f"text.{name}", getattr(self, name), "use at least 2")
        for name in ("evaluation_rows", "tokenizer_documents"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"text.{name}", value, "use at least 1, or null for all")
            _require(value is not None or not self._needs(name), f"text.{name}", value, "a stream needs a number")
        for name in ("validation_fraction", "test_fraction"):
            _require(0 < getattr(self, name) < 1, f"text.{name}", getattr(self, name), "use a fraction below 1")
        left = 1 - self.validation_fraction - self.test_fraction
        _require(left > 0, "text.test_fraction", self.test_fraction, "leave a part of the text for training")
        trained = self.tokenizer == "train"
        remedy = "give the number of tokens" if trained else 'only the tokenizer "train" has it: leave it out'
        _require(trained == (self.vocab_size is not None), "text.vocab_size", self.vocab_size, remedy)
        remedy = 'only the tokenizer "train" has it: leave it out'
        count = self.tokenizer_documents
        _require(trained or count is None, "text.tokenizer_documents", count, remedy)
        for name in ("deduplicate", "ngram_baseline"):
            _require(not (self.streaming and getattr(self, name)), f"text.{name}", True, "not with text.streaming")

    def _needs(self, name: str) -> bool:
        return self.streaming and (name == "evaluation_rows" or self.tokenizer == "train")


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """The sequences with a class each that a classifier learns, in the splits of the evaluation suite `lra`."""

    data: Literal["text", "pixels"]
    """"text": documents, read byte by byte. "pixels": Fashion-MNIST, a token for each grey level."""

    name: str | None = None
    """What the documents are called, in reports and on the model's card; only for text."""

    files: list[str] = field(default_factory=list)
    """CSV files of documents and their classes, folders and globs of them; only for text."""

    column: str | None = None
    """Column that holds the text, null: "text"; only for text."""

    label: str | None = None
    """Column that holds the class, null: "label"; only for text."""

    length: int | None = None
    """Bytes of a document that are read, null: 4096; only for text."""

    folder: str | None = None
    """Folder of the idx files, null: where scripts/fashion_mnist.py puts them; only for pixels."""

    pooling: int | None = None
    """Side of the squares of pixels whose mean is one token, null: 1; only for pixels."""

    train_examples: int | None = None
    """Sequences of the training split, from the first on; null: all."""

    validation_examples: int | None = None
    """Sequences that select the weights and stop the run, from the first on; null: all."""

    test_examples: int | None = None
    """Sequences that the selected weights are tested on, once, from the first on; null: all."""

    def __post_init__(self) -> None:
        others = {"text": ("folder", "pooling"), "pixels": ("name", "files", "column", "label", "length")}[self.data]
        for name in others:
            value = getattr(self, name)
            _require(
                value in (None, []), f"labelled.{name}", value, f"labelled.data {self.data!r} has none: leave it out"
            )
        if self.data == "text":
            _require(bool(self.files), "labelled.files", self.files, "give CSV files of documents with their classes")
        for name in ("length", "pooling", "train_examples", "validation_examples", "test_examples"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"labelled.{name}", value, "use at least 1, or null")
        _require(SIDE % (self.pooling or 1) == 0, "labelled.pooling", self.pooling, f"use a divisor of {SIDE}, or null")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW; norms, biases and the parameters of Λ are never decayed."""

    learning_rate: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices."""

    transition_ratio: float = 1.0
    """Learning rate of the parameters of Λ, as a multiple of `learning_rate`."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the averages of the gradient and of its square."""

    epsilon: float = 1e-8
    """Added to the root of the averaged square."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "transition_ratio"):
            _require(0 < getattr(self, name) < inf, f"optimizer.{name}", getattr(self, name), "use a positive number")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "use 0 or a positive number")
        _require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "use two numbers in [0, 1)")
        _require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "use a positive number")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps: a linear warm-up, then one of three shapes."""

    shape: Literal["cosine", "wsd", "constant"] = "cosine"
    """"cosine": half a cosine from the highest learning rate to the last one. "wsd" (warm-up, stable, decay): constant,
    then a line to the last one over `decay_steps`. "constant": no decay."""

    warmup_steps: int = 100
    """Steps of the warm-up; 0 starts at the highest learning rate."""

    decay_steps: int | None = None
    """Steps of the decay of "wsd"; null: a fifth of all steps."""

    final_ratio: float = 0.1
    """Learning rate of the last step, as a fraction of the highest; "constant" leaves it out of account."""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "use 0 or more")
        _require(0 <= self.final_ratio <= 1, "schedule.final_ratio", self.final_ratio, "use a number from 0 to 1")
        if self.decay_steps is not None:
            _require(self.decay_steps > 0, "schedule.decay_steps", self.decay_steps, "use at least 1, or null")
            _require(self.shape == "wsd", "schedule.decay_steps", self.decay_steps, 'only shape "wsd" has it: use null')


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop: how much is learned at once, for how long, and what is looked at on the way."""

    batch_size: int = 64
    """Examples per optimiser step over all processes and accumulated parts together."""

    max_steps: int = 1_000
    """Optimiser steps at most."""

    gradient_accumulation_steps: int = 1
    """Parts that each process splits its share of a batch into; changes memory, not the result."""

    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null leaves them alone."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass; fp16 needs an accelerator."""

    activation_checkpointing: bool = False
    """Compute activations anew in the backward pass: less memory, more time, the same result."""

    compile: bool = False
    """Compile the model with torch.compile, which pays where a run is long."""

    max_skipped_steps: int = 10
    """Steps in a row whose gradient may be infinite or not a number; such steps leave the weights alone, and one more
    stops the run."""

    peak_flops: float | None = None
    """Floating-point operations per second that one device can do, of which the log then says the share used; null
    takes what is known of the GPU, and says nothing on a CPU."""

    eval_batch_size: int = 256
    """Examples per forward pass of an evaluation and process; changes memory, not the result."""

    log_every: int = 10
    """Steps between two records of the training loss."""

    eval_every: int = 100
    """Steps between two evaluations on the validation split; the last step is always evaluated."""

    checkpoint_every: int = 100
    """Steps between two checkpoints; the last step always leaves one."""

    keep_checkpoints: int = 2
    """Number of checkpoints kept; the selected weights are kept besides."""

    patience: int | None = None
    """Stop after this many evaluations in a row without a better one; null never does."""

    target_accuracy: float | None = None
    """Stop once the validation accuracy reaches this fraction; null never does."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "use at least 1")
        _require(self.max_skipped_steps >= 0, "training.max_skipped_steps", self.max_skipped_steps, "use 0 or more")
        if self.peak_flops is not None:
            _require(self.peak_flops > 0, "training.peak_flops", self.peak_flops, "use a positive number, or null")
        if self.max_grad_norm is not None:
            _require(self.max_grad_norm > 0, "training.max_grad_norm", self.max_grad_norm, "use more than 0, or null")
        if self.patience is not None:
            _require(self.patience > 0, "training.patience", self.patience, "use at least 1, or null")
        if self.target_accuracy is not None:
            accuracy = self.target_accuracy
            _require(0 < accuracy <= 1, "training.target_accuracy", accuracy, "use a fraction up to 1, or null")


_COUNTS = (
    "batch_size",
    "max_steps",
    "gradient_accumulation_steps",
    "eval_batch_size",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
)


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Where metrics go besides `metrics.jsonl`."""

    name: str = "tensorboard"
    """An Accelerate tracker ("tensorboard", "trackio", "wandb", …), or "none"."""

    project: str = "dsf_models"
    """Name of the project in the tracker."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    run: RunConfig
    """Where the run lives and what it starts from."""

    model: dict[str, Any]
    """`architecture`, a name of `dsf_models.list_architectures()`, and any field of its configuration class."""

    task: TaskConfig | None = None
    """The synthetic task that is learned; or give `text` or `labelled`."""

    text: TextConfig | None = None
    """The text that a language model learns; or give `task` or `labelled`."""

    labelled: LabelledConfig | None = None
    """The sequences that a classifier learns; or give `task` or `text`."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""

    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """Where metrics go besides `metrics.jsonl`."""

    def __post_init__(self) -> None:
        if not isinstance(self.model.get("architecture"), str):
            raise UsageError("model.architecture is missing: name one of dsf_models.list_architectures().")
        if sum(section is not None for section in (self.task, self.text, self.labelled)) != 1:
            raise UsageError("Give one of the sections `task`, `text` and `labelled`: what the model learns.")
        steps, warmup, decay = self.training.max_steps, self.schedule.warmup_steps, self.schedule.decay_steps or 0
        _require(warmup < steps, "schedule.warmup_steps", warmup, f"use less than training.max_steps ({steps})")
        most = steps - warmup
        _require(decay <= most, "schedule.decay_steps", decay, f"warm-up and decay overlap: use at most {most}")

    @property
    def data_section(self) -> str:
        """Name of the section that says what is learned."""
        return next(name for name in _OPTIONAL if getattr(self, name) is not None)

    @property
    def data_seed(self) -> int | None:
        """Seed of the examples or of their splits; None where these have none."""
        return getattr(getattr(self, self.data_section), "seed", None)


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Read the run's configuration from YAML files and overrides.

    Args:
        arguments: command line without the program's name; None reads that of this process.

    Returns:
        The validated configuration.

    Raises:
        UsageError: for an unreadable file, an unknown key (naming the closest known one), a value of the wrong type
            or out of range, and a missing one.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(frozenset(_sections_given(words) & _OPTIONAL.keys()))
    try:
        parsed = parser.parse_args(words)
        parsed.pop("config")
        return TrainConfig(**vars(parser.instantiate(parsed)))
    except ArgumentError as error:
        raise UsageError(explain_parser_error(str(error), known_keys())) from error


_OPTIONAL = {"task": TaskConfig, "text": TextConfig, "labelled": LabelledConfig}


@cache
def _parser(given: frozenset[str]) -> ArgumentParser:
    """A parser of all sections but those optional ones that are not given, which it could not leave out."""
    parser = ArgumentParser(prog="train.py", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the sections; may be repeated.")
    parser.add_class_arguments(TrainConfig, skip=set(_OPTIONAL))
    for name in sorted(given):
        parser.add_class_arguments(_OPTIONAL[name], name)
    return parser


def _sections_given(words: Sequence[str]) -> set[str]:
    """The sections that a command line or its files mention."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    known, others = parser.parse_known_args([word for word in words if word != "--help"])
    given = {word.removeprefix("--").partition("=")[0].partition(".")[0] for word in others if word.startswith("--")}
    for file in known.config:
        # What is wrong with a file is said where it is parsed in earnest.
        with suppress(UsageError):
            given |= read_yaml(Path(file)).keys()
    return given


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """The resolved configuration as plain values (tuples as lists), in the layout of the YAML files."""
    sections = json.loads(json.dumps(asdict(config)))
    return {name: section for name, section in sections.items() if section is not None}


def config_to_yaml(config: TrainConfig) -> str:
    """The resolved configuration as YAML, which `parse_config` reads back to an equal one."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two configurations differ, each as `section.field: old -> new`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


def known_keys(section: type = TrainConfig, prefix: str = "") -> list[str]:
    """Every key of the YAML files, dotted."""
    keys: list[str] = []
    types = get_type_hints(section)
    for item in fields(section):
        kinds = [kind for kind in (types[item.name], *get_args(types[item.name])) if is_dataclass(kind)]
        if kinds:
            keys += known_keys(kinds[0], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one of this project's own YAML records.

    Raises:
        UsageError: where the file is not one.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no sections.")
    return content


def _require(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise UsageError(f"{name} is {value!r}: {remedy}.")
