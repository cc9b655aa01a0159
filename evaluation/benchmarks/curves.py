"""Time and memory of one model against the length of its input, and the figure of many."""

import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from transformers import PreTrainedModel

from dsf_models import list_architectures
from evaluation.benchmarks.measure import MEASURES, extra_memory
from evaluation.benchmarks.peers import PEERS, TWINS, Shape, build_pair, build_peer, build_zoo

__all__ = ["Curve", "draw", "measure_curve", "memory_in_a_process"]

TOO_LONG = 40.0
"""Seconds: a length that is expected to take longer is left out."""
MEMORY_FROM = 4096
"""Tokens from which on memory is measured: below, the allocator's habits decide."""
TITLES = {"training step": "training step", "prefill": "prefill", "decode": "decoding, per token"}


@dataclass(kw_only=True)
class Curve:
    """Measurements of one model."""

    model: str
    measure: str
    seconds: dict[int, float] = field(default_factory=dict)
    """Median seconds by tokens."""
    memory: dict[int, int] = field(default_factory=dict)
    """Bytes at the peak on top of the model's own, by tokens."""


def build(name: str, shape: Shape) -> PreTrainedModel:
    """Return a model by its name: one of transformers, or an architecture here, in its peer's sizes if it has one."""
    if name in PEERS:
        return build_peer(name, shape)
    return build_pair(TWINS[name], shape)[0] if name in TWINS else build_zoo(name, shape)


def measure_curve(name: str, measure: str, shape: Shape, lengths: Sequence[int], repeats: int) -> Curve:
    """Measure one model at every length that it reaches in reasonable time; memory where a step has any to speak of."""
    torch.manual_seed(0)
    model, curve = build(name, shape), Curve(model=name, measure=measure)
    for length in lengths:
        if _expected(curve, length) > TOO_LONG:
            break
        input_ids = torch.randint(shape.vocab_size, (1, length))
        run = MEASURES[measure](model, input_ids)
        first = run()
        # The first run of a long step is as good as the next; that of a short one starts with cold caches.
        again = min(repeats, int(TOO_LONG / 4 / max(first, 1e-3)))
        curve.seconds[length] = statistics.median([run() for _ in range(again)] or [first])
        if measure != "decode" and length >= MEMORY_FROM:
            curve.memory[length] = memory_in_a_process(name, measure, length)
    return curve


def _expected(curve: Curve, length: int) -> float:
    """Return the seconds to be expected at a length if time goes on growing as it did, with the square at most."""
    known = list(curve.seconds.items())
    if not known or curve.measure == "decode":
        return 0.0
    longest, seconds = known[-1]
    exponent = 1.0
    if len(known) > 1:
        exponent = min(2.0, math.log(seconds / known[-2][1]) / math.log(longest / known[-2][0]))
    return seconds * (length / longest) ** exponent


def memory_in_a_process(name: str, measure: str, length: int) -> int:
    """Return the extra memory of a model at its peak, in bytes, measured in a process of its own."""
    command = [sys.executable, "-m", "evaluation.benchmarks.curves", name, measure, str(length)]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    return int(result.stdout.split()[-1])


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw seconds and bytes against length, one panel a measure, models here in colour and their peers in grey."""
    panels = [(measure, "seconds") for measure in MEASURES] + [
        (measure, "memory") for measure in MEASURES if measure != "decode"
    ]
    figure, grid = plt.subplots(2, 3, figsize=(14, 8.5), layout="constrained")
    for axes, (measure, quantity) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, [curve for curve in curves if curve.measure == measure], quantity)
        axes.set_title(TITLES[measure])
    legend = grid.flat[len(panels)]
    legend.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center", ncols=2, frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _draw_panel(axes: Axes, curves: Sequence[Curve], quantity: str) -> None:
    colours = plt.get_cmap("tab20").colors
    names = list_architectures()
    for curve in curves:
        points = {length: value for length, value in getattr(curve, quantity).items() if value > 0}
        ours = curve.model in names
        style = {"color": colours[names.index(curve.model) % 20]} if ours else {"color": "0.55", "linestyle": "--"}
        marker = "o" if ours else f"${curve.model[0]}{'2' if '2' in curve.model else ''}$"
        axes.plot(list(points), list(points.values()), label=curve.model, marker=marker, linewidth=1.4, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds" if quantity == "seconds" else "extra memory (bytes)")
    axes.grid(color="0.92")


def main() -> None:
    """Print the extra memory of one model and length: curves.py MODEL MEASURE LENGTH."""
    name, measure, length = sys.argv[1:]
    torch.set_num_threads(1)
    shape = Shape()
    model = build(name, shape)
    print(extra_memory(model, torch.randint(shape.vocab_size, (1, int(length))), MEASURES[measure]))


if __name__ == "__main__":
    main()
