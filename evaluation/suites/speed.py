"""Throughput and memory: prefill, training steps and decoding, of several models in turn.

Warm-up runs do not count; the device is waited for around each timed part; medians and quartiles of the repeats. The
tokens of a batch stay the same while the length of its sequences varies. Models take turns, so that a busy machine
slows all alike; the ratio to the first model is the median over the rounds. Tokens are random.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import UsageError
from evaluation.benchmarks.measure import MEASURES, interleave
from evaluation.config import EvaluationConfig, SpeedOptions
from evaluation.results import Curve, Point, measured, model_facts
from evaluation.suites.base import Suite, load
from evaluation.suites.task import looks_ahead, state_facts

INTERVAL = "First and third quartile of the repeats of this one process on this one machine; not an interval at 95 %."
_WARM_UP = 3
_HEADS = ("CausalLM",)


@dataclass(frozen=True)
class Timed:
    """One thing that is timed.

    Attributes:
        measure: a key of `MEASURES`.
        length: tokens of a sequence, or of the context in front of the decoded tokens.
        batch: sequences.
        tokens: that one timed run processes.
    """

    measure: str
    length: int
    batch: int
    tokens: int


class Speed(Suite):
    """Tokens per second and bytes of memory."""

    uses = frozenset({"speed"})
    heads = _HEADS
    interval = INTERVAL
    recordable = False

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        self.facts = {
            "name": "speed",
            "split": "random tokens",
            "seed": 0,
            "data_hash": None,
            "sizes": asdict(config.speed),
            "warm_up": _WARM_UP,
        }

    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """One model alone."""
        return self._measure([model], [name])[0]

    def run(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Measure all models in turn."""
        models = [load(name, self.heads) for name in names]
        entries = self._measure(models, names)
        return [
            model_facts(model, name, entry.pop("state")) | entry
            for model, name, entry in zip(models, names, entries, strict=True)
        ]

    def _measure(self, models: Sequence[PreTrainedModel], names: Sequence[str]) -> list[dict[str, Any]]:
        for model, name in zip(models, names, strict=True):
            if looks_ahead(model):
                raise UsageError(f"--model {name} looks ahead: it has no state to decode from.")
        times: list[list[tuple[Timed, list[float]]]] = [[] for _ in models]
        for timed in what_is_timed(self.config.speed):
            for own, seconds in zip(times, time_models(models, names, timed, self.config.speed.repeats), strict=True):
                own.append((timed, seconds))
        return [self._entry_of(models[i], names[i], own, times[0]) for i, own in enumerate(times)]

    def _entry_of(
        self, model: PreTrainedModel, name: str, own: list[tuple[Timed, list[float]]], first: list[Any]
    ) -> dict[str, Any]:
        options = self.config.speed
        metrics = []
        for (timed, seconds), (_, others) in zip(own, first, strict=True):
            metrics += rate_metrics(timed, seconds, others)
        if options.memory:
            # A decoded token takes next to nothing beside the state, whose bytes are told exactly.
            long = [timed for timed, _ in own if timed.measure != "decode"]
            metrics += [memory_metric(timed, memory_of(model, name, timed)) for timed in long]
        ids = torch.zeros(1, options.context, dtype=torch.long).numpy()
        curves = [curve for measure in MEASURES if (curve := rate_curve(measure, own)) is not None]
        return {"state": state_facts(model, ids), **measured(metrics, curves)}


def what_is_timed(options: SpeedOptions) -> Iterator[Timed]:
    """Everything that is timed, the same tokens in each batch of one measure."""
    for measure in ("prefill", "training step"):
        for length in options.lengths:
            batch = max(1, options.tokens // length)
            yield Timed(measure, length, batch, batch * length)
    for batch in options.batch_sizes:
        yield Timed("decode", options.context, batch, batch)


def time_models(
    models: Sequence[PreTrainedModel], names: Sequence[str], timed: Timed, repeats: int
) -> list[list[float]]:
    """Seconds of each repeat, of each model, in rounds."""
    runs = []
    for model, name in zip(models, names, strict=True):
        try:
            run = MEASURES[timed.measure](model, random_ids(model, timed))
            for _ in range(_WARM_UP):
                run()
        except (ValueError, RuntimeError, IndexError) as error:
            raise UsageError(
                f"--model {name} does not take {timed.batch} x {timed.length} tokens ({timed.measure}): {error}"
            ) from error
        runs.append(run)
    return interleave(runs, repeats)


def random_ids(model: PreTrainedModel, timed: Timed) -> torch.Tensor:
    """The same random tokens (batch, length) for every model of one vocabulary."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    return torch.randint(size, (timed.batch, timed.length), generator=generator).to(model.device)


def rate_metrics(timed: Timed, seconds: list[float], others: list[float]) -> list[Metric]:
    """Tokens per second, and the ratio to the first model's."""
    what = f"{timed.measure}, {timed.batch} × {timed.length} tokens"
    if timed.measure == "decode":
        what = f"decode, batch of {timed.batch} behind {timed.length} tokens"
    common = {"split": "random tokens", "is_fraction": False, "counts": {"repeats": len(seconds)}}
    rates = quartiles([timed.tokens / one for one in seconds])
    ratios = quartiles([other / one for one, other in zip(seconds, others, strict=True)])
    found = [(f"tokens per second: {what}", "tokens_per_second", rates)]
    if seconds is not others:
        found.append((f"speed over the first model's: {what}", "ratio", ratios))
    return [
        Metric(name=name, kind=kind, value=middle, interval=(low, high), **common)
        for name, kind, (low, middle, high) in found
    ]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def rate_curve(measure: str, own: Sequence[tuple[Timed, list[float]]]) -> Curve | None:
    """Tokens per second against the length, or of decoding against the batch; None for fewer than two points."""
    decoding = measure == "decode"
    points = []
    for timed, seconds in own:
        if timed.measure == measure:
            low, middle, high = quartiles([timed.tokens / one for one in seconds])
            x = timed.batch if decoding else timed.length
            points.append(Point(x=x, value=middle, interval=(low, high), count=len(seconds)))
    if len(points) < 2:
        return None
    x = "sequences decoded together" if decoding else "tokens of a sequence, the batch's tokens being the same"
    return Curve(name=f"speed of {measure}", y="tokens per second", x=x, points=points, is_fraction=False)


def memory_metric(timed: Timed, size: int) -> Metric:
    """Bytes at the peak."""
    return Metric(
        name=f"bytes at the peak, over the model's own: {timed.measure}, {timed.batch} × {timed.length} tokens",
        kind="memory",
        split="random tokens",
        value=float(size),
        is_fraction=False,
    )


def memory_of(model: PreTrainedModel, name: str, timed: Timed) -> int:
    """Bytes that a measurement takes at its peak over what was held before it.

    On a GPU the allocator tells; on a CPU the measurement is made in a process of its own, since memory that an earlier
    one gave back to the allocator would be missing.
    """
    if model.device.type == "cuda":
        run = MEASURES[timed.measure](model, random_ids(model, timed))
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    # A relative folder is one of the caller's.
    source = str(Path(name).resolve()) if Path(name).is_dir() else name
    module = "evaluation.benchmarks.checkpoint_memory"
    command = [sys.executable, "-m", module, source, timed.measure, str(timed.batch), str(timed.length)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    if found.returncode != 0:
        said = found.stderr.strip().splitlines() or [f"exit code {found.returncode}"]
        raise UsageError(f"--model {name}: its memory cannot be measured ({said[-1]}).")
    return int(found.stdout.split()[-1])
