"""How fast a run goes and what it takes: tokens per second, share of the device's peak, waiting, memory, time left."""

import resource
import sys
import time
from dataclasses import dataclass, field

import torch

_BF16_PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations per second of matrix products, as NVIDIA's data sheets give them."""


def known_peak(device: torch.device, mixed_precision: str) -> float | None:
    """The operations per second that a device can do in bfloat16 or float16; None where that is not known."""
    if device.type != "cuda" or mixed_precision == "no":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((peak for name, peak in _BF16_PEAKS.items() if name in words), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use at once so far: tensors on a GPU, else this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


@dataclass
class Speed:
    """Measures the steps between two reports; evaluations and checkpoints in between are left out."""

    device: torch.device
    """This process's device."""

    tokens_per_step: int
    """Tokens of one optimiser step, over all processes."""

    flops_per_token: float | None
    """Operations of training, per token, or None where they are not known."""

    peak: float | None
    """Operations per second of all devices together, or None where no share of them can be told."""

    steps: int = 0
    """Steps since the last report."""

    seconds: float = 0.0
    """Their time."""

    waited: float = 0.0
    """The part of it in which the model waited for data."""

    _started: float = field(default_factory=time.perf_counter)

    def start_step(self) -> None:
        """To be called before each step."""
        self._started = time.perf_counter()

    def end_step(self, waited: float) -> float:
        """To be called behind each step.

        Args:
            waited: seconds that the step waited for its data.

        Returns:
            The seconds that the step took.
        """
        seconds = time.perf_counter() - self._started
        self.steps += 1
        self.seconds += seconds
        self.waited += waited
        return seconds

    def report(self, steps_left: int) -> dict[str, float]:
        """Return the numbers since the last report, and begin anew.

        Args:
            steps_left: steps until the end of the run.

        Returns:
            tokens_per_second, waiting (fraction of the time), peak_memory (bytes), seconds_left and, where the peak is
            known, mfu (model FLOPs utilisation, a fraction).
        """
        rate = self.steps * self.tokens_per_step / self.seconds
        numbers = {
            "tokens_per_second": rate,
            "waiting": self.waited / self.seconds,
            "peak_memory": float(peak_memory(self.device)),
            "seconds_left": steps_left * self.seconds / self.steps,
        }
        if self.peak is not None:
            numbers["mfu"] = rate * self.flops_per_token / self.peak
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        return numbers
