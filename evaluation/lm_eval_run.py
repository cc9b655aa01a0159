"""EleutherAI's evaluation harness on any model, offline, with the tasks of evaluation/lm_eval_tasks/ or others.

    python evaluation/lm_eval_run.py --model runs/my_ssd/final --tasks dsf_mqar --output_dir harness
    python evaluation/lm_eval_run.py --model A B --tasks dsf_needle dsf_copy --num_examples 500 --output_dir harness

The tasks of that folder are made by the generators of `dsf_models.tasks`, as words (`dsf_models.tasks.words`): a model
that was trained on ids reads each word as its id, and any other model reads the words by its own tokenizer. Sizes and
seed are those of the checkpoint's task record where it was trained on that task, else those of the task's file. Any
other task that the harness finds will do too. Needs the extra `evaluation`.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dsf_models.errors import did_you_mean
from dsf_models.hub.files import new_folder, write_json
from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import CommandParser, UsageError
from dsf_models.tasks.words import word_tokenizer
from evaluation.checkpoints import load_tokenizer_of
from evaluation.evaluate import check_output, check_recordable, record
from evaluation.results import RESULTS, measured, model_facts, results
from evaluation.scoring import wilson_interval
from evaluation.suites.base import load
from evaluation.suites.perplexity import max_positions
from evaluation.suites.task import agreed, load_record, looks_ahead, state_facts
from evaluation.tables import table

FOLDER = Path(__file__).resolve().parent / "lm_eval_tasks"
GENERATED = {"dsf_mqar": "mqar", "dsf_needle": "needle", "dsf_copy": "input_copying"}
"""The task of the zoo behind each task of `FOLDER`."""
NO_LIMIT = 2**20
"""Tokens: a limit where a model names none. The harness would take 2,048, and cut what is longer."""
INTERVAL = (
    "At 95 %: Wilson score interval where each document is right or wrong, else 1.96 times the harness's standard "
    "error, where it gives one."
)
_Z = 1.959964
_STATE_AFTER = 64
"""Tokens behind which the state is measured."""


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: evaluate as told, or say in one line why not."""
    transformers_logging.disable_progress_bar()
    try:
        print(table(main(arguments)))
    except UsageError as error:
        sys.exit(f"lm_eval_run.py: error: {error}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the harness on every model and task, and write `results.json`.

    Args:
        arguments: words behind the program's name. Default: those of this process.

    Returns:
        The content of `results.json`.

    Raises:
        UsageError: naming what is wrong and how to put it right; nothing is written then.
    """
    options = _options(arguments)
    folder = Path(options.output_dir)
    check_output(folder, options.overwrite)
    if options.record:
        check_recordable(options.model)
    metadata = {name: metadata_of(name, options) for name in options.tasks}
    managers = {name: task_manager(name, options, metadata[name]) for name in options.tasks}
    entries, tasks = [], {}
    for name in options.model:
        model = load(name, ("CausalLM",))
        found = list(evaluate_tasks(model, tokenizer_of(name, model), name, managers, options))
        tasks = {task: facts for task, facts, _ in found}
        metrics = [metric for _, _, own in found for metric in own]
        state = state_facts(model, np.zeros((1, _STATE_AFTER), np.int64))
        entries.append(model_facts(model, name, state) | measured(metrics))
    content = results(suite_facts(options, tasks), INTERVAL, entries, {"suite": "lm_eval", **vars(options)})
    content["environment"]["versions"]["lm_eval"] = importlib.metadata.version("lm_eval")
    with new_folder(folder) as unfinished:
        write_json(unfinished / RESULTS, content)
    if options.record:
        record(content)
    return content


def suite_facts(options: argparse.Namespace, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What the models were asked, as `results.json` says it."""
    hashes = "".join(tasks[name]["data_hash"] for name in sorted(tasks))
    return {
        "name": " ".join(options.tasks),
        "split": "test",
        "seed": options.seed,
        "data_hash": sha256(hashes.encode()).hexdigest(),
        "tasks": dict(tasks),
    }


def metadata_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the generator of a task is told: by the command line, else by the checkpoints' records of that task.

    Raises:
        UsageError: the records disagree.
    """
    given = {"num_examples": options.num_examples, "seed": options.seed, "sizes": options.sizes}
    found = [record for model in options.model if (record := load_record(model)) is not None]
    records = [record for record in found if record.name == GENERATED.get(name)]
    if records:
        if options.seed is None:
            given["seed"] = agreed(records, "seed", lambda record: record.seed)
        names = {name for record in records for name in record.sizes} - set(options.sizes or {})
        sizes = {one: agreed(records, f"sizes.{one}", lambda record, one=one: record.sizes.get(one)) for one in names}
        given["sizes"] = {**sizes, **(options.sizes or {})}
    return {key: value for key, value in given.items() if value is not None}


def task_manager(name: str, options: argparse.Namespace, metadata: Mapping[str, Any]) -> Any:
    """The harness's index of tasks: of `FOLDER` and the folders that were named, or else its own too.

    Raises:
        UsageError: the harness is not installed, or knows no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"lm-evaluation-harness is missing ({error}): pip install 'dsf-models[evaluation]'."
        ) from error
    folders = [str(FOLDER), *options.include_path]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=dict(metadata))
    known = [*manager.all_tasks]
    if name not in known and not name.startswith("dsf_"):
        # Its own tasks are thousands of files.
        manager = TaskManager(include_path=folders, metadata=dict(metadata))
    if name not in manager.all_tasks:
        near = did_you_mean(name, manager.all_tasks) or f"those here are {', '.join(known)}"
        raise UsageError(f"--tasks {name}: the harness knows no such task; {near}")
    return manager


def tokenizer_of(name: str, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; of one that was trained on ids, the tokenizer of words."""
    if load_record(name) is not None and not (Path(name) / "tokenizer_config.json").is_file():
        return word_tokenizer(model.get_input_embeddings().num_embeddings)
    return load_tokenizer_of(name)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    managers: Mapping[str, Any],
    options: argparse.Namespace,
) -> Iterator[tuple[str, dict[str, Any], list[Metric]]]:
    """Run the harness on each task.

    Yields:
        Name of the task, what was asked, and what was measured.

    Raises:
        UsageError: the model looks ahead, or the harness refuses it or the task.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    if looks_ahead(model):
        raise UsageError(f"--model {name} looks ahead: the harness asks for models that predict the next token.")
    limit = options.max_length or max_positions(model) or NO_LIMIT
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size, max_length=limit)
    for task, manager in managers.items():
        try:
            found = lm_eval.simple_evaluate(
                model=lm, tasks=[task], task_manager=manager, limit=options.limit, bootstrap_iters=0
            )
        except (ValueError, OSError, ConnectionError) as error:
            raise UsageError(f"--tasks {task} cannot be run on {name}: {error}") from error
        for part, numbers in found["results"].items():
            samples = found["samples"].get(part, [])
            facts = {"version": found["versions"].get(part), "documents": len(samples), "data_hash": hash_of(samples)}
            told = found["configs"].get(part, {}).get("metadata") or {}
            # The harness adds where the task's file lies on this machine.
            facts["metadata"] = {key: value for key, value in told.items() if key != "config_source"}
            yield part, facts, list(metrics_of(part, numbers, samples))


def hash_of(samples: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the prompts and targets of a task, as the harness hashes them."""
    parts = [sample["prompt_hash"] + sample["target_hash"] for sample in samples]
    return sha256("".join(parts).encode()).hexdigest()


def metrics_of(task: str, numbers: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """The numbers of a task, each with an interval where there is one.

    Args:
        task: its name.
        numbers: the harness's, under names such as "acc,none" and "acc_stderr,none".
        samples: its documents with their scores.
    """
    for key, value in numbers.items():
        name, _, chosen = key.partition(",")
        if not chosen or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        scores = [sample.get(name) for sample in samples if sample.get("filter", "none") == chosen]
        binary = bool(scores) and all(isinstance(one, int | float) and one in (0, 1) for one in scores)
        error = numbers.get(f"{name}_stderr,{chosen}")
        interval = None
        if binary:
            interval = wilson_interval(float(value), len(scores))
        elif isinstance(error, int | float):
            interval = (value - _Z * error, value + _Z * error)
        shown = name if chosen == "none" else f"{name}, {chosen}"
        yield Metric(
            name=f"{task}: {shown}",
            kind={"acc": "accuracy"}.get(name, name),
            split="test",
            value=float(value),
            is_fraction=binary,
            interval=interval,
            counts={"documents": len(scores)},
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="lm_eval_run.py",
        description=__doc__,
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders or ids on the Hub")
    parser.add_argument("--tasks", nargs="+", required=True, help=f"such as {', '.join(GENERATED)}")
    parser.add_argument("--output_dir", required=True, help="folder for results.json")
    parser.add_argument("--batch_size", type=int, default=8, help="requests at a time (default: %(default)s)")
    parser.add_argument("--num_examples", type=int, help="documents of a generated task (default: those of its file)")
    parser.add_argument("--seed", type=int, help="of a generated task's examples")
    parser.add_argument("--sizes", type=json.loads, help="of a generated task, as JSON: '{\"num_pairs\": 8}'")
    parser.add_argument("--limit", type=int, help="the first so many documents of each task (default: all)")
    parser.add_argument(
        "--max_length", type=int, help="most tokens at once (default: the model's limit, if it has any)"
    )
    parser.add_argument("--include_path", nargs="+", default=[], help="further folders of tasks")
    parser.add_argument("--record", action="store_true", help="write what was found into the checkpoints too")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in --output_dir")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "num_examples", "limit", "max_length"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: use at least 1.")
    return options


if __name__ == "__main__":
    # What the harness would fetch from the Hub for a local task is nothing; its logs are not for this command's reader.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    setup()
