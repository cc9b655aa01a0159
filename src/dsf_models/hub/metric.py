"""A measured number with what says how far it can be trusted, as cards and results files hold it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, beside the two numbers that say what it is worth."""

    name: str
    """What was measured, for example "accuracy"."""

    split: str
    """Split of the data it was measured on."""

    value: float
    """The number itself."""

    is_fraction: bool = True
    """Whether it is a fraction between 0 and 1, which is written in percent."""

    kind: str = "accuracy"
    """The Hub's name for what is measured: "accuracy", "perplexity", "loss", …"""

    chance: float | None = None
    """What uniform guessing reaches, or None where that is not defined for this metric."""

    best_trivial: float | None = None
    """What the best rule without any recall or computation reaches (for text: a 3-gram); None where it is not known."""

    interval: tuple[float, float] | None = None
    """Its 95 % interval, or None where there is none."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """How many of what it was measured on, such as {"answers": 4000, "examples": 1000}."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        interval = None if self.interval is None else [float(end) for end in self.interval]
        return asdict(self) | {"value": float(self.value), "interval": interval}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Metric":
        """What `to_dict` has made, back.

        Raises:
            TypeError: a field is missing or unknown.
        """
        interval = content.get("interval")
        return cls(**{**content, "interval": None if interval is None else (interval[0], interval[1])})

    def shown(self, value: float | None) -> str:
        """A value of this metric as text: in percent for a fraction, and a dash for None."""
        if value is None:
            return "–"
        if self.is_fraction:
            return f"{100 * value:.2f} %"
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
