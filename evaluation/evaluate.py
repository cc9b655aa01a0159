"""Evaluate checkpoints on a task of the zoo.

    python evaluation/evaluate.py --model runs/demo/ssd/final --output_dir runs/demo/evaluation
    python evaluation/evaluate.py --model A B C --suite mqar --sizes.sequence_length 256 --output_dir comparison

Any causal language model that the Auto classes load will do. Without `--suite` the task is that of the checkpoint.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import PreTrainedModel
from transformers.utils import logging

from dsf_models.hub.files import new_folder, write_json
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import IGNORE_INDEX
from evaluation.checkpoints import load_model
from evaluation.config import EvaluationConfig, parse_config
from evaluation.figure import draw
from evaluation.scoring import INTERVAL, accuracy, accuracy_by, right_answers, row_accuracy
from evaluation.state import state_bytes
from evaluation.suite import Suite, load_suite


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: evaluate as told, or say in one line why not."""
    logging.disable_progress_bar()
    try:
        print(table(main(parse_config(arguments))))
    except UsageError as error:
        sys.exit(f"evaluate.py: error: {error}")


def main(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate every model on the same examples, and write `results.json` and one figure per facet.

    Args:
        config: what to evaluate on what.

    Returns:
        The content of `results.json`.

    Raises:
        UsageError: naming what is wrong and how to put it right; nothing is written then.
    """
    folder = Path(config.output_dir)
    check_output(folder, config.overwrite)
    suite = load_suite(config)
    models = [evaluate(load_model(name), name, suite, config.batch_size) for name in config.model]
    for model, label in zip(models, labels(models), strict=True):
        model["label"] = label
    results = {
        "suite": suite.facts,
        "interval": INTERVAL,
        "models": models,
        "config": asdict(config),
        "environment": environment_facts(),
    }
    with new_folder(folder) as unfinished:
        write_json(unfinished / "results.json", results)
        for facet in suite.facets:
            draw(results, facet, unfinished / f"accuracy_by_{facet}.png")
    return results


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse to touch a folder that holds something else, or results that are not to be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "results.json").is_file():
        raise UsageError(f"--output_dir {folder} holds something that is no evaluation: give a new folder.")
    if not overwrite:
        raise UsageError(f"--output_dir {folder} already holds results: give --overwrite true, or another folder.")


def evaluate(model: PreTrainedModel, name: str, suite: Suite, batch_size: int) -> dict[str, Any]:
    """Score one model.

    Args:
        model: any causal language model.
        name: what it was loaded from.
        suite: the examples.
        batch_size: examples per forward pass.

    Returns:
        Its entry in the results.

    Raises:
        UsageError: where the model's vocabulary or its longest input is too small for the suite.
    """
    check_vocabulary(model, name, suite)
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        right = right_answers(model, suite.input_ids, suite.labels, batch_size)
    except ValueError as error:
        raise UsageError(f"--model {name} does not take the examples of {suite.facts['name']}: {error}") from error
    example = np.nonzero(suite.labels != IGNORE_INDEX)[0]
    first = torch.as_tensor(suite.input_ids[:1], dtype=torch.long, device=model.device)
    return {
        "model": name,
        "architecture": model.config.model_type,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "state": {"bytes_per_sequence": state_bytes(model, first), "after_tokens": first.shape[1]},
        "accuracy": accuracy(right, example).to_dict(),
        "row_accuracy": row_accuracy(right, example).to_dict(),
        "by": {facet: accuracy_by(values, right, example) for facet, values in suite.facets.items()},
        "config": json.loads(model.config.to_json_string(use_diff=False)),
    }


def check_vocabulary(model: PreTrainedModel, name: str, suite: Suite) -> None:
    """Refuse a model that has no token for some of the suite's ids."""
    size = model.get_input_embeddings().num_embeddings
    if size < suite.task.vocab_size:
        raise UsageError(
            f"--model {name} has a vocabulary of {size} tokens, but {suite.facts['name']} has {suite.task.vocab_size}: "
            f"give --sizes.vocab_size {size} or less."
        )


def labels(models: Sequence[dict[str, Any]]) -> list[str]:
    """Short names that tell the models apart: their architectures, or where those repeat what they were loaded from."""
    short = [model["architecture"].removeprefix("dsf_") for model in models]
    return short if len(set(short)) == len(short) else [model["model"] for model in models]


def table(results: dict[str, Any]) -> str:
    """The main numbers as Markdown."""
    suite = results["suite"]
    lines = [
        f"{suite['name']}, {suite['num_examples']:,} {suite['split']} examples; accuracy in % with 95 % interval; "
        f"chance {100 * suite['chance']:.2f}, best trivial rule {100 * suite['best_trivial']:.2f}",
        "",
        "| model | parameters | state, bytes | accuracy | whole examples |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in results["models"]:
        shares = " | ".join(_share(model[key]) for key in ("accuracy", "row_accuracy"))
        state = model["state"]["bytes_per_sequence"]
        lines.append(
            f"| {model['label']} | {model['parameters']:,} | {'–' if state is None else f'{state:,}'} | {shares} |"
        )
    return "\n".join(lines)


def _share(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


if __name__ == "__main__":
    setup()
