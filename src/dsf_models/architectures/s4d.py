"""S4D: every channel its own time-invariant system with a diagonal, complex Λ.

    h_i = Λ h_{i-1} + B u_i,  y_i = 2 Re(C h_i) + D u_i        λ_k = exp(Δ a_k)        B = (λ - 1) / a
    a_k = -1/2 + iπk ("lin"), -1/2 + i n/π (n / (2k + 1) - 1) ("inv"), -(k + 1) ("real"; then y_i = C h_i + D u_i)

That is zero-order hold; "bilinear" has λ = (1 + Δa/2) / (1 - Δa/2), B = Δ / (1 - Δa/2). One Δ per channel. The engine
runs it in real pairs: B = (1, 0) per pair, and C holds the rest.

Source: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893).
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import (
    Architecture,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFModel,
    TimeInvariantConfig,
    TimeInvariantMixer,
    init_log_uniform,
    register_architecture,
)
from ..system import DSFSystem
from ..transitions import Discretized, discretize

__all__ = [
    "S4DConfig",
    "S4DForCausalLM",
    "S4DForSequenceClassification",
    "S4DForTokenClassification",
    "S4DMixer",
    "S4DModel",
]


@strict
class S4DConfig(TimeInvariantConfig):
    """Configuration of S4D; see `TimeInvariantConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_s4d"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1}

    num_heads: int = 1
    """Always 1: every channel is a system of its own."""
    a_init: Literal["lin", "inv", "real"] = "lin"
    """Start of the poles a_k; "real" ones stay real. Complex ones come in pairs: state_size / 2 of them per channel."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """From the poles to Λ: zero-order hold, or the bilinear transform."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_order("time_step_min", "time_step_max")
        if self.a_init != "real":
            self._require_pairs('choose an even number, or a_init="real".')


class S4DMixer(TimeInvariantMixer):
    """Projects to d channels and runs each through its own Λ, B, C, D, which do not depend on the input."""

    transition_parameters: ClassVar[tuple[str, ...]] = ("A_re_log", "A_im", "log_dt", "D")

    def __init__(self, config: S4DConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.discretization, self.real = config.discretization, config.a_init == "real"
        poles = config.state_size if self.real else config.state_size // 2
        self.in_proj = nn.Linear(config.hidden_size, config.inner_size, bias=config.use_bias)
        self.A_re_log = nn.Parameter(torch.empty(config.inner_size, poles))
        self.A_im = None if self.real else nn.Parameter(torch.empty(config.inner_size, poles))
        self.log_dt = nn.Parameter(torch.empty(config.inner_size))
        self.C = nn.Parameter(torch.empty(config.inner_size, poles, 1 if self.real else 2))
        self.C_reverse = nn.Parameter(torch.empty_like(self.C)) if config.bidirectional else None
        self.D = nn.Parameter(torch.empty(config.inner_size))
        if self.real:
            self.transition_parameters = tuple(name for name in self.transition_parameters if name != "A_im")

    @classmethod
    def conv_width(cls, config: S4DConfig) -> int:
        """All channels."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Set the poles, draw Δ log-uniformly from [time_step_min, time_step_max] and C with E|C|² = 1; D = 1.

        Intended spectrum at step 0, with the defaults: |λ| = exp(-Δ/2) in [0.951, 0.9995] for "lin" and "inv", angles
        Δπk for "lin"; λ = exp(-Δ(k + 1)) for "real".
        """
        config, k = self.config, torch.arange(self.A_re_log.shape[1])
        if self.real:
            init.copy_(self.A_re_log, (k + 1.0).log().expand_as(self.A_re_log))
        else:
            lin, inv = math.pi * k, config.state_size / math.pi * (config.state_size / (2 * k + 1) - 1)
            init.constant_(self.A_re_log, math.log(0.5))
            init.copy_(self.A_im, (lin if config.a_init == "lin" else inv).expand_as(self.A_im))
        init_log_uniform(self.log_dt, config.time_step_min, config.time_step_max)
        for C in self.read_outs():
            init.normal_(C, std=C.shape[2] ** -0.5)
        init.ones_(self.D)

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return u for the convolution."""
        return self.in_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return constant Λ, B, C, D, one head of width 1 a channel."""
        discretized = self._discretized()
        C = self._output_factors(self.C, discretized)
        ones = torch.ones(1, 1, 1, self.A_re_log.shape[1], 1, dtype=C.dtype, device=C.device)
        return DSFSystem(
            u=conv_out[..., None],
            B=(ones if self.real else F.pad(ones, (0, 1))).flatten(-2),
            C=C[None, None],
            transition=discretized.transition,
            D=self.D,
        )

    def reverse(self, system: DSFSystem) -> DSFSystem:
        """Return the system of the pass from the end: its own C, no D."""
        return replace(system, C=self._output_factors(self.C_reverse, self._discretized())[None, None], D=None)

    def _discretized(self) -> Discretized:
        return discretize(self.discretization, self.log_dt.exp()[:, None], -self.A_re_log.exp(), self.A_im)

    def _output_factors(self, C: Tensor, discretized: Discretized) -> Tensor:
        """Return what reads each channel's states, B multiplied in: (d, n)."""
        if self.real:
            return C[..., 0] * discretized.gain_re
        (c_re, c_im), re, im = C.unbind(-1), discretized.gain_re, discretized.gain_im
        return 2 * torch.stack([c_re * re - c_im * im, -(c_re * im + c_im * re)], dim=-1).flatten(-2)


class S4DModel(DSFModel):
    """S4D without a head."""

    config: S4DConfig


class S4DForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """S4D language model."""

    config: S4DConfig


class S4DForSequenceClassification(DSFForSequenceClassification):
    """S4D sequence classifier."""

    config: S4DConfig


class S4DForTokenClassification(DSFForTokenClassification):
    """S4D token classifier."""

    config: S4DConfig


register_architecture(
    Architecture(
        config_class=S4DConfig,
        mixer_class=S4DMixer,
        model_class=S4DModel,
        causal_lm_class=S4DForCausalLM,
        sequence_classification_class=S4DForSequenceClassification,
        token_classification_class=S4DForTokenClassification,
        transition="constant: exp(Δ a_k) per channel, complex (or real) diagonal; bilinear by choice",
        input_matrix="constant: (λ_k - 1) / a_k per channel",
        output_matrix="constant: 2 Re(c_k ·) per channel",
        feed_through="diag(D), learned",
    )
)
