"""The folder `final/` of a run: weights, model card and what inputs mean, ready for `from_pretrained` and the Hub."""

import inspect
from dataclasses import asdict
from functools import singledispatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from dsf_models.backbone import get_architecture
from dsf_models.hub.card import CardFacts, Metric, TrainingFacts, eval_results, model_card, state_sizes
from dsf_models.hub.files import new_folder, write_text
from dsf_models.hub.provenance import git_commit, has_uncommitted_changes, library_versions
from dsf_models.hub.task_record import TaskRecord
from training.checkpoint import Progress
from training.config import TrainConfig
from training.data import Examples, GeneratedData, RegressionData, RunData, TaskData
from training.labelled_data import LabelledData
from training.score import Score
from training.text_data import TextData


def publish(
    folder: Path, model: PreTrainedModel, config: TrainConfig, data: RunData, progress: Progress, score: Score
) -> None:
    """Write the selected model with everything that says what it is.

    Args:
        folder: `final/` of the run; it appears only when it is complete.
        model: holds the selected weights.
        config: the run's configuration.
        data: what it has learned.
        progress: names the step of the selected weights.
        score: their score on the test split.
    """
    with new_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        save_inputs(data, config, unfinished)
        facts = card_facts(config, data, progress, score, model)
        write_text(unfinished / "README.md", model_card(facts))
        if facts.training.material == "task":
            (unfinished / ".eval_results").mkdir()
            write_text(unfinished / ".eval_results" / f"{facts.training.task}.yaml", eval_results(facts.training))


@singledispatch
def save_inputs(data: RunData, config: TrainConfig, folder: Path) -> None:
    """Write what says what the token ids mean: task.json, or a tokenizer."""
    raise NotImplementedError(type(data).__name__)


@save_inputs.register(GeneratedData)
def _(data: GeneratedData, config: TrainConfig, folder: Path) -> None:
    task_record(config, data).save(folder)


@save_inputs.register
def _(data: TextData, config: TrainConfig, folder: Path) -> None:
    data.tokenizer.save_pretrained(folder)


@save_inputs.register
def _(data: LabelledData, config: TrainConfig, folder: Path) -> None:
    labelled_record(data).save(folder)
    if data.tokenizer is not None:
        data.tokenizer.save_pretrained(folder)


def labelled_record(data: LabelledData) -> TaskRecord:
    """What the checkpoint says about its labelled sequences."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return TaskRecord(
        name=data.kind,
        sizes=data.sizes,
        seed=None,
        num_examples={split: len(examples) for split, examples in splits.items()},
        data_hash={"test": rows_hash(data.test)},
        description={"sentence": labelled_sentence(data), "classes": list(data.classes)},
    )


def labelled_sentence(data: LabelledData) -> str:
    """What the sequences are."""
    if data.kind == "text":
        return f"The class of each document of {data.name}, read byte by byte."
    return f"The class of each image of {data.name}, a token for each grey level, in the order of reading."


def task_record(config: TrainConfig, data: GeneratedData) -> TaskRecord:
    """What the checkpoint says about its task."""
    description = data.task.describe()
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return TaskRecord(
        name=config.task.name,
        sizes=description["sizes"],
        seed=config.task.seed,
        num_examples={split: len(examples) for split, examples in splits.items()},
        data_hash={"test": test_hash(config, data)},
        description=description | {"evaluated_sizes": data.evaluated.describe()["sizes"]},
    )


@singledispatch
def data_facts(data: RunData, config: TrainConfig, score: Score) -> dict[str, Any]:
    """What `TrainingFacts` say about the data and the results on them."""
    raise NotImplementedError(type(data).__name__)


@data_facts.register
def _(data: TaskData, config: TrainConfig, score: Score) -> dict[str, Any]:
    baselines = {"chance": data.task.chance, "best_trivial": data.task.best_trivial}
    return {
        **task_facts(config, data),
        "metrics": [
            Metric(name="accuracy", split="test", value=score.accuracy, **baselines),
            Metric(name="row accuracy", split="test", value=score.row_accuracy),
        ],
    }


@data_facts.register
def _(data: RegressionData, config: TrainConfig, score: Score) -> dict[str, Any]:
    numbers, constant = data.report(score), data.best_trivial("test")
    number = {"is_fraction": False, "split": "test"}
    return {
        **task_facts(config, data),
        "metrics": [
            Metric(name="mse", kind="mse", value=numbers["mse"], best_trivial=constant, **number),
            Metric(name="R²", kind="r_squared", value=numbers["r2"], best_trivial=0.0, **number),
        ],
    }


def task_facts(config: TrainConfig, data: GeneratedData) -> dict[str, Any]:
    """What `TrainingFacts` say about a synthetic task."""
    return {
        "task": config.task.name,
        "task_sentence": inspect.getdoc(type(data.task)).splitlines()[0],
        "task_sizes": data.task.describe()["sizes"],
        "data_seed": config.task.seed,
        "data_hash": test_hash(config, data),
    }


def test_hash(config: TrainConfig, data: GeneratedData) -> str:
    """SHA-256 of the test split."""
    return data.evaluated.data_hash("test", config.task.seed, len(data.test))


@data_facts.register
def _(data: LabelledData, config: TrainConfig, score: Score) -> dict[str, Any]:
    chance = 1 / len(data.classes)
    trivial = data.best_trivial("test")
    return {
        "task": data.name,
        "task_sentence": labelled_sentence(data),
        "task_sizes": data.sizes,
        "material": "labels",
        "metrics": [Metric(name="accuracy", split="test", value=score.accuracy, chance=chance, best_trivial=trivial)],
        "data_seed": config.data_seed,
        "data_hash": rows_hash(data.test),
    }


@data_facts.register
def _(data: TextData, config: TrainConfig, score: Score) -> dict[str, Any]:
    numbers, ngram = data.report(score), data.ngram_nats.get("test")
    return {
        "task": data.name,
        "task_sentence": f"Documents of {data.name}, packed into rows of {data.sequence_length} tokens.",
        "task_sizes": {name: value for name, value in asdict(config.text).items() if value not in (None, [])},
        "material": "text",
        "metrics": [
            Metric(
                name="loss", kind="loss", is_fraction=False, split="test", value=numbers["loss"], best_trivial=ngram
            ),
            Metric(name="perplexity", kind="perplexity", is_fraction=False, split="test", value=numbers["perplexity"]),
            Metric(
                name="bits per byte (estimated)",
                kind="bits_per_byte",
                is_fraction=False,
                split="test",
                value=numbers["bits_per_byte"],
            ),
        ],
        "data_seed": config.text.seed,
        "data_hash": rows_hash(data.test),
    }


def rows_hash(examples: Examples) -> str:
    """SHA-256 of the token ids of all rows, and of their classes where they have one, as little-endian int32."""
    digest = sha256()
    for start in range(0, len(examples), 1024):
        rows = examples.rows(np.arange(start, min(start + 1024, len(examples))))
        digest.update(rows["input_ids"].numpy().astype("<i4").tobytes())
        if "labels" in rows and rows["labels"].ndim == 1:
            digest.update(rows["labels"].numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def card_facts(
    config: TrainConfig, data: RunData, progress: Progress, score: Score, model: PreTrainedModel
) -> CardFacts:
    """What the model card says."""
    architecture = get_architecture(config.model["architecture"])
    training = TrainingFacts(
        **data_facts(data, config, score),
        convention=data.readout.convention,
        seed=config.run.seed,
        steps=progress.best_step,
        examples_seen=progress.best_step * config.training.batch_size,
        versions=library_versions(),
        commit=git_commit(),
        uncommitted_changes=has_uncommitted_changes(),
    )
    return CardFacts(
        model_name=f"{architecture.name} on {training.task}",
        architecture=architecture.name,
        transition=architecture.transition,
        input_matrix=architecture.input_matrix,
        output_matrix=architecture.output_matrix,
        parameters=model.num_parameters(),
        state_bytes={} if model.config.looks_ahead else state_sizes(model.config),
        head=data.readout.head(model.config),
        label_alignment=model.config.label_alignment,
        tokenizer=getattr(data, "tokenizer", None) is not None,
        training=training,
    )
