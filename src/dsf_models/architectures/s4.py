"""S4: one constant state-space model per channel, its Λ diagonal plus low rank, its start the HiPPO-LegS matrix.

    Λ = (I - Δ/2 A)^{-1} (I + Δ/2 A)        B = (I - Δ/2 A)^{-1} Δ b        C = c^T        D = diag(D)
    A = diag(a) - p p^H,  Re a <= -10^{-4}

a, p, b, c, Δ belong to each channel and depend on nothing, so that S4 selects nothing. The n real states of a channel
are n/2 complex ones, whose conjugates are left out: y = 2 Re(c^T x) + D u. The released code learns (I - Λ^L)^H c for
one length L; here c itself is learned, which no length enters.

Source: Gu et al. 2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396).
"""

import math
from dataclasses import replace
from typing import ClassVar

import torch
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
from ..transitions import bilinear_dplr, hippo_legs_modes

__all__ = [
    "S4Config",
    "S4ForCausalLM",
    "S4ForSequenceClassification",
    "S4ForTokenClassification",
    "S4Mixer",
    "S4Model",
]

SLOWEST = -1e-4
"""Upper bound of Re a, to which it is clipped as in the released code: no state grows."""


@strict
class S4Config(TimeInvariantConfig):
    """Configuration of S4; see `TimeInvariantConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_s4"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1}

    num_heads: int = 1
    """Always 1: every channel has its own system, and nothing is shared by heads."""
    state_size: int = 64
    """States per channel n, real ones: an even number, two for each complex state."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_pairs()
        self._require_order("time_step_min", "time_step_max")


class S4Mixer(TimeInvariantMixer):
    """Maps u to d channels by one projection and runs a constant DPLR system on each."""

    transition_parameters: ClassVar[tuple[str, ...]] = ("A_re", "A_im", "P", "B", "D", "log_dt")

    def __init__(self, config: S4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        channels, modes = config.inner_size, config.state_size // 2
        self.in_proj = nn.Linear(config.hidden_size, channels, bias=config.use_bias)
        self.A_re = nn.Parameter(torch.empty(channels, modes))
        self.A_im = nn.Parameter(torch.empty(channels, modes))
        self.P = nn.Parameter(torch.empty(channels, modes, 2))
        self.B = nn.Parameter(torch.empty(channels, modes, 2))
        self.C = nn.Parameter(torch.empty(channels, modes, 2))
        self.C_reverse = nn.Parameter(torch.empty_like(self.C)) if config.bidirectional else None
        self.D = nn.Parameter(torch.empty(channels))
        self.log_dt = nn.Parameter(torch.empty(channels))

    @classmethod
    def conv_width(cls, config: S4Config) -> int:
        """Channels of the inner input."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Set A and b to HiPPO-LegS; draw c from a complex normal and Δ log-uniformly; D = 1.

        Intended spectrum at step 0: A has the eigenvalues -1 … -n, so that λ = (1 - Δk/2) / (1 + Δk/2) for k = 1 … n:
        with the defaults 0.905 to 0.999 for k = 1, and -0.52 to 0.938 for k = 64. More than 8 states are too
        many to compute λ from float32 parameters: see `DPLR.eigenvalues`.
        """
        config = self.config
        frequencies, P = hippo_legs_modes(config.state_size)
        pairs = torch.stack([P, torch.zeros_like(P)], dim=-1)
        init.constant_(self.A_re, -0.5)
        init.copy_(self.A_im, frequencies.expand_as(self.A_im))
        init.copy_(self.P, pairs.expand_as(self.P))
        init.copy_(self.B, (math.sqrt(2) * pairs).expand_as(self.B))
        for C in self.read_outs():
            init.normal_(C, std=math.sqrt(0.5))
        init.ones_(self.D)
        init_log_uniform(self.log_dt, config.time_step_min, config.time_step_max)

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return the inner input for the convolution."""
        return self.in_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return the discretised constant system of each channel, its Λ in float64."""
        poles = torch.stack([self.A_re.clamp(max=SLOWEST), self.A_im], dim=-1)
        transition, B_hn = bilinear_dplr(poles, self.P, self.B, self.log_dt.exp())
        return DSFSystem(
            u=conv_out[..., None],
            B=B_hn[None, None].to(conv_out.dtype),
            C=_output_factors(self.C).to(conv_out.dtype),
            transition=transition,
            D=self.D,
        )

    def reverse(self, system: DSFSystem) -> DSFSystem:
        """Return the system of the pass from the end: its own C, no D."""
        return replace(system, C=_output_factors(self.C_reverse).to(system.u.dtype), D=None)


def _output_factors(C: Tensor) -> Tensor:
    """Return 2 Re(c ·) over pairs of real states: (d, n / 2, 2) -> (1, 1, d, n)."""
    return (C * C.new_tensor([2.0, -2.0])).flatten(1)[None, None]


class S4Model(DSFModel):
    """S4 without a head."""

    config: S4Config


class S4ForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """S4 language model."""

    config: S4Config


class S4ForSequenceClassification(DSFForSequenceClassification):
    """S4 sequence classifier."""

    config: S4Config


class S4ForTokenClassification(DSFForTokenClassification):
    """S4 token classifier."""

    config: S4Config


register_architecture(
    Architecture(
        config_class=S4Config,
        mixer_class=S4Mixer,
        model_class=S4Model,
        causal_lm_class=S4ForCausalLM,
        sequence_classification_class=S4ForSequenceClassification,
        token_classification_class=S4ForTokenClassification,
        transition="(I - Δ/2 A)^{-1} (I + Δ/2 A) per channel, A = diag(a) - p p^H, constant",
        input_matrix="(I - Δ/2 A)^{-1} Δ b per channel, constant",
        output_matrix="c^T per channel, constant",
        feed_through="diag(D), learned",
    )
)
