"""LRU (linear recurrent unit): one time-invariant system with a diagonal, complex Λ that all channels drive and read.

    h_i = Λ h_{i-1} + diag(γ) B u_i,  y_i = Re(C h_i) + D * u_i        λ = exp(-exp(ν) + i exp(θ))

γ starts as √(1 - |λ|²), which gives every state unit variance under white noise, and is learned from there.

Source: Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences" (arXiv 2303.06349).
"""

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
    RecallConstructionMixin,
    TimeInvariantConfig,
    TimeInvariantMixer,
    register_architecture,
)
from ..errors import require
from ..system import DSFSystem
from ..transitions import LOG_ZERO, Rotation

__all__ = [
    "LRUConfig",
    "LRUForCausalLM",
    "LRUForSequenceClassification",
    "LRUForTokenClassification",
    "LRUMixer",
    "LRUModel",
]


@strict
class LRUConfig(TimeInvariantConfig):
    """Configuration of the LRU; see `TimeInvariantConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_lru"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1}

    num_heads: int = 1
    """Always 1: all channels drive all states."""
    state_size: int = 128
    """Number N of complex states of the whole layer; the cache holds 2N numbers."""
    r_min: float | int = 0.9
    """Smallest |λ| at initialisation."""
    r_max: float | int = 0.99
    """Largest |λ| at initialisation."""
    max_phase: float | int = 6.28
    """Largest angle of λ at initialisation, in radians."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_positive("max_phase")
        require(0 <= self.r_min < 1, "r_min", self.r_min, "give a modulus in [0, 1).")
        require(
            self.r_min <= self.r_max <= 1, "r_max", self.r_max, f"give a modulus in [r_min, 1]; r_min is {self.r_min}."
        )


class LRUMixer(TimeInvariantMixer):
    """Projects to d channels that drive N complex states together; Λ, B, C, D do not depend on the input."""

    shares_transfer_matrix: ClassVar[bool] = False
    transition_parameters: ClassVar[tuple[str, ...]] = ("nu_log", "theta_log", "gamma_log", "D")

    def __init__(self, config: LRUConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        states, width = config.state_size, config.inner_size
        self.in_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.nu_log = nn.Parameter(torch.empty(states))
        self.theta_log = nn.Parameter(torch.empty(states))
        self.gamma_log = nn.Parameter(torch.empty(states))
        self.B = nn.Parameter(torch.empty(states, 2, width))
        self.C = nn.Parameter(torch.empty(width, states, 2))
        self.C_reverse = nn.Parameter(torch.empty_like(self.C)) if config.bidirectional else None
        self.D = nn.Parameter(torch.empty(width))

    @classmethod
    def conv_width(cls, config: LRUConfig) -> int:
        """All channels."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Draw λ uniformly from a ring, γ to match; B, C and D normal.

        Intended spectrum at step 0: |λ|² uniform in [r_min², r_max²], so that λ is uniform over the ring's area, with
        angles uniform in [0, max_phase]. With the defaults |λ| is in [0.9, 0.99].
        """
        config, tiny = self.config, torch.finfo(torch.float32).tiny
        init.uniform_(self.nu_log, config.r_min**2, config.r_max**2)
        init.copy_(self.nu_log, (-0.5 * self.nu_log.clamp(min=tiny).log()).clamp(min=tiny).log())
        init.uniform_(self.theta_log, 0.0, config.max_phase)
        init.copy_(self.theta_log, self.theta_log.clamp(min=tiny).log())
        init.copy_(self.gamma_log, 0.5 * (-torch.expm1(-2 * self.nu_log.exp())).clamp(min=tiny).log())
        init.normal_(self.B, std=(2 * config.inner_size) ** -0.5)
        for C in self.read_outs():
            init.normal_(C, std=config.state_size**-0.5)
        init.normal_(self.D)

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return u for the convolution."""
        return self.in_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return constant Λ, B, C, D, with dense B and C over pairs of real states."""
        return DSFSystem(
            u=conv_out[:, :, None],
            input_map=(self.gamma_log.exp()[:, None, None] * self.B).flatten(0, 1),
            output_map=_output_map(self.C),
            transition=Rotation(-self.nu_log.exp()[None], self.theta_log.exp()[None]),
            D=self.D[None],
        )

    def reverse(self, system: DSFSystem) -> DSFSystem:
        """Return the system of the pass from the end: its own C, no D."""
        return replace(system, output_map=_output_map(self.C_reverse), D=None)

    def write_filters(self, sums: Tensor) -> None:
        """Set Λ, B, C and D by hand: λ = 1 and one state for each channel in the mask `sums` (d,); the others pass.

        Raises:
            ValueError: there are not as many such channels as states.
        """
        chosen = sums.nonzero().flatten()
        require(len(chosen) == self.state_size, "sums", int(sums.sum()), f"choose {self.state_size}, one a state.")
        states = torch.arange(self.state_size)
        with torch.no_grad():
            for parameter in (self.nu_log, self.theta_log):
                parameter.fill_(LOG_ZERO)
            for parameter in (self.gamma_log, self.B, *self.read_outs()):
                parameter.zero_()
            self.B[states, 0, chosen] = 1.0
            for C in self.read_outs():
                C[chosen, states, 0] = 1.0
            self.D.copy_(~sums)
            self.in_proj.weight.copy_(torch.eye(len(sums)))


def _output_map(C: Tensor) -> Tensor:
    """Return Re(C ·) as a map of pairs of real states: (d, N, 2) -> (d, 2N)."""
    c_re, c_im = C.unbind(-1)
    return torch.stack([c_re, -c_im], dim=-1).flatten(1)


class LRUModel(DSFModel):
    """LRU without a head."""

    config: LRUConfig


class LRUForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """LRU language model."""

    config: LRUConfig


class LRUForSequenceClassification(RecallConstructionMixin, DSFForSequenceClassification):
    """LRU sequence classifier."""

    config: LRUConfig


class LRUForTokenClassification(DSFForTokenClassification):
    """LRU token classifier."""

    config: LRUConfig


register_architecture(
    Architecture(
        config_class=LRUConfig,
        mixer_class=LRUMixer,
        model_class=LRUModel,
        causal_lm_class=LRUForCausalLM,
        sequence_classification_class=LRUForSequenceClassification,
        token_classification_class=LRUForTokenClassification,
        transition="constant: diag(exp(-exp(ν) + i exp(θ)))",
        input_matrix="constant and dense: diag(exp(γ)) B, complex",
        output_matrix="constant and dense: Re(C ·)",
        feed_through="diag(D), learned",
        state_size="2·n",
    )
)
