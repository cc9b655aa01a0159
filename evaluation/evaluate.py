"""Evaluate checkpoints on a task of the zoo, or on a suite.

    python evaluation/evaluate.py --model runs/demo/ssd/final --output_dir runs/demo/evaluation
    python evaluation/evaluate.py --model A B C --suite mqar --sizes.sequence_length 256 --output_dir comparison
    python evaluation/evaluate.py --model A --suite selection --output_dir extrapolation
    python evaluation/evaluate.py --model A --suite perplexity --text.files 'held_out/*.txt' --output_dir perplexity

Any model that the Auto classes load will do. Without `--suite` the task is that of the checkpoint.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers.utils import logging

from dsf_models.hub.evaluation_record import EvaluationRecord
from dsf_models.hub.files import new_folder, write_json
from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import UsageError
from evaluation.config import EvaluationConfig, parse_config
from evaluation.results import RESULTS, results
from evaluation.suites import load_suite
from evaluation.tables import table


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: evaluate as told, or say in one line why not."""
    logging.disable_progress_bar()
    try:
        print(table(main(parse_config(arguments))))
    except UsageError as error:
        sys.exit(f"evaluate.py: error: {error}")


def main(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate every model on the same examples, and write `results.json` and the figures.

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
    if config.record:
        check_recordable(config.model)
        if not suite.recordable:
            raise UsageError(
                f"--record true: what the suite {config.suite} finds belongs to a machine, not to a model."
            )
    content = results(suite.facts, suite.interval, suite.run(config.model), asdict(config))
    with new_folder(folder) as unfinished:
        write_json(unfinished / RESULTS, content)
        suite.draw(content, unfinished)
    if config.record:
        record(content)
    return content


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse to touch a folder that holds something else, or results that are not to be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RESULTS).is_file():
        raise UsageError(f"--output_dir {folder} holds something that is no evaluation: give a new folder.")
    if not overwrite:
        raise UsageError(f"--output_dir {folder} already holds results: give --overwrite true, or another folder.")


def check_recordable(names: Sequence[str]) -> None:
    """Refuse to record into what is no folder here, damaged records or a damaged card, before anything is evaluated."""
    for name in names:
        if not Path(name).is_dir():
            raise UsageError(f"--record true writes into the checkpoint, but --model {name} is no folder here.")
        EvaluationRecord.check(Path(name))


def record(content: Mapping[str, Any]) -> None:
    """Write what was found into the folders of the checkpoints.

    Args:
        content: of `results.json`.
    """
    suite = content["suite"]
    for model in content["models"]:
        EvaluationRecord(
            suite=content["config"]["suite"] or suite["name"],
            dataset=suite.get("dataset", suite["name"]),
            split=suite["split"],
            data_hash=suite["data_hash"],
            seed=suite["seed"],
            sizes={**suite.get("sizes", {}), **model.get("reading", {})},
            metrics=[Metric.from_dict(metric) for metric in model["metrics"]],
            interval=content["interval"],
            environment=content["environment"],
        ).save(Path(model["model"]))


if __name__ == "__main__":
    setup()
