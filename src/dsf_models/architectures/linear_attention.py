"""Linear attention: queries and keys through a positive feature map, weights normalised by their running sum.

    y_i = Σ_{j<=i} φ(q_i)^T φ(k_j) v_j / η_i        η_i = Σ_{l<=i} φ(q_i)^T φ(k_l)        φ = ELU + 1
    Λ_i = (η_{i-1} / η_i) I        B_i = (1 / η_i) I ⊗ φ(k_i)        C_i = I ⊗ φ(q_i)^T        D = 0

It runs in the gauge Λ = 1, the normaliser in the read-out: the same Φ, and no ratio of running sums is ever formed.

Sources: Katharopoulos et al. 2020 (arXiv 2006.16236); Sieber et al. 2024 (arXiv 2405.15731).
"""

from typing import ClassVar

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

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
from ..transitions import Identity

__all__ = [
    "LinearAttentionConfig",
    "LinearAttentionForCausalLM",
    "LinearAttentionForSequenceClassification",
    "LinearAttentionForTokenClassification",
    "LinearAttentionMixer",
    "LinearAttentionModel",
]


@strict
class LinearAttentionConfig(DSFConfig):
    """Configuration of linear attention; see `DSFConfig` for the fields."""

    model_type: ClassVar[str] = "dsf_linear_attention"


class LinearAttentionMixer(DSFMixer):
    """Maps u to queries, keys and values; features ELU + 1, normalised read-out."""

    def __init__(self, config: LinearAttentionConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.qkv_proj = nn.Linear(config.hidden_size, self.conv_width(config), bias=config.use_bias)

    @classmethod
    def conv_width(cls, config: LinearAttentionConfig) -> int:
        """Channels of q, k and v."""
        return 2 * config.num_heads * config.state_size + config.inner_size

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return q, k, v side by side for the convolution."""
        return self.qkv_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return Λ = 1, B_i = I ⊗ φ(k_i), C_i = I ⊗ φ(q_i)^T with the normalised read-out.

        Intended spectrum at step 0: q and k are near 0, so that η_i grows like i and λ_i = η_{i-1} / η_i is near i /
        (i + 1).
        """
        width = self.num_heads * self.state_size
        q, k, v = conv_out.split([width, width, self.inner_size], dim=-1)
        return DSFSystem(
            u=v.unflatten(-1, (self.num_heads, self.head_dim)),
            B=_features(k).unflatten(-1, (self.num_heads, self.state_size)),
            C=_features(q).unflatten(-1, (self.num_heads, self.state_size)),
            transition=Identity(),
            normalized=True,
        )


def _features(x: Tensor) -> Tensor:
    """Return φ(x) = ELU(x) + 1 > 0."""
    return F.elu(x) + 1


class LinearAttentionModel(DSFModel):
    """Linear attention without a head."""

    config: LinearAttentionConfig


class LinearAttentionForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """Linear-attention language model."""

    config: LinearAttentionConfig


class LinearAttentionForSequenceClassification(DSFForSequenceClassification):
    """Linear-attention sequence classifier."""

    config: LinearAttentionConfig


class LinearAttentionForTokenClassification(DSFForTokenClassification):
    """Linear-attention token classifier."""

    config: LinearAttentionConfig


register_architecture(
    Architecture(
        config_class=LinearAttentionConfig,
        mixer_class=LinearAttentionMixer,
        model_class=LinearAttentionModel,
        causal_lm_class=LinearAttentionForCausalLM,
        sequence_classification_class=LinearAttentionForSequenceClassification,
        token_classification_class=LinearAttentionForTokenClassification,
        transition="(η_{i-1} / η_i) I per head, η_i = Σ_{l<=i} φ(q_i)^T φ(k_l), φ = ELU + 1",
        input_matrix="(1 / η_i) I ⊗ φ(k_i)",
        output_matrix="I ⊗ φ(q_i)^T",
    )
)
