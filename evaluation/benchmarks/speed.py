"""Measures what this project promises about speed and memory, side by side with transformers' models.

    python evaluation/benchmarks/speed.py [--only s6 ssd] [--output FILE.json] [--figure FILE.png]

One thread, interleaved repeats, medians. Models of transformers are measured beside their twins here, with the same
weights, after their logits were compared; memory is measured in a process for each model. Every bar is printed with
what was measured, met or not.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsf_models import list_architectures
from dsf_models.analysis.accounting import has_bounded_state
from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from evaluation.benchmarks.curves import Curve, build, draw, measure_curve, memory_in_a_process
from evaluation.benchmarks.measure import MEASURES, interleave
from evaluation.benchmarks.peers import (
    PEERS,
    Shape,
    build_pair,
    build_zoo,
    largest_difference,
    ssd_of_equal_state,
)

SHAPE = Shape()
TOLERANCE = 1e-4
"""Largest relative difference of the logits of a pair that is still one model."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A promise: in one measure, the other model takes at least `least` times what ours takes."""

    model: str
    """Architecture here."""
    other: str
    """A model of transformers, or "SSD" for our SSD at the same inner width and state bytes."""
    measure: str
    """A key of `MEASURES`, or one followed by " memory"."""
    length: int
    """Tokens of the sequence (of the prompt, where decoding is measured)."""
    least: float
    """The ratio other / ours that is promised."""
    stretch: float | None = None
    """The ratio that is hoped for."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A bar with what was measured: seconds or bytes."""

    bar: Bar
    ours: float
    other: float
    ratio: float
    met: bool


PAIRED = [
    Bar(model="s6", other="Mamba", measure="training step", length=256, least=15, stretch=20),
    Bar(model="s6", other="Mamba with mambapy", measure="training step", length=1024, least=3.5, stretch=5),
    Bar(model="ssd", other="Mamba-2", measure="training step", length=1024, least=2, stretch=2.5),
    Bar(model="rg_lru", other="RecurrentGemma", measure="training step", length=1024, least=3),
    Bar(model="rg_lru", other="RecurrentGemma", measure="training step", length=4096, least=10),
    Bar(model="s6", other="Mamba", measure="prefill", length=1024, least=2.4, stretch=3.5),
    Bar(model="ssd", other="Mamba-2", measure="prefill", length=1024, least=1.8, stretch=2.5),
    Bar(model="rg_lru", other="RecurrentGemma", measure="prefill", length=1024, least=1.4),
    Bar(model="s6", other="Mamba", measure="decode", length=256, least=1.9, stretch=3),
    Bar(model="ssd", other="Mamba-2", measure="decode", length=256, least=1.9, stretch=3),
    Bar(model="s6", other="Mamba", measure="prefill memory", length=16384, least=5),
    Bar(model="ssd", other="Mamba-2", measure="training step memory", length=4096, least=1 / 0.55),
    Bar(model="s6", other="Mamba with mambapy", measure="training step memory", length=4096, least=5),
]
"""Pairs with the same weights."""

AGAINST_LLAMA = {
    "scalar or elementwise": (
        ("linear_attention", "normalized_attention", "ssd", "qlstm", "rg_lru"),
        {1024: 1 / 1.0, 4096: 1 / 0.6},
    ),
    "s6": (("s6",), {1024: 1 / 1.5, 4096: 1 / 0.9}),
}
"""Training steps beside Llama's, by the structure of Λ."""

IMPOSSIBLE = [("RecurrentGemma", "decode")]
"""Curves that a peer cannot give: transformers' cache has no length where no layer of the model is attention."""

NOT_BARRED = ("taylor_attention", "s4", "lstm", "softmax_attention", "hybrid", "ssd")
"""Architectures that are not held to SSD's training time."""
WITHIN_SSD = 3
MAX_SCALING = 4.4
"""What four times the length may cost at most: time(4 L) / time(L)."""
FROM = 1024
"""Tokens from which on growth is held to that: before, what does not depend on the length still counts."""
MAX_DECODE_GROWTH = 1.05
"""What a token may cost at most behind 4096 tokens, relative to one behind 256."""


def bars(names: Sequence[str]) -> list[Bar]:
    """Return the bars of these architectures."""
    wanted = [bar for bar in PAIRED if bar.model in names]
    wanted += [
        Bar(model=name, other="Llama", measure="training step", length=length, least=least)
        for members, limits in AGAINST_LLAMA.values()
        for name in members
        if name in names
        for length, least in limits.items()
    ]
    wanted += [
        Bar(model=name, other="SSD", measure="training step", length=1024, least=1 / WITHIN_SSD)
        for name in names
        if name not in NOT_BARRED
    ]
    return wanted


@cache
def contestants(model: str, other: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return ours and the other model of a bar; of a pair, with the same weights and logits that were compared.

    Raises:
        RuntimeError: the logits differ, so that comparing speed would mean nothing.
    """
    torch.manual_seed(0)
    if other == "SSD":
        ours = build_zoo(model, SHAPE)
        return ours, ssd_of_equal_state(ours.config)
    if any(bar.model == model and bar.other == other for bar in PAIRED):
        ours, peer = build_pair(other, SHAPE)
        difference = largest_difference(ours, peer, torch.randint(SHAPE.vocab_size, (1, 128)))
        print(f"{model} and {other}: largest relative difference of the logits {difference:.1e}", flush=True)
        if difference > TOLERANCE:
            raise RuntimeError(f"{model} and {other} differ by {difference:.1e}: they are not one model.")
        return ours, peer
    return build_zoo(model, SHAPE), build_pair(other, SHAPE)[1]


def measure_bar(bar: Bar, repeats: int) -> Result:
    """Measure one bar: times in turn in this process, memory in a process for each model."""
    if bar.measure.endswith(" memory"):
        measure = bar.measure.removesuffix(" memory")
        ours, other = (float(memory_in_a_process(name, measure, bar.length)) for name in (bar.model, bar.other))
        ratio = other / ours
    else:
        torch.manual_seed(0)
        input_ids = torch.randint(SHAPE.vocab_size, (1, bar.length))
        builder = MEASURES[bar.measure]
        runs = [builder(model, input_ids) for model in contestants(bar.model, bar.other)]
        times = interleave(runs, repeats)
        ours, other = map(statistics.median, times)
        ratio = statistics.median(second / first for first, second in zip(*times, strict=True))
    return Result(bar=bar, ours=ours, other=other, ratio=ratio, met=ratio >= bar.least)


def scaling(curves: Iterable[Curve]) -> list[dict[str, object]]:
    """Return how time grows with four times the length, and decoding with the context, for every curve."""
    rows = []
    for curve in curves:
        limit = MAX_DECODE_GROWTH if curve.measure == "decode" else MAX_SCALING
        lengths = [length for length in curve.seconds if length >= FROM or curve.measure == "decode"]
        for short, long in pairwise(lengths):
            ratio = curve.seconds[long] / curve.seconds[short]
            rows.append(
                {"model": curve.model, "measure": curve.measure, "from": short, "to": long, "ratio": ratio}
                | {"most": limit, "met": ratio <= limit}
            )
    return rows


def print_results(results: Sequence[Result], growth: Sequence[dict[str, object]]) -> None:
    """Print every bar with what was measured."""
    print(f"\n{'model':<22}{'other':<20}{'measure':<22}{'tokens':>7}{'ours':>11}{'other':>11}{'ratio':>8}{'bar':>7}")
    for result in results:
        bar, unit = result.bar, 1e6 if result.bar.measure.endswith("memory") else 1e-3
        scale = 1 / unit
        print(
            f"{bar.model:<22}{bar.other:<20}{bar.measure:<22}{bar.length:>7}{result.ours * scale:>11.2f}"
            f"{result.other * scale:>11.2f}{result.ratio:>8.2f}{bar.least:>7.2f}  {'met' if result.met else 'NOT MET'}"
        )
    print("(ours and other in milliseconds, memory in megabytes; ratio is other / ours)")
    for row in growth:
        print(
            f"{row['model']:<22}{row['measure']:<20}from {row['from']} to {row['to']} tokens: {row['ratio']:.2f} "
            f"times, at most {row['most']}: {'met' if row['met'] else 'NOT MET'}"
        )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list_architectures(), default=list_architectures())
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of each measurement")
    parser.add_argument(
        "--lengths",
        nargs="*",
        type=int,
        default=[256, 1024, 4096, 16384],
        help="tokens of the curves; none: bars alone",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--figure", type=Path, help="PNG file: time and memory against length")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = []
    for bar in bars(arguments.only):
        results.append(measure_bar(bar, arguments.repeats))
        print(f"{bar.model} beside {bar.other}, {bar.measure}, {bar.length}: {results[-1].ratio:.2f}", flush=True)
    curves = [
        measure_curve(name, measure, SHAPE, arguments.lengths, arguments.repeats)
        for name in [*arguments.only, *PEERS]
        for measure in MEASURES
        if arguments.lengths and (name, measure) not in IMPOSSIBLE
    ]
    growth = scaling(
        curve
        for curve in curves
        if curve.model in arguments.only and has_bounded_state(build(curve.model, SHAPE).config)
    )
    print_results(results, growth)
    if arguments.output is not None:
        content = {
            "shape": asdict(SHAPE),
            "bars": [asdict(result) for result in results],
            "growth": growth,
            "curves": [asdict(curve) for curve in curves],
            **environment_facts(),
        }
        write_json(arguments.output, content)
    if arguments.figure is not None:
        draw(curves, arguments.figure)


if __name__ == "__main__":
    main()
