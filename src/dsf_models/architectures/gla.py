"""GLA, gated linear attention: every key feature fades at an input-dependent rate of its own.

    Λ_i = diag(α_i)        B_i = I ⊗ k_i        C_i = I ⊗ q_i^T / √n        D = 0
    α_i = σ(W_2 W_1 u_i + b_α)^{1/τ},  k_i = W_K u_i,  q_i = W_Q u_i

W_2 W_1 has a low rank, and the temperature τ draws α towards 1. With `allow_negative_eigenvalues`, Λ_i = diag(2 α_i -
1). The default is the block of the paper: a norm for each head, then a SiLU gate.

Sources: Yang et al. 2023 (arXiv 2312.06635); for negative eigenvalues of gates, Grazzi et al. 2024 (arXiv 2411.12537).
"""

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
    register_architecture,
)
from ..system import DSFSystem
from ..transitions import KeyDiagonal

__all__ = [
    "GLAConfig",
    "GLAForCausalLM",
    "GLAForSequenceClassification",
    "GLAForTokenClassification",
    "GLAMixer",
    "GLAModel",
]


@strict
class GLAConfig(DSFConfig):
    """Configuration of gated linear attention; see `DSFConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_gla"

    gate: str = "silu"
    """Activation of the output gate."""
    output_norm: Literal["none", "rmsnorm"] = "rmsnorm"
    """Norm of each head in front of the gate."""
    decay_rank: int = 16
    """Rank of the map W_2 W_1 from inputs to decays."""
    decay_temperature: float | int = 16
    """τ: α = σ(·)^{1/τ}, so that a larger one remembers longer."""
    allow_negative_eigenvalues: bool = False
    """Whether λ = 2α - 1 instead of α: negative where σ(·) < 2^{-τ}, so take a small τ with it."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_positive("decay_rank", "decay_temperature")


class GLAMixer(DSFMixer):
    """Maps u to queries, keys and values, and by a low-rank map to the decays α of the n key features."""

    conv_activation: ClassVar[str | None] = "silu"
    norm_before_gate: ClassVar[bool] = True
    transition_parameters: ClassVar[tuple[str, ...]] = ("decay_bias",)

    def __init__(self, config: GLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.decay_temperature = config.decay_temperature
        self.allow_negative_eigenvalues = config.allow_negative_eigenvalues
        key_width = config.num_heads * config.state_size
        self.split_sizes = [key_width, key_width, config.inner_size]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.use_bias)
        self.decay_rank_proj = nn.Linear(config.hidden_size, config.decay_rank, bias=False)
        self.decay_proj = nn.Linear(config.decay_rank, key_width, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(key_width))

    @classmethod
    def conv_width(cls, config: GLAConfig) -> int:
        """Channels of q, k and v."""
        return 2 * config.num_heads * config.state_size + config.inner_size

    @classmethod
    def norm_groups(cls, config: GLAConfig) -> int:
        """One group of the output norm for each head."""
        return config.num_heads

    def init_parameters(self) -> None:
        """Set b_α = 0.

        Intended spectrum at step 0: α is near (1/2)^{1/τ}, 0.958 with τ = 16: memories of some twenty tokens, from
        which features and tokens depart as the low-rank map grows. With negative eigenvalues λ is near 2α - 1, 0.915.
        """
        init.zeros_(self.decay_bias)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return q, k, v side by side for the convolution, and W_2 W_1 u (b, t, h·n), which it does not see."""
        return self.qkv_proj(hidden), self.decay_proj(self.decay_rank_proj(hidden))

    def system(self, conv_out: Tensor, rest: Tensor) -> DSFSystem:
        """Return Λ_i = diag(α_i), B_i = I ⊗ k_i, C_i = I ⊗ q_i^T / √n."""
        q, k, v = conv_out.split_with_sizes(self.split_sizes, dim=-1)
        by_head = (self.num_heads, self.state_size)
        return DSFSystem(
            u=v.unflatten(-1, (self.num_heads, self.head_dim)),
            B=k.unflatten(-1, by_head),
            C=q.unflatten(-1, by_head) * self.state_size**-0.5,
            transition=self._decays((rest + self.decay_bias).unflatten(-1, by_head)),
        )

    def _decays(self, x: Tensor) -> KeyDiagonal:
        """Return λ = α or 2α - 1 with α = σ(x)^{1/τ}, x (b, t, h, n)."""
        log_alpha = F.logsigmoid(x) / self.decay_temperature
        if not self.allow_negative_eigenvalues:
            return KeyDiagonal(log_alpha)
        offset = 2 * torch.expm1(log_alpha)  # λ - 1, exact for λ near 1
        # log |1 + m| = log1p(max(m, -2 - m)); bounded, as the gradient of log |λ| is not where λ passes through 0.
        smallest = torch.finfo(offset.dtype).eps
        log_decay = torch.log1p(torch.maximum(offset, -2 - offset).clamp(min=smallest - 1))
        return KeyDiagonal(log_decay, sign=torch.where(offset < -1, -1.0, 1.0).to(offset.dtype))


class GLAModel(DSFModel):
    """GLA without a head."""

    config: GLAConfig


class GLAForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """GLA language model."""

    config: GLAConfig


class GLAForSequenceClassification(DSFForSequenceClassification):
    """GLA sequence classifier."""

    config: GLAConfig


class GLAForTokenClassification(DSFForTokenClassification):
    """GLA token classifier."""

    config: GLAConfig


register_architecture(
    Architecture(
        config_class=GLAConfig,
        mixer_class=GLAMixer,
        model_class=GLAModel,
        causal_lm_class=GLAForCausalLM,
        sequence_classification_class=GLAForSequenceClassification,
        token_classification_class=GLAForTokenClassification,
        transition="diag(α_i) per head, α_i = σ(W_2 W_1 u_i + b_α)^{1/τ}",
        input_matrix="I ⊗ k_i, k_i = W_K u_i",
        output_matrix="I ⊗ q_i^T / √n, q_i = W_Q u_i",
    )
)
