"""The smallest run there is, and ways to start it: in this process, or as a command."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from tests.idx import write_random_images
from training.config import TrainConfig, parse_config
from training.train import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "train.py"

TINY = {
    "model.architecture": "ssd",
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.num_heads": 2,
    "model.state_size": 4,
    "model.conv_kernel": 4,
    "task.name": "mqar",
    "task.sizes.sequence_length": 16,
    "task.sizes.num_pairs": 2,
    "task.sizes.vocab_size": 16,
    "task.train_examples": 50,
    "task.validation_examples": 10,
    "task.test_examples": 10,
    "schedule.warmup_steps": 1,
    "training.batch_size": 8,
    "training.max_steps": 6,
    "training.log_every": 1,
    "training.eval_every": 2,
    "training.checkpoint_every": 2,
    "tracker.name": "none",
}


ANOTHER_TASK: dict[str, dict[str, int]] = {
    "smooth_regression": {"task.sizes.sequence_length": 8, "task.sizes.num_variables": 2},
    "compression": {"task.sizes.sequence_length": 8, "task.sizes.vocab_size": 5},
}
"""Sizes of tasks that need others than the tiny run's own."""


def arguments(output_dir: Path, **changes: Any) -> list[str]:
    """Command line of a tiny run; the names of `changes` have `__` for the dot of a key.

    Text and labelled sequences replace the task; another task takes the place of the sizes.
    """
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    settings = TINY | {"run.output_dir": output_dir} | changed
    if any(name.startswith(("text.", "labelled.")) for name in changed):
        settings = {name: value for name, value in settings.items() if not name.startswith("task.")}
    if changed.get("task.name") in ANOTHER_TASK:
        settings = {name: value for name, value in settings.items() if not name.startswith("task.sizes.")}
        settings |= ANOTHER_TASK[changed["task.name"]] | changed
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}
    return [word for name, value in words.items() for word in (f"--{name}", value)]


def few_labelled(folder: Path, data: str) -> dict[str, Any]:
    """What makes any run on labelled sequences one on a few that are written here."""
    shorter: dict[str, Any] = {"model.num_hidden_layers": 1}
    if data == "pixels":
        write_random_images(folder / "images", 12, 4)
        return shorter | {"labelled.folder": folder / "images", "labelled.pooling": 8}
    return shorter | {"labelled.files": f"[{write_documents(folder / 'documents.csv', 40)}]", "labelled.length": 12}


def write_documents(file: Path, count: int) -> Path:
    """A CSV file of documents of different lengths, of two classes."""
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(["text", "label"])
        writer.writerows([f"document {10 ** (i % 5)} of {i}", "good" if i % 3 else "bad"] for i in range(count))
    return file


def tiny_config(output_dir: Path, **changes: Any) -> TrainConfig:
    """Configuration of a tiny run."""
    return parse_config(arguments(output_dir, **changes))


def forget_accelerate() -> None:
    """Accelerate keeps its state for the life of a process; every run here is to start as if in its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(output_dir: Path, **changes: Any) -> Path:
    """Train a tiny model in this process and return its folder."""
    forget_accelerate()
    main(tiny_config(output_dir, **changes))
    return output_dir


def command(launcher: Sequence[str], output_dir: Path, **changes: Any) -> subprocess.Popen:
    """Start a tiny run as a process of its own."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [*launcher, str(SCRIPT), *arguments(output_dir, **changes)],
        cwd=output_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics(folder: Path, *splits: str) -> list[dict[str, Any]]:
    """The recorded numbers of a run; by default all but its speed, which no two runs share."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] in (splits or ("train", "validation", "test"))]


def final_weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights that a run published."""
    return load_file(folder / "final" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Two runs published the same weights, to the last bit."""
    first, second = final_weights(one), final_weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
