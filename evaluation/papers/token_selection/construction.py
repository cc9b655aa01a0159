"""The recall network whose weights are written down, not learned: is it exact, how large is it, what does it need?

    python evaluation/papers/token_selection/construction.py
    python evaluation/papers/token_selection/construction.py --report

Two time-invariant mixers with a network between them; see `LRUForSequenceClassification.from_construction`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from dsf_models import LRUForSequenceClassification as Network
from dsf_models.analysis.plots import save, style
from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.papers.study import ROOT
from evaluation.papers.sweeps import read_json
from evaluation.reporting.blocks import Block, Image, Paragraph, Table
from evaluation.reporting.keep import findings_blocks, keep_report
from evaluation.reporting.sections import provenance
from evaluation.scoring import accuracy

RESULTS = ROOT / "evaluation" / "results" / "token_selection_construction"
FOUND, FIGURE = "construction.json", "figure.png"
BITS = (4, 6, 8, 10, 12, 14, 16)
PAIRS = (1, 2, 16, 300)
ROWS = 64
BROKEN_WORDS, BROKEN_PAIRS, BROKEN_ROWS = 64, 8, 2048

_TITLE = "Recall by weights that are written down"
_TEXT = (
    Paragraph("Can two time-invariant layers recall a value by its key, with how many weights, and which parts do it?"),
    Paragraph(
        "Two SSM layers with networks before, between and behind them recall with a number of parameters that grows as "
        "a power of log |W|, |W| the number of words (arXiv 2405.19036, a theorem).",
        "paper",
    ),
    Paragraph(
        "The construction is this project's own: codes of ±1, a query that is broadcast both ways, a key that is "
        "delayed by one token, a network that compares and gates, a sum. Every weight is set by hand; nothing is "
        "trained. Keys are distinct, values and queries uniform, drawn from seed 0; the model is one of the zoo's, in "
        "float32.",
        "ours",
    ),
    Paragraph("The paper's own construction, and what it counts as a parameter, are not available here.", "warning"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: measure and report, or say in one line why not."""
    parser = CommandParser(prog="construction.py", description=__doc__)
    parser.add_argument("--report", action="store_true", help="measure nothing: write report and figure anew")
    try:
        if not parser.parse_args(arguments).report:
            measured = {"by_words": by_words(BITS), "broken": broken(), "environment": environment_facts()}
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(RESULTS / FOUND, measured)
        print(write_report(RESULTS))
    except UsageError as error:
        sys.exit(f"construction.py: error: {error}")


def recall_rows(words: int, pairs: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw rows k_1 v_1 … k_P v_P q in the token ids of `from_construction`: distinct keys, any values, a key as query.

    Returns:
        Token ids (rows, 2 pairs + 1) and answers (rows,).
    """
    generator = torch.Generator().manual_seed(seed)
    keys = torch.stack([torch.randperm(words, generator=generator)[:pairs] for _ in range(rows)])
    values = torch.randint(0, words, (rows, pairs), generator=generator)
    asked = torch.randint(0, pairs, (rows, 1), generator=generator)
    context = torch.stack([keys, words + values], dim=-1).flatten(1)
    return torch.cat([context, 2 * words + keys.gather(1, asked)], dim=1), values.gather(1, asked)[:, 0]


@torch.no_grad()
def right_answers(model: nn.Module, input_ids: Tensor, answers: Tensor) -> int:
    """How many rows the model answers right."""
    return int((model(input_ids).logits.argmax(-1) == answers).sum())


def weights(*modules: nn.Module) -> int:
    """Number of weights that are not zero."""
    return sum(int((parameter.detach() != 0).sum()) for module in modules for parameter in module.parameters())


def by_words(bits: Sequence[int]) -> list[dict[str, Any]]:
    """Right answers and sizes of the network for 2^b words, each b of `bits`."""
    found = []
    for size in bits:
        model, words = Network.from_construction(2**size), 2**size
        possible = [pairs for pairs in PAIRS if pairs <= words]
        right = {pairs: right_answers(model, *recall_rows(words, pairs, ROWS)) for pairs in possible}
        blocks = model.model.layers
        found.append(
            {
                "words": words,
                "rows": ROWS,
                "right": {str(pairs): count for pairs, count in right.items()},
                "networks": weights(model.model.input_mixer, blocks[0].channel_mixer),
                "mixers": weights(*(block.mixer for block in blocks)),
                "codes": weights(model.model.embed_tokens, model.score),
            }
        )
    return found


def without_delay() -> nn.Module:
    """The network whose keys stay where they are, so that none meets its value."""
    model = Network.from_construction(BROKEN_WORDS)
    model.model.layers[0].mixer.conv.weight.data[:] = torch.tensor([0.0, 1.0])
    return model


VARIANTS: Mapping[str, Callable[[], nn.Module]] = {
    "whole": lambda: Network.from_construction(BROKEN_WORDS),
    "one-sided mixers": lambda: Network.from_construction(BROKEN_WORDS, bidirectional=False),
    "no network between the mixers": lambda: Network.from_construction(BROKEN_WORDS, channel_mixer_depth=[1, 0, 0]),
    "no network before the mixers": lambda: Network.from_construction(BROKEN_WORDS, channel_mixer_depth=[0, 3, 0]),
    "no delay of the keys": without_delay,
}


def broken() -> list[dict[str, Any]]:
    """Right answers of the whole network, of ones that lack a part, and of the one-sided one with the query first."""
    input_ids, answers = recall_rows(BROKEN_WORDS, BROKEN_PAIRS, BROKEN_ROWS)
    right = {name: right_answers(make(), input_ids, answers) for name, make in VARIANTS.items()}
    first = torch.cat([input_ids[:, -1:], input_ids[:, :-1]], dim=1)
    right["one-sided mixers, query first"] = right_answers(VARIANTS["one-sided mixers"](), first, answers)
    return [{"variant": name, "right": count, "rows": BROKEN_ROWS} for name, count in right.items()]


def write_report(folder: Path) -> str:
    """Write the report and the figure from what was measured, and return the report in Markdown.

    Raises:
        UsageError: nothing was measured yet.
    """
    found = read_json(folder / FOUND)
    draw(found["by_words"], folder / FIGURE)
    return keep_report(folder, _TITLE, report_blocks(found, folder))


def report_blocks(found: Mapping[str, Any], folder: Path) -> list[Block]:
    """The report; the folder may hold what a person has concluded."""
    header = ["words", *(f"right, {pairs} pairs" for pairs in PAIRS), "networks", "mixers", "embedding and head"]
    rows = [
        [
            f"{one['words']:,}",
            *(f"{one['right'][str(pairs)]} of {one['rows']}" if str(pairs) in one["right"] else "–" for pairs in PAIRS),
            *(f"{one[part]:,}" for part in ("networks", "mixers", "codes")),
        ]
        for one in found["by_words"]
    ]
    return [
        *_TEXT,
        Image(FIGURE, "Weights that are not zero against the number of words."),
        Table(header, rows, "Right answers, and weights that are not zero."),
        Table(
            ["network", "right %", "interval"],
            [broken_row(one) for one in found["broken"]],
            f"{BROKEN_WORDS} words, {BROKEN_PAIRS} pairs, {BROKEN_ROWS} rows; guessing one of the values is right in "
            f"{100 * (1 + (BROKEN_PAIRS - 1) / BROKEN_WORDS) / BROKEN_PAIRS:.1f} %, always the same word in "
            f"{100 / BROKEN_WORDS:.1f} %. Wilson score intervals at 95 %.",
        ),
        *findings_blocks(folder),
        Paragraph(provenance([found["environment"]])),
    ]


def broken_row(one: Mapping[str, Any]) -> list[str]:
    """A network in the table of what lacks a part."""
    rows = np.arange(one["rows"])
    share = accuracy(rows < one["right"], rows)
    return [one["variant"], f"{100 * share.value:.1f}", f"{100 * share.low:.1f} to {100 * share.high:.1f}"]


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the numbers of weights against the number of words."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    labels = {"networks": "both networks", "mixers": "both mixers", "codes": "embedding and head"}
    for i, (part, label) in enumerate(labels.items()):
        axes.plot([one["words"] for one in found], [one[part] for one in found], label=label, **style(i))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("words |W|")
    axes.set_ylabel("weights that are not zero")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
