"""The model card of a trained checkpoint, as a pure function of the facts about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

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


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, beside the two numbers that say what it is worth."""

    name: str
    """What was measured, for example "accuracy"."""

    split: str
    """Split of the data it was measured on."""

    value: float
    """The number itself, a fraction between 0 and 1."""

    chance: float | None = None
    """What uniform guessing reaches, or None where that is not defined for this metric."""

    best_trivial: float | None = None
    """What the best rule without any recall or computation reaches, or None where it is not defined."""


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

    task: str
    """Name of the task that the model was trained on."""

    task_sentence: str
    """What the task asks for, in a sentence or two."""

    task_sizes: Mapping[str, object]
    """The sizes that the task was generated with."""

    metrics: Sequence[Metric]
    """Measured results."""

    seed: int
    """Seed of initialisation, data order and dropout."""

    data_seed: int
    """Seed that the examples were generated from."""

    data_hash: str
    """Hash of the split that the reported metrics were measured on."""

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

    papers: Sequence[str] = (DSF_PAPER,)
    """BibTeX entries to cite."""


def model_card(facts: CardFacts) -> str:
    """Text of README.md for a checkpoint folder: YAML front matter for the Hub, then Markdown for people.

    Args:
        facts: everything that the card states.

    Returns:
        The whole file.
    """
    sections = (
        f"# {facts.model_name}",
        _summary(facts),
        "## Results",
        _results(facts.metrics),
        "## Use",
        _usage(),
        "## Task",
        _task(facts),
        "## Training",
        _training(facts),
        "## Citation",
        "```bibtex\n" + "\n\n".join(facts.papers) + "\n```",
    )
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=facts.task,
            dataset_name=facts.task,
            dataset_split=metric.split,
            metric_type="accuracy",
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in facts.metrics
    ]
    data = ModelCardData(
        model_name=facts.model_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        license="apache-2.0",
        tags=["dsf", facts.architecture, "sequence-model", facts.task],
        metrics=["accuracy"],
        eval_results=results,
    )
    return data.to_yaml()


def _summary(facts: CardFacts) -> str:
    return (
        f"A `{facts.architecture}` sequence model with {facts.parameters:,} parameters, trained from scratch on the "
        f"synthetic task `{facts.task}`. It is written in the Dynamical Systems Framework, in which a sequence mixer "
        "is the linear system h_i = Λ_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i, and an architecture is a choice "
        f"of (Λ, B, C, D). Here:\n\n* Λ_i = {facts.transition}\n* B_i = {facts.input_matrix}\n"
        f"* C_i = {facts.output_matrix}"
    )


def _results(metrics: Sequence[Metric]) -> str:
    rows = ["| metric | split | value | chance | best trivial rule |", "|---|---|---|---|---|"]
    rows += [
        f"| {metric.name} | {metric.split} | {_percent(metric.value)} | {_percent(metric.chance)} | "
        f"{_percent(metric.best_trivial)} |"
        for metric in metrics
    ]
    return "\n".join(rows)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def _usage() -> str:
    return """\
```python
import dsf_models  # registers the architectures with the Auto classes
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")  # or its id on the Hub
```

`logits[:, t]` is the answer at position t itself, not a prediction of position t + 1. Inputs are token ids as
described in `task.json`; there is no tokenizer."""


def _task(facts: CardFacts) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in facts.task_sizes.items())
    return f"`{facts.task}`: {facts.task_sentence}\n\nSizes: {sizes}."


def _commit(facts: CardFacts) -> str:
    if facts.commit is None:
        return "not under version control"
    return f"`{facts.commit}`" + (", with uncommitted changes" if facts.uncommitted_changes else "")


def _training(facts: CardFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    lines = (
        f"* Budget: {facts.steps:,} optimiser steps, {facts.examples_seen:,} examples.",
        "* The weights were selected on the validation split; the test split was used once, for the table above.",
        f"* Seed {facts.seed}; data seed {facts.data_seed}; data hash of the test split `{facts.data_hash}`.",
        f"* Commit: {_commit(facts)}.",
        f"* Versions: {versions}.",
    )
    return "\n".join(lines)
