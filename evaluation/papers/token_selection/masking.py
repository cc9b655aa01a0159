"""Which nucleotides a splice-site classifier rests on: mask them in several orders and watch its confidence.

    python scripts/splice.py
    python evaluation/papers/token_selection/masking.py --size small
    python evaluation/papers/token_selection/masking.py --size small --report

The same command goes on after an interruption: models that have finished are kept under evaluation/results/.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from dsf_models.analysis import importance as analysis
from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.papers.study import ROOT
from evaluation.papers.sweeps import read_json
from evaluation.papers.token_selection.masking_report import write_report
from evaluation.papers.token_selection.splice import CLASSES, MASK, MODELS, Sequences, load, train

COUNTS = (0, 1, 2, 4, 8, 16, 30, 45, 55)
ORDERS = ("own", "own, of another model", "global", "another input's", "random", "own, least first")
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    steps: int
    """Optimiser steps of each classifier."""

    seeds: tuple[int, ...]
    """Of the classifiers; each lends its order to the one before it."""

    inputs: int
    """Test sequences that are masked, of those that all classifiers of a kind get right."""

    greedy: int
    """Of these, how many are masked greedily."""


SIZES = {"small": Size(1500, (0, 1, 2), 300, 40), "full": Size(10_000, (0, 1, 2, 3, 4), 600, 200)}
GREEDY_STEPS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: carry out the study, or say in one line why not."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data/splice.csv"), help="default: %(default)s")
    parser.add_argument("--report", action="store_true", help="compute nothing: write report and figure anew")
    try:
        options = parser.parse_args(arguments)
        results = ROOT / "evaluation" / "results" / f"token_selection_masking_{options.size}"
        runs = ROOT / "runs" / "papers" / "token_selection" / f"masking_{options.size}"
        if not options.report:
            carry_out(SIZES[options.size], options.data, runs, results)
        print(write_report(results))
    except UsageError as error:
        sys.exit(f"masking.py: error: {error}")


def carry_out(size: Size, data: Path, runs: Path, results: Path) -> None:
    """Train and mask every kind of model that has no result yet.

    Args:
        size: how much is computed.
        data: file of scripts/splice.py.
        runs: folder of the checkpoints.
        results: folder that gets one JSON file for each kind.
    """
    training, test = load(data)
    results.mkdir(parents=True, exist_ok=True)
    digest = sha256(b"".join(split.input_ids.numpy().tobytes() for split in (training, test))).hexdigest()
    for name in MODELS:
        file = results / f"{name}.json"
        asked = json.loads(json.dumps({"size": asdict(size), "config": MODELS[name], "data_hash": digest}))
        if not file.is_file() or read_json(file)["asked"] != asked:
            environment = environment_facts()  # of the code that is at work, whatever is committed meanwhile
            folder = runs / digest[:8]
            models = [
                train(name, seed, size.steps, training, folder / f"{name}-{seed}-{size.steps}") for seed in size.seeds
            ]
            write_json(file, {"model": name, "asked": asked, **examine(models, size, test), "environment": environment})


def examine(models: Sequence[PreTrainedModel], size: Size, test: Sequences) -> dict[str, Any]:
    """Mask the test sequences that all models of one kind classify right.

    Args:
        models: of one kind, one for each seed, at least two.
        size: how much is computed.
        test: sequences that no model has seen.

    Returns:
        Accuracies, curves by order with bootstrap intervals over sequences, gaps between the own order and the others,
        kept fractions, and the positions that matter most for each class.
    """
    right = torch.stack([answers_right(model, test) for model in models])
    chosen = right.all(0).nonzero().squeeze(1)[: size.inputs]
    inputs = Sequences(test.input_ids[chosen], test.labels[chosen])
    importances = [analysis.token_importance(model, inputs.input_ids, inputs.labels, MASK) for model in models]
    orders = [
        orders_of(own, other, seed)
        for seed, (own, other) in enumerate(zip(importances, importances[1:] + importances[:1], strict=True))
    ]
    curves = [by_order(model, inputs, chosen, COUNTS) for model, chosen in zip(models, orders, strict=True)]
    return {
        "training_steps": size.steps,
        "parameters": models[0].num_parameters(),
        "accuracies": right.double().mean(1).tolist(),
        "sequences": len(inputs),
        "counts": list(COUNTS),
        "curves": {order: summary([curve[order] for curve in curves]) for order in ORDERS},
        "gaps": {order: summary([curve[order] - curve["own"] for curve in curves]) for order in ORDERS[1:]},
        "greedy": greedy(models, inputs, orders, size.greedy),
        "kept_fraction": kept_fractions(models, inputs, orders),
        "top_positions": top_positions(torch.stack(importances).mean(0), inputs.labels),
    }


@torch.no_grad()
def answers_right(model: PreTrainedModel, data: Sequences) -> Tensor:
    """Whether the class of each sequence has the highest logit, (b,)."""
    return model(input_ids=data.input_ids).logits.argmax(-1) == data.labels


def orders_of(own: Tensor, other: Tensor, seed: int) -> dict[str, Tensor]:
    """The orders of masking by name, each (b, t).

    Args:
        own: importance of each token to the model that is looked at, (b, t).
        other: importance of the same tokens to another model of the same kind.
        seed: of the random orders.
    """
    generator = torch.Generator().manual_seed(seed)
    by_importance = analysis.importance_order(own)
    return {
        "own": by_importance,
        "own, of another model": analysis.importance_order(other),
        "global": analysis.global_order(own),
        "another input's": analysis.other_order(own, generator),
        "random": analysis.random_order(own, generator),
        "own, least first": by_importance.flip(1),
    }


def by_order(
    model: PreTrainedModel, inputs: Sequences, orders: Mapping[str, Tensor], counts: Sequence[int]
) -> dict[str, Tensor]:
    """Probability of the class by order, each (k, b)."""
    return {
        name: analysis.masking_curve(model, inputs.input_ids, inputs.labels, order, counts, MASK)
        for name, order in orders.items()
    }


def greedy(
    models: Sequence[PreTrainedModel], inputs: Sequences, orders: Sequence[Mapping[str, Tensor]], count: int
) -> dict[str, Any]:
    """The greedy order beside the own one, on the first sequences."""
    few = Sequences(inputs.input_ids[:count], inputs.labels[:count])
    counts = [k for k in COUNTS if k <= GREEDY_STEPS]
    curves = []
    for model, own in zip(models, orders, strict=True):
        order = analysis.greedy_order(model, few.input_ids, few.labels, MASK, GREEDY_STEPS)
        curves.append(by_order(model, few, {"greedy": order, "own": own["own"][:count]}, counts))
    names = ("greedy", "own")
    return {"counts": counts, "curves": {name: summary([curve[name] for curve in curves]) for name in names}}


def kept_fractions(
    models: Sequence[PreTrainedModel], inputs: Sequences, orders: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Quartiles, over sequences and seeds, of the part of the tokens that keeps nine tenths of the probability."""
    length = inputs.input_ids.shape[1]
    counts = range(length + 1)
    found = []
    for model, own in zip(models, orders, strict=True):
        curve = by_order(model, inputs, {"least": own["own, least first"]}, counts)["least"]
        found.append(analysis.kept_fraction(curve, counts, length))
    levels = torch.tensor([0.25, 0.5, 0.75])
    return dict(zip(("lower", "median", "upper"), torch.cat(found).quantile(levels).tolist(), strict=True))


def summary(curves: Sequence[Tensor]) -> dict[str, Any]:
    """Mean over sequences and seeds, with a 95 % bootstrap interval over sequences.

    Args:
        curves: one of each seed, (k, b).

    Returns:
        `mean` (k), `interval` (k pairs), and `seeds`: the mean of each (seeds, k).
    """
    values = torch.stack(list(curves)).double().numpy()
    by_sequence = values.mean(0)
    drawn = np.random.default_rng(0).integers(by_sequence.shape[1], size=(_BOOTSTRAP, by_sequence.shape[1]))
    ends = np.stack([np.quantile(row[drawn].mean(1), (0.025, 0.975)) for row in by_sequence])
    return {"mean": by_sequence.mean(1).tolist(), "interval": ends.tolist(), "seeds": values.mean(2).tolist()}


def top_positions(importance: Tensor, labels: Tensor, count: int = 4) -> dict[str, list[int]]:
    """The positions with the highest mean importance (b, t), for each class."""
    return {
        name: importance[labels == i].mean(0).topk(count).indices.tolist()
        for i, name in enumerate(CLASSES)
        if (labels == i).any()
    }


if __name__ == "__main__":
    main()
