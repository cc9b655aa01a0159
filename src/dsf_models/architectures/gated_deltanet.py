"""Gated DeltaNet: a decaying memory that erases what a key held before it writes the key's new value.

    Λ_i = α_i (I - β_i k_i k_i^T)        B_i = β_i I ⊗ k_i        C_i = I ⊗ q_i^T / √n        D = 0
    α_i = exp(-Δ_i a),  Δ_i = softplus(W_α u_i + b_Δ),  a = exp(A_log)        β_i = σ(W_β u_i)

k_i and q_i are W_K u_i and W_Q u_i after a short convolution, SiLU and division by their norms. With
`allow_negative_eigenvalues`, β_i = 2 σ(W_β u_i): Λ_i may flip the sign of what lies along k_i.

The default is the block of the paper: convolution over q, k and v, a norm for each head, then a SiLU gate.

Sources: Yang et al. 2024 (arXiv 2412.06464); for negative eigenvalues, Grazzi et al. 2024 (arXiv 2411.12537).
"""

import math
import sys
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import (
    Architecture,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFMixer,
    DSFModel,
    bounds,
    init_time_step_bias,
    register_architecture,
)
from ..system import DSFSystem
from ..transitions import DeltaRule

__all__ = [
    "GatedDeltaNetConfig",
    "GatedDeltaNetForCausalLM",
    "GatedDeltaNetForSequenceClassification",
    "GatedDeltaNetForTokenClassification",
    "GatedDeltaNetMixer",
    "GatedDeltaNetModel",
]


@strict
class GatedDeltaNetConfig(DSFConfig):
    """Configuration of Gated DeltaNet; see `DSFConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_gated_deltanet"

    conv_kernel: int = 4
    """Taps of the short causal convolution over q, k and v; 0 for none."""
    conv_bias: bool = False
    """Whether the short convolution has a bias."""
    gate: str = "silu"
    """Activation of the output gate."""
    output_norm: Literal["none", "rmsnorm"] = "rmsnorm"
    """Norm of each head in front of the gate."""
    allow_negative_eigenvalues: bool = False
    """Whether β reaches 2 instead of 1, so that Λ has an eigenvalue in (-α, α) instead of (0, α)."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""
    a_init_range: float | int | list[float | int] | tuple[float | int, ...] = (1.0, 16.0)
    """Range from which a = exp(A_log) is drawn at initialisation, or one value."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_order("time_step_min", "time_step_max")
        self._require_range("a_init_range", "positive and finite", math.ulp(0.0), sys.float_info.max)


class GatedDeltaNetMixer(DSFMixer):
    """Maps u to queries, keys and values by a short convolution, and to the rates α of forgetting and β of erasing."""

    conv_activation: ClassVar[str | None] = "silu"
    norm_before_gate: ClassVar[bool] = True
    transition_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    def __init__(self, config: GatedDeltaNetConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.largest_beta = 2.0 if config.allow_negative_eigenvalues else 1.0
        key_width = config.num_heads * config.state_size
        self.split_sizes = [key_width, key_width, config.inner_size]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.use_bias)
        self.rates_proj = nn.Linear(config.hidden_size, 2 * config.num_heads, bias=config.use_bias)
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))

    @classmethod
    def conv_width(cls, config: GatedDeltaNetConfig) -> int:
        """Channels of q, k and v."""
        return 2 * config.num_heads * config.state_size + config.inner_size

    @classmethod
    def norm_groups(cls, config: GatedDeltaNetConfig) -> int:
        """One group of the output norm for each head."""
        return config.num_heads

    def init_parameters(self) -> None:
        """Draw a from a_init_range and Δ log-uniformly from [time_step_min, time_step_max].

        Intended spectrum at step 0: α = exp(-Δ a) with Δ near softplus(dt_bias), so that with the defaults α lies in
        [exp(-1.6), exp(-0.001)] = [0.2, 0.999]; along the key β is near 1/2, and the eigenvalue near α / 2. With
        negative eigenvalues β is near 1: what lay along the key is gone.
        """
        config = self.config
        init.uniform_(self.A_log, *bounds(config.a_init_range))
        init.copy_(self.A_log, self.A_log.log())
        init_time_step_bias(self.dt_bias, config.time_step_min, config.time_step_max)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return q, k, v side by side for the convolution, and W_α u and W_β u (b, t, 2·h), which it does not see."""
        return self.qkv_proj(hidden), self.rates_proj(hidden)

    def system(self, conv_out: Tensor, rest: Tensor) -> DSFSystem:
        """Return Λ_i = α_i (I - β_i k_i k_i^T), B_i = β_i I ⊗ k_i, C_i = I ⊗ q_i^T / √n."""
        q, k, v = conv_out.split_with_sizes(self.split_sizes, dim=-1)
        q, k = (_unit_norm(x.unflatten(-1, (self.num_heads, self.state_size))) for x in (q, k))
        rate, share = rest.split_with_sizes([self.num_heads, self.num_heads], dim=-1)
        beta = self.largest_beta * share.sigmoid()
        log_decay = F.softplus(rate + self.dt_bias) * -self.A_log.exp()
        return DSFSystem(
            u=v.unflatten(-1, (self.num_heads, self.head_dim)),
            B=k,
            C=q * self.state_size**-0.5,
            transition=DeltaRule(log_decay, key=k, beta=beta),
            input_gain=beta,
        )


def _unit_norm(x: Tensor) -> Tensor:
    """Return x / √(‖x‖² + 1e-6) over the last dimension: of norm 1 but near 0, where its gradient stays finite."""
    return (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


class GatedDeltaNetModel(DSFModel):
    """Gated DeltaNet without a head."""

    config: GatedDeltaNetConfig


class GatedDeltaNetForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """Gated-DeltaNet language model."""

    config: GatedDeltaNetConfig


class GatedDeltaNetForSequenceClassification(DSFForSequenceClassification):
    """Gated-DeltaNet sequence classifier."""

    config: GatedDeltaNetConfig


class GatedDeltaNetForTokenClassification(DSFForTokenClassification):
    """Gated-DeltaNet token classifier."""

    config: GatedDeltaNetConfig


register_architecture(
    Architecture(
        config_class=GatedDeltaNetConfig,
        mixer_class=GatedDeltaNetMixer,
        model_class=GatedDeltaNetModel,
        causal_lm_class=GatedDeltaNetForCausalLM,
        sequence_classification_class=GatedDeltaNetForSequenceClassification,
        token_classification_class=GatedDeltaNetForTokenClassification,
        transition="α_i (I - β_i k_i k_i^T) per head, α_i = exp(-a softplus(W_α u_i + b_Δ)), β_i = σ(W_β u_i)",
        input_matrix="β_i I ⊗ k_i, k_i = W_K u_i of norm 1",
        output_matrix="I ⊗ q_i^T / √n, q_i = W_Q u_i of norm 1",
    )
)
