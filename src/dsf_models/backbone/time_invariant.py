"""Time-invariant mixers: the fields and the class that let a constant (Λ, B, C, D) look both ways, or a window back."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from ..errors import require
from ..filters import FilterSystem
from ..system import DSFSystem
from .configuration import DSFConfig
from .layout import TokenLayout
from .mixer import DSFMixer

__all__ = ["TimeInvariantConfig", "TimeInvariantMixer"]


@strict
class TimeInvariantConfig(DSFConfig):
    """Fields that all time-invariant architectures share beside those of `DSFConfig`."""

    channel_mixer: Literal["none", "mlp", "swiglu", "geglu"] = "mlp"
    """Token-wise network after the mixer; without one, nothing but norms keeps the model from being linear in time."""
    bidirectional: bool = False
    """Whether the mixer is a two-sided filter: a second pass, with a read-out of its own, runs from the end. Such a
    model classifies; it has no cache and cannot generate."""
    window: int | None = None
    """Largest lag U of the mixer's filter, which is exactly 0 beyond it; None for the infinite filter. Time and cache
    grow with U: the window is a convolution with U + 1 taps."""

    @property
    def looks_ahead(self) -> bool:
        """Whether an output depends on later tokens."""
        return self.bidirectional

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(
            self.window is None or self.window >= 1,
            "window",
            self.window,
            "give the largest lag (at least 1), or None for an infinite filter.",
        )

    def _require_pairs(self, remedy: str = "choose an even number.") -> None:
        require(
            self.state_size % 2 == 0, "state_size", self.state_size, f"complex states come in conjugate pairs: {remedy}"
        )


class TimeInvariantMixer(DSFMixer):
    """Mixer whose Λ, B, C, D depend neither on the input nor on the time: a filter.

        y_i = Σ_{0<=l<=U} K_l u_{i-l} + Σ_{1<=l<=U} K'_l u_{i+l}
        K_l = C Λ^l B + D δ_{l0}        K'_l = C' Λ^{l-1} B

    A subclass implements what `DSFMixer` asks for and `reverse`: the system of lags below 0, which `bidirectional`
    adds. Its C' is a parameter of its own, `C_reverse` beside `C` (None where the filter is causal): a filter with C' =
    C Λ would be even, and could not tell past from future.

    Source: convolutions between token-wise networks are the models of Nishikawa & Suzuki 2025 (arXiv 2405.19036); to
    let them look both ways is this project's choice: no causal state of few bits can answer a query that comes last.
    """

    time_invariant: ClassVar[bool] = True
    C: nn.Parameter
    C_reverse: nn.Parameter | None

    def __init__(self, config: TimeInvariantConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.bidirectional, self.window = config.bidirectional, config.window
        self.streams = not config.bidirectional

    def read_outs(self) -> list[nn.Parameter]:
        """Return C, and C' where the filter is two-sided."""
        return [self.C] if self.C_reverse is None else [self.C, self.C_reverse]

    def reverse(self, system: DSFSystem) -> DSFSystem:
        """Return the system of the pass from the end: the same Λ and B at the same inputs, its own C', no D."""
        raise NotImplementedError(f"{type(self).__name__} must implement reverse(system) -> DSFSystem.")

    def system_at(self, gathered: Tensor, layout: TokenLayout, layer: Any = None) -> DSFSystem | FilterSystem:
        """Return the system at gathered hidden states, as a filter where it is two-sided or windowed."""
        system = super().system_at(gathered, layout, layer)
        if self.window is None and not self.bidirectional:
            return system
        backward = self.reverse(system) if self.bidirectional else None
        return FilterSystem(forward=system, backward=backward, window=self.window)
