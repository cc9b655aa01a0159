"""Measurements of one model: seconds of a training step, of a prefill and of a decoded token, and the memory they take.

Every measurement is made by a builder (model, input_ids) -> function; calling the function runs it once.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, RecurrentGemmaForCausalLM

__all__ = ["DECODE_BLOCK", "MEASURES", "Builder", "extra_memory", "interleave"]

Builder = Callable[[PreTrainedModel, Tensor], Callable[[], float]]
"""(model, input_ids (b, t)) -> function that returns the seconds it took (of one token where it decodes)."""

DECODE_BLOCK = 32
"""Tokens that one model decodes before the other has its turn: its weights then come from the processor's cache."""

ROUNDS_TAKE = 40.0
"""Seconds that the rounds of one comparison may take together, unless two take longer."""


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Return a function that calls `function` and returns the seconds it took, those of an accelerator included."""

    def run() -> float:
        _wait()
        start = time.perf_counter()
        function()
        _wait()
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
    """Return a timed pass that fills a cache, where the model has one, and computes the last token's logits."""
    model.eval()
    # RecurrentGemma cannot fill a cache where none of its blocks is attention.
    use_cache = not isinstance(model, RecurrentGemmaForCausalLM)
    return timed(torch.no_grad()(lambda: model(input_ids, use_cache=use_cache, logits_to_keep=1)))


def decode(model: PreTrainedModel, input_ids: Tensor) -> Callable[[], float]:
    """Return a function that decodes a block of tokens after the prompt and returns its median seconds per token."""
    model.eval()
    token = input_ids[:, :1]
    with torch.no_grad():
        outputs = model(input_ids, use_cache=True, logits_to_keep=1)
    # The name of the cache depends on the release of transformers.
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in tuple(outputs.keys()))
    cache = {name: outputs[name]}
    step = timed(torch.no_grad()(lambda: model(token, use_cache=True, **cache)))
    return lambda: statistics.median(step() for _ in range(DECODE_BLOCK))


MEASURES: dict[str, Builder] = {"training step": training_step, "prefill": prefill, "decode": decode}


def interleave(functions: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Call timed functions in turn, so that a busy machine slows all alike, and return the seconds of each.

    Args:
        functions: each returns the seconds of one run.
        repeats: rounds that count, after one that does not; fewer, but two, where rounds are long.
    """
    started = time.perf_counter()
    for function in functions:
        function()
    affordable = int(ROUNDS_TAKE / (time.perf_counter() - started))
    rounds = [[function() for function in functions] for _ in range(max(2, min(repeats, affordable)))]
    return [list(times) for times in zip(*rounds, strict=True)]


def extra_memory(model: PreTrainedModel, input_ids: Tensor, builder: Builder) -> int:
    """Return how many bytes a measurement adds at its peak to what this process already held.

    A short run goes first, so that what is made once (kernels, gradients of the parameters) does not count. Measure one
    model a process: memory that an earlier run gave back to the allocator would be missing from the result.
    """
    builder(model, input_ids[:, :16])()
    run = builder(model, input_ids)
    before = _resident_bytes()
    _reset_peak()
    run()
    return max(_peak_bytes() - before, 0)


def _wait() -> None:
    """Wait for what an accelerator has been given to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _reset_peak() -> None:
    # Linux: 5 sets the peak of the resident set back to its present size.
    Path("/proc/self/clear_refs").write_text("5")
