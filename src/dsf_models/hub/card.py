"""The model card of a trained checkpoint, as a pure function of the facts about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..analysis import state_bytes
from ..backbone import DSFConfig, get_architecture
from ..portable import is_portable
from .conversion.checkpoint import read_config
from .evaluation_record import EvaluationRecord, with_evaluations
from .metric import Metric
from .usage import UsageError

DSF_PAPER = """\
@inproceedings{sieber2024understanding,
  title     = {Understanding the differences in Foundation Models: Attention, State Space Models,
               and Recurrent Neural Networks},
  author    = {Sieber, Jerome and Amo Alonso, Carmen and Didier, Alexandre and Zeilinger, Melanie N.
               and Orvieto, Antonio},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2405.15731},
}"""
"""The paper of the framework that every architecture here is written in."""

TOKEN_SELECTION_PAPER = """\
@inproceedings{nishikawa2025state,
  title     = {State Space Models are Provably Comparable to Transformers in Dynamic Token Selection},
  author    = {Nishikawa, Naoki and Suzuki, Taiji},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2405.19036},
}"""
"""The paper to cite as well where the task is one of dynamic token selection."""

_HEADINGS = {"task": "## Task", "text": "## Text", "labels": "## Data"}
_MATERIALS = {"task": "the synthetic task", "text": "text,", "labels": "labelled sequences,"}
_PLACEHOLDER = "path/to/this/folder"
"""What stands in the card's example where nobody knows yet where the model will lie."""


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How a model was trained and what it reached."""

    task: str
    """Name of the task, or of the text."""

    task_sentence: str
    """What the task asks for, or what the text is, in a sentence or two."""

    task_sizes: Mapping[str, object]
    """The sizes that the task was generated with, or how the text was prepared."""

    material: Literal["task", "text", "labels"] = "task"
    """Whether the examples were generated, are text to go on with, or sequences with a class each."""

    convention: str = "Inputs are token ids as described in `task.json`; there is no tokenizer."
    """What goes into the model and how its outputs are to be read, where it is no language model of text."""

    metrics: Sequence[Metric]
    """Measured results."""

    seed: int
    """Seed of initialisation, data order and dropout."""

    data_seed: int | None
    """Seed that the examples were generated from, or of their splits; None where these are always the same."""

    data_hash: str
    """SHA-256 of the split that the reported metrics were measured on."""

    steps: int
    """Optimiser steps behind the published weights."""

    examples_seen: int
    """Training examples behind the published weights, repeats included."""

    versions: Mapping[str, str]
    """Library versions at training time."""

    commit: str | None
    """Commit of the training code, or None where it was not under version control."""

    uncommitted_changes: bool
    """Whether the code differed from that commit."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card states."""

    model_name: str
    """Title of the card."""

    architecture: str
    """Name of the architecture, as in `dsf_models.list_architectures()`."""

    transition: str
    """Its Λ_i in one line."""

    input_matrix: str
    """Its B_i in one line."""

    output_matrix: str
    """Its C_i in one line."""

    parameters: int
    """Number of trainable parameters."""

    state_bytes: Mapping[int, int]
    """Bytes that the cache holds for one sequence, by the number of tokens seen; empty for a model that looks ahead."""

    head: str = "causal_lm"
    """What stands on the backbone: a key of `HEADS`."""

    label_alignment: str = "next"
    """Whether a language model's output at t speaks of token t + 1 ("next") or of t itself ("same")."""

    tokenizer: bool = False
    """Whether the folder holds a tokenizer."""

    carries_code: bool = False
    """Whether the folder holds the code of its architecture too, as `save_pretrained(..., include_code=True)` does."""

    source: str = _PLACEHOLDER
    """What `from_pretrained` gets: a folder, or the name of a repository on the Hub."""

    training: TrainingFacts | None = None
    """How the model was trained, or None where that is not known."""

    evaluations: Sequence[EvaluationRecord] = ()
    """What evaluations of the checkpoint have found."""

    papers: Sequence[str] = (DSF_PAPER,)
    """BibTeX entries to cite."""


@dataclass(frozen=True)
class Head:
    """What a card says about the module on top of the backbone."""

    auto_class: str
    """Class of transformers that loads it."""

    pipeline_tag: str
    """The Hub's name for what it does."""


HEADS = {
    "model": Head("AutoModel", "feature-extraction"),
    "causal_lm": Head("AutoModelForCausalLM", "text-generation"),
    "sequence_classification": Head("AutoModelForSequenceClassification", "text-classification"),
    "token_classification": Head("AutoModelForTokenClassification", "token-classification"),
}
"""By the prefix of the registry's field that holds its class."""

_STATE_LENGTHS = (1024, 65536)
"""Tokens, at which the card says how large the state is."""


def folder_facts(folder: Path, source: str | None = None) -> CardFacts:
    """Everything that a checkpoint folder says about itself.

    Args:
        folder: holds config.json; weights are not opened.
        source: where readers will load the model from. Default: the folder's path is left for them to fill in.

    Returns:
        Facts without those of training, which a folder does not record; what evaluations have recorded is among them.

    Raises:
        UsageError: config.json is missing, damaged, or no configuration of an architecture here.
    """
    config = read_config(folder)
    if not isinstance(config, DSFConfig):
        raise UsageError(
            f"{folder / 'config.json'}: model_type={config.model_type!r} is no architecture of dsf_models."
        )
    architecture = get_architecture(config.model_type.removeprefix("dsf_"))
    classes = {getattr(architecture, f"{head}_class").__name__: head for head in HEADS}
    head = classes.get((config.architectures or [""])[0], "causal_lm")
    with torch.device("meta"):
        model = getattr(architecture, f"{head}_class")(config)
    return CardFacts(
        model_name=(source or str(folder.resolve())).split("/")[-1],
        architecture=architecture.name,
        transition=architecture.transition,
        input_matrix=architecture.input_matrix,
        output_matrix=architecture.output_matrix,
        parameters=model.num_parameters(),
        state_bytes=state_sizes(config),
        head=head,
        label_alignment=config.label_alignment,
        tokenizer=(folder / "tokenizer_config.json").is_file(),
        carries_code=is_portable(getattr(config, "auto_map", None)),
        source=source or _PLACEHOLDER,
        evaluations=EvaluationRecord.load_all(folder),
        papers=(DSF_PAPER, TOKEN_SELECTION_PAPER),
    )


def state_sizes(config: DSFConfig) -> dict[int, int]:
    """The card's `state_bytes` of a configuration."""
    return {length: state_bytes(config, length) for length in _STATE_LENGTHS}


def model_card(facts: CardFacts) -> str:
    """Text of README.md for a checkpoint folder: YAML front matter for the Hub, then Markdown for people.

    Args:
        facts: everything that the card states.

    Returns:
        The whole file.
    """
    training = facts.training
    sections = [f"# {facts.model_name}", _summary(facts)]
    if training is not None:
        sections += ["## Results", _results(training.metrics)]
    sections += ["## Use", _usage(facts)]
    if training is not None:
        sections += [_HEADINGS[training.material], _task(training), "## Training", _training(training)]
    sections += ["## Citation", "```bibtex\n" + "\n\n".join(facts.papers) + "\n```"]
    card = f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"
    return with_evaluations(card, facts.evaluations) if facts.evaluations else card


def eval_results(training: TrainingFacts) -> str:
    """Text of a file in `.eval_results/`, where the Hub reads what a model reached.

    Args:
        training: holds the measured metrics.

    Returns:
        The whole file, in YAML.
    """
    entries = [
        EvalResultEntry(
            dataset_id=training.task,
            task_id=f"{metric.split}_{metric.name.replace(' ', '_')}",
            value=metric.value,
            notes=f"{metric.name} on the {metric.split} split; chance {metric.shown(metric.chance)}, "
            f"best trivial rule {metric.shown(metric.best_trivial)}; data hash {training.data_hash}",
        )
        for metric in training.metrics
    ]
    return yaml_dump(eval_result_entries_to_yaml(entries))


def _front_matter(facts: CardFacts) -> str:
    tags = ["dsf", facts.architecture, "sequence-model"]
    measured = {}
    if facts.training is not None:
        kinds = sorted({metric.kind for metric in facts.training.metrics})
        tags += [facts.training.task] if facts.training.material == "task" else []
        measured = {"metrics": kinds, "eval_results": _model_index(facts)}
    data = ModelCardData(
        model_name=facts.model_name,
        library_name="transformers",
        pipeline_tag=_pipeline_tag(facts),
        license="apache-2.0",
        tags=tags,
        **measured,
    )
    return data.to_yaml()


def _pipeline_tag(facts: CardFacts) -> str | None:
    """The Hub's pipeline; None for what is known to classify, or to give a number for, other things than text."""
    reads_text = facts.training is None or facts.tokenizer or facts.head == "causal_lm"
    return HEADS[facts.head].pipeline_tag if reads_text else None


def _model_index(facts: CardFacts) -> list[EvalResult]:
    training = facts.training
    return [
        EvalResult(
            task_type=HEADS[facts.head].pipeline_tag,
            dataset_type=training.task,
            dataset_name=training.task,
            dataset_split=metric.split,
            metric_type=metric.kind,
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in training.metrics
    ]


def _summary(facts: CardFacts) -> str:
    trained = ""
    if facts.training is not None:
        trained = f", trained from scratch on {_MATERIALS[facts.training.material]} `{facts.training.task}`"
    return (
        f"A sequence model of the architecture `{facts.architecture}` with {facts.parameters:,} parameters{trained}. "
        "It is written in the Dynamical Systems Framework, in which a sequence mixer "
        "is the linear system h_i = Λ_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i, and an architecture is a choice "
        f"of (Λ, B, C, D). Here:\n\n* Λ_i = {facts.transition}\n* B_i = {facts.input_matrix}\n"
        f"* C_i = {facts.output_matrix}\n\n{_state(facts.state_bytes)}"
    )


def _state(sizes: Mapping[int, int]) -> str:
    if not sizes:
        return "Outputs depend on later tokens too, so that there is no state to go on from."
    if len(set(sizes.values())) == 1:
        return f"State bytes per sequence: {next(iter(sizes.values())):,}, however long it is."
    found = ", ".join(f"{size:,} after {length:,} tokens" for length, size in sizes.items())
    return f"State bytes per sequence: {found}."


def _results(metrics: Sequence[Metric]) -> str:
    rows = ["| metric | split | value | chance | best trivial rule |", "|---|---|---|---|---|"]
    rows += [
        f"| {metric.name} | {metric.split} | {metric.shown(metric.value)} | {metric.shown(metric.chance)} | "
        f"{metric.shown(metric.best_trivial)} |"
        for metric in metrics
    ]
    return "\n".join(rows)


def _usage(facts: CardFacts) -> str:
    auto_class = HEADS[facts.head].auto_class
    names = f"{auto_class}, AutoTokenizer" if facts.tokenizer else auto_class
    place = "" if facts.source != _PLACEHOLDER else "  # or its id on the Hub"
    lines = [
        "```python",
        "import dsf_models  # registers the architectures with the Auto classes",
        f"from transformers import {names}",
        "",
        f'model = {auto_class}.from_pretrained("{facts.source}"){place}',
    ]
    if facts.tokenizer:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{facts.source}")')
    return "\n".join([*lines, "```"]) + _conventions(facts)


def _conventions(facts: CardFacts) -> str:
    said = []
    if facts.label_alignment == "same":
        said.append("`logits[:, t]` is the answer at position t itself, not a prediction of position t + 1.")
    if facts.carries_code:
        said.append(
            "Without dsf_models, add `trust_remote_code=True` in place of the first line: it runs the code here."
        )
    if facts.training is not None and facts.training.material != "text":
        said.append(facts.training.convention)
    return "\n\n" + " ".join(said) if said else ""


def _task(training: TrainingFacts) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in training.task_sizes.items())
    return f"`{training.task}`: {training.task_sentence}\n\nSizes: {sizes}."


def _commit(training: TrainingFacts) -> str:
    if training.commit is None:
        return "not under version control"
    return f"`{training.commit}`" + (", with uncommitted changes" if training.uncommitted_changes else "")


def _training(training: TrainingFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    seeds = f"Seed {training.seed}" + ("" if training.data_seed is None else f"; data seed {training.data_seed}")
    lines = (
        f"* Budget: {training.steps:,} optimiser steps, {training.examples_seen:,} examples.",
        "* The weights were selected on the validation split; the test split was used once, for the table above.",
        f"* {seeds}; data hash of the test split `{training.data_hash}`.",
        f"* Commit: {_commit(training)}.",
        f"* Versions: {versions}.",
    )
    return "\n".join(lines)
