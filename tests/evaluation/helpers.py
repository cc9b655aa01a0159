"""Evaluations in this process, and those that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import get_task
from evaluation.config import parse_config
from evaluation.evaluate import main


def evaluate(output_dir: Path, *models: Path | str, **changes: Any) -> dict[str, Any]:
    """Run an evaluation; the names of `changes` have `__` for the dot of a key."""
    words = ["--model", *map(str, models), "--output_dir", str(output_dir)]
    for name, value in changes.items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    return main(parse_config(words))


def refused(output_dir: Path, *models: Path | str, **changes: Any) -> str:
    """The message of an evaluation that is refused, and writes nothing."""
    with pytest.raises(UsageError) as error:
        evaluate(output_dir, *models, **changes)
    assert not output_dir.exists()
    return str(error.value)


def save_trained_on(folder: Path, architecture: str, task_name: str, *, examples: int = 20, **more: Any) -> Path:
    """An untrained checkpoint with a task record; `more` are sizes of the task, those with `model_` of the model."""
    fields = {name.removeprefix("model_"): value for name, value in more.items() if name.startswith("model_")}
    sizes = {name: value for name, value in more.items() if not name.startswith("model_")}
    task = get_task(task_name, **sizes)
    config = AutoConfig.for_model(
        f"dsf_{architecture}",
        vocab_size=task.vocab_size,
        label_alignment="same",
        **{"hidden_size": 16, "num_hidden_layers": 1} | fields,
    )
    torch.manual_seed(0)
    if config.looks_ahead:
        config.num_labels = task.vocab_size
        AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    description = task.describe()
    TaskRecord(
        name=task_name,
        sizes=description["sizes"],
        seed=7,
        num_examples={"test": examples},
        data_hash={"test": task.data_hash("test", 7, examples)},
        description=description,
    ).save(folder)
    return folder
