"""Times our models and their peers side by side: training step, prefill and decoding.

    python evaluation/benchmarks/speed.py [--architectures ssd] [--lengths 256 1024] [--output FILE.json]

Both models run in this process with the same weights, one thread and interleaved repeats, so that a busy machine slows
both alike; the table gives medians and ratios (peer / ours: above 1, ours is faster). The outputs are compared first.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from evaluation.benchmarks.peers import PAIRS, WITHOUT_CACHE, Shape, largest_difference

DECODE_BLOCK = 32
"""Tokens that one model decodes before the other has its turn: its weights then come from the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians of one comparison, in seconds (of a whole step, or of a token where decoding)."""

    architecture: str
    measure: str
    length: int
    ours: float
    peer: float
    ratio: float
    """Median of the pairwise ratios peer / ours."""


def interleave(ours: Callable[[], float], peer: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """Call two timed functions in turn after one warm-up each, and return the seconds of both."""
    ours()
    peer()
    times = [(ours(), peer()) for _ in range(repeats)]
    return [first for first, _ in times], [second for _, second in times]


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Return a function that calls `function` and returns the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def training_step(model: PreTrainedModel, input_ids: Tensor) -> Callable[[], float]:
    """Return a timed forward and backward pass over (b, t) tokens."""
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()

    return timed(step)


def prefill(model: PreTrainedModel, input_ids: Tensor) -> Callable[[], float]:
    """Return a timed pass that fills a cache (if there is one) and computes the last token's logits."""
    model.eval()
    caches = not isinstance(model, WITHOUT_CACHE)
    return timed(torch.no_grad()(lambda: model(input_ids, use_cache=caches, logits_to_keep=1)))


def decode(model: PreTrainedModel, input_ids: Tensor) -> Callable[[], float]:
    """Return a function that decodes a block of tokens after the prompt and returns its median seconds per token."""
    model.eval()
    token = input_ids[:, :1]
    with torch.no_grad():
        outputs = model(input_ids, use_cache=True)
    # The name of the cache depends on the release of transformers.
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in tuple(outputs.keys()))
    cache = {name: outputs[name]}
    step = timed(torch.no_grad()(lambda: model(token, use_cache=True, **cache)))
    return lambda: statistics.median(step() for _ in range(DECODE_BLOCK))


MEASURES = {"training step": training_step, "prefill": prefill, "decode, per token": decode}


def compare(architecture: str, shape: Shape, lengths: list[int], repeats: int) -> list[Timing]:
    """Time one architecture beside its peer at each length.

    Raises:
        RuntimeError: the two models disagree, so that comparing their speed would mean nothing.
    """
    torch.manual_seed(0)
    ours, peer = PAIRS[architecture](shape)
    timings = []
    for length in lengths:
        input_ids = torch.randint(shape.vocab_size, (1, length))
        difference = largest_difference(ours.eval(), peer.eval(), input_ids)
        print(
            f"{architecture}, {length} tokens: largest relative difference of the logits {difference:.1e}", flush=True
        )
        if difference > 1e-4:
            raise RuntimeError(
                f"{architecture} and {type(peer).__name__} differ by {difference:.1e} at {length} tokens."
            )
        for measure, build in MEASURES.items():
            if build is decode and isinstance(peer, WITHOUT_CACHE):
                continue
            times = interleave(build(ours, input_ids), build(peer, input_ids), repeats)
            timings.append(
                Timing(
                    architecture=architecture,
                    measure=measure,
                    length=length,
                    ours=statistics.median(times[0]),
                    peer=statistics.median(times[1]),
                    ratio=statistics.median(second / first for first, second in zip(*times, strict=True)),
                )
            )
    return timings


def print_table(timings: list[Timing]) -> None:
    """Print one row for each comparison."""
    print(f"{'architecture':<14}{'measure':<20}{'tokens':>8}{'ours, ms':>12}{'peer, ms':>12}{'peer / ours':>13}")
    for row in timings:
        print(
            f"{row.architecture:<14}{row.measure:<20}{row.length:>8}{row.ours * 1e3:>12.2f}{row.peer * 1e3:>12.2f}"
            f"{row.ratio:>13.2f}"
        )


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architectures", nargs="+", choices=sorted(PAIRS), default=sorted(PAIRS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024], help="tokens of a sequence")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    shape = Shape()
    timings = []
    for architecture in arguments.architectures:
        timings += compare(architecture, shape, arguments.lengths, arguments.repeats)
    print_table(timings)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        result = {"shape": asdict(shape), "timings": [asdict(row) for row in timings], **environment_facts()}
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
