"""Learning curves of language-model runs in one figure, their numbers in one table, and what their checkpoints write.

    python evaluation/learning_curves.py --runs runs/reviews/ssd runs/reviews/softmax_attention --output_dir comparison

Numbers and curves come from the files of the runs alone; the samples from their final checkpoints. Writes `curves.json`
(all of it), `curves.png`, `report.md` and `report.json`, from which `report.py` takes them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer

from dsf_models.analysis.plots import COLOURS, save
from dsf_models.hub.files import new_folder, write_json
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.checkpoints import load_model
from evaluation.papers.outcome import distinct
from evaluation.reporting.blocks import Block, Heading, Image, Paragraph, Table
from evaluation.reporting.keep import keep_report
from evaluation.reporting.sections import provenance

PROMPTS = ("The film", "I have seen this", "The worst thing about")
CURVES, FIGURE = "curves.json", "curves.png"
HEADER = ("architecture", "parameters", "validation loss", "test loss", "3-gram, test", "perplexity", "bits per byte")
_TEMPERATURE, _TOP_P, _NEW_TOKENS = 0.8, 0.95, 80


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: compare runs, or say in one line why not."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of finished runs")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make; an earlier one is replaced")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="what the samples begin with")
    try:
        options = parser.parse_args(arguments)
        check_output(options.output_dir)
        runs = [read_run(folder) for folder in options.runs]
        check_comparable(runs)
        runs = [run | {"samples": samples(path, options.prompts)} for path, run in zip(options.runs, runs, strict=True)]
    except UsageError as error:
        sys.exit(f"learning_curves.py: error: {error}")
    title = f"Language models of {runs[0]['result']['config']['text']['name']}"
    with new_folder(options.output_dir) as folder:
        write_json(folder / CURVES, {"runs": runs})
        draw(runs, folder / FIGURE)
        text = keep_report(folder, title, report(runs))
    print(text)


def read_run(folder: Path) -> dict[str, Any]:
    """Read the result and the curves of a run.

    Args:
        folder: of a run of `training/train.py` on text.

    Returns:
        `result`, and the lists `train`, `validation` and `speed` of the records of `metrics.jsonl`.

    Raises:
        UsageError: the run has not finished, or its files are damaged.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UsageError(f"--runs {folder} is no finished run: {error}") from error
    if result["selected_by"] != "loss":
        raise UsageError(f"--runs {folder} has learned a task, not text: compare those by evaluation/evaluate.py.")
    splits = ("train", "validation", "speed")
    return {"result": result} | {name: [r for r in records if r["split"] == name] for name in splits}


def check_output(folder: Path) -> None:
    """Refuse to replace what is no comparison of runs."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CURVES).is_file():
        raise UsageError(f"--output_dir {folder} holds something that is no comparison of runs: give a new folder.")


def check_comparable(runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs whose losses say nothing of each other: other text, tokens or rows, or another budget."""
    for name, read in (
        ("hash of the test split", lambda result: result["data"]["test_hash"]),
        ("batch size", lambda result: result["config"]["training"]["batch_size"]),
        ("number of steps", lambda result: result["steps"]),
    ):
        values = {str(read(run["result"])) for run in runs}
        if len(values) > 1:
            raise UsageError(f"--runs differ in their {name} ({', '.join(sorted(values))}): compare runs that agree.")


@torch.no_grad()
def samples(folder: Path, prompts: Sequence[str]) -> list[str]:
    """Let the selected weights of a run go on with some texts, by nucleus sampling from a fixed seed."""
    checkpoint = str(folder / "final")
    model, tokenizer = load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    texts = []
    for prompt in prompts:
        torch.manual_seed(0)
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        written = model.generate(
            **inputs, do_sample=True, temperature=_TEMPERATURE, top_p=_TOP_P, max_new_tokens=_NEW_TOKENS
        )
        texts.append(tokenizer.decode(written[0], skip_special_tokens=True))
    return texts


def report(runs: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The comparison."""
    config = runs[0]["result"]["config"]
    threads, steps = config["run"]["threads"], runs[0]["result"]["steps"]
    blocks: list[Block] = [
        Paragraph(
            f"Rows of {config['text']['block_size']} tokens, a vocabulary of {config['text']['vocab_size']}, "
            f"{config['training']['batch_size']} rows a step, {steps:,} steps; {threads} thread(s) a process. The "
            "3-gram is Kneser-Ney's, interpolated, on the same tokens and rows; losses are in nats per token.",
            "ours",
        ),
        Image(FIGURE, "Loss against tokens seen."),
        Table((*HEADER, "minutes", "tokens per second", "waiting"), [row(run) for run in runs]),
        Paragraph(f"Samples, at temperature {_TEMPERATURE} from the {_TOP_P:.0%} nucleus, seed 0:"),
    ]
    for run in runs:
        blocks += [Heading(2, run["result"]["architecture"])]
        blocks += [Paragraph(f"“{' '.join(text.split())}”") for text in run["samples"]]
    environments = distinct([run["result"]["environment"] for run in runs])
    return [*blocks, *(Paragraph(provenance([environment])) for environment in environments)]


def row(run: Mapping[str, Any]) -> tuple[str, ...]:
    """The numbers of a run; the share of time in which the model waited for data is that of all its steps together."""
    result, speed = run["result"], run["speed"]
    # Each report is over as many tokens as the others, so that its time goes as the inverse of its speed.
    times = [1 / record["tokens_per_second"] for record in speed]
    waiting = sum(time * record["waiting"] for time, record in zip(times, speed, strict=True)) / sum(times)
    ngram = result["baselines"]["best_trivial"]
    return (
        result["architecture"],
        f"{result['parameters']:,}",
        f"{result['validation']['loss']:.3f}",
        f"{result['test']['loss']:.3f}",
        "–" if ngram is None else f"{ngram:.3f}",
        f"{result['test']['perplexity']:.1f}",
        f"{result['test']['bits_per_byte']:.3f}",
        f"{result['seconds'] / 60:.1f}",
        f"{median(record['tokens_per_second'] for record in speed):,.0f}",
        f"{100 * waiting:.2f} %",
    )


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss against tokens seen: training as a thin line, validation with markers, the 3-gram as a level."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(runs, cycle(COLOURS), strict=False):
        config, name = run["result"]["config"], run["result"]["architecture"]
        tokens = config["training"]["batch_size"] * config["text"]["block_size"] / 1e6
        for split, look in (("train", {"linewidth": 0.7, "alpha": 0.5}), ("validation", {"marker": "o"})):
            points = [(tokens * record["step"], record["loss"]) for record in run[split] if record["loss"] is not None]
            axes.plot(*zip(*points, strict=True), color=colour, label=f"{name}, {split}", **look)
    level = runs[0]["result"]["baselines"]["best_trivial_on_validation"]
    if level is not None:
        axes.axhline(level, color="0.35", linestyle="--", linewidth=1.2, label=f"3-gram, validation ({level:.3f})")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(top=min(7.0, axes.get_ylim()[1]))
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


if __name__ == "__main__":
    main()
