"""The folder `final/` of a run: weights, model card and task record, ready for `from_pretrained` and for the Hub."""

import inspect
from pathlib import Path

from transformers import PreTrainedModel

from dsf_models.backbone import get_architecture
from dsf_models.hub.card import CardFacts, Metric, TrainingFacts, eval_results, model_card, state_sizes
from dsf_models.hub.files import new_folder, write_text
from dsf_models.hub.provenance import git_commit, has_uncommitted_changes, library_versions
from dsf_models.hub.task_record import TaskRecord
from training.checkpoint import Progress
from training.config import TrainConfig
from training.data import TaskData
from training.score import Score


def publish(
    folder: Path, model: PreTrainedModel, config: TrainConfig, data: TaskData, progress: Progress, score: Score
) -> None:
    """Write the selected model with everything that says what it is.

    Args:
        folder: `final/` of the run; it appears only when it is complete.
        model: holds the selected weights.
        config: the run's configuration.
        data: the task.
        progress: names the step of the selected weights.
        score: their score on the test split.
    """
    record = task_record(config, data)
    with new_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        record.save(unfinished)
        facts = card_facts(config, data, record, progress, score, model)
        write_text(unfinished / "README.md", model_card(facts))
        (unfinished / ".eval_results").mkdir()
        write_text(unfinished / ".eval_results" / f"{record.name}.yaml", eval_results(facts.training))


def task_record(config: TrainConfig, data: TaskData) -> TaskRecord:
    """What the checkpoint says about its task."""
    description = data.task.describe()
    test_hash = data.task.data_hash("test", config.task.seed, len(data.test))
    return TaskRecord(
        name=config.task.name,
        sizes=description["sizes"],
        seed=config.task.seed,
        num_examples={"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        data_hash={"test": test_hash},
        description=description,
    )


def card_facts(
    config: TrainConfig, data: TaskData, record: TaskRecord, progress: Progress, score: Score, model: PreTrainedModel
) -> CardFacts:
    """What the model card says."""
    architecture = get_architecture(config.model["architecture"])
    baselines = {"chance": data.task.chance, "best_trivial": data.task.best_trivial}
    training = TrainingFacts(
        task=record.name,
        task_sentence=inspect.getdoc(type(data.task)).splitlines()[0],
        task_sizes=record.sizes,
        metrics=[
            Metric(name="accuracy", split="test", value=score.accuracy, **baselines),
            Metric(name="row accuracy", split="test", value=score.row_accuracy),
        ],
        seed=config.run.seed,
        data_seed=record.seed,
        data_hash=record.data_hash["test"],
        steps=progress.best_step,
        examples_seen=progress.best_step * config.training.batch_size,
        versions=library_versions(),
        commit=git_commit(),
        uncommitted_changes=has_uncommitted_changes(),
    )
    return CardFacts(
        model_name=f"{architecture.name} on {record.name}",
        architecture=architecture.name,
        transition=architecture.transition,
        input_matrix=architecture.input_matrix,
        output_matrix=architecture.output_matrix,
        parameters=model.num_parameters(),
        state_bytes=state_sizes(model.config),
        label_alignment=model.config.label_alignment,
        training=training,
    )
