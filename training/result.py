"""`result.json` of a run: what it was, what it reached and where, as plain values."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dsf_models.analysis import state_bytes
from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from training.checkpoint import Progress
from training.config import TrainConfig, config_to_dict
from training.data import RunData
from training.publish import data_facts
from training.score import Score

RESULT = "result.json"
"""Its name in the run's folder; it is written before `final/`, so that a run with `final/` has its result."""


def write_result(
    folder: Path, model: PreTrainedModel, config: TrainConfig, data: RunData, progress: Progress, score: Score
) -> None:
    """Write the result of a run into its folder.

    Args:
        folder: of the run.
        model: the selected model.
        config: the run's configuration.
        data: what it has learned.
        progress: steps, time and validation score.
        score: of the selected weights on the test split.
    """
    write_json(folder / RESULT, run_result(model, config, data, progress, score, environment_facts()))


def run_result(
    model: PreTrainedModel,
    config: TrainConfig,
    data: RunData,
    progress: Progress,
    score: Score,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The result of a run as JSON-serialisable values; a number that is NaN or infinite is None.

    Args:
        model: the selected model.
        config: the run's configuration.
        data: what it has learned.
        progress: steps, time and validation score.
        score: of the selected weights on the test split.
        environment: as `environment_facts` gives it.

    Returns:
        Configuration, sizes of the model (state bytes for one row; None where it looks ahead), scores beside the
        baselines, hash of the test split, seeds, costs, and the environment.
    """
    facts = data_facts(data, config, score)
    measured = facts["metrics"][0]
    return {
        "architecture": config.model["architecture"],
        "data": {"name": facts["task"], "sizes": dict(facts["task_sizes"]), "test_hash": facts["data_hash"]},
        "seeds": {"run": config.run.seed, "data": facts["data_seed"]},
        "parameters": model.num_parameters(),
        "state_bytes": None if model.config.looks_ahead else state_bytes(model.config, data.sequence_length),
        "best_step": progress.best_step,
        "steps": progress.step,
        "examples_seen": progress.step * config.training.batch_size,
        "seconds": progress.seconds,
        "selected_by": data.selected_by,
        "validation": _finite(data.report(progress.best_score)),
        "test": _finite(data.report(score)),
        "baselines": {
            "of": measured.name,
            "chance": measured.chance,
            "best_trivial": measured.best_trivial,
            "best_trivial_on_validation": data.best_trivial("validation"),
        },
        "environment": dict(environment),
        "config": config_to_dict(config),
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}
