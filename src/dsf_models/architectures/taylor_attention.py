"""Taylor attention: softmax attention with the exponential cut off at order P, so that its state is finite.

    y_i = Σ_{j<=i} T(s_ij) v_j / η_i        s_ij = q_i^T k_j / √m        T(s) = Σ_{p<=P} s^p / p!
    η_i = Σ_{l<=i} T(s_il)
    Λ_i = (η_{i-1} / η_i) I        B_i = (1 / η_i) I ⊗ φ(k_i)        C_i = I ⊗ φ(q_i)^T        D = 0

φ(x) holds the monomials of m^(-1/4) x up to degree P, so that φ(q)^T φ(k) = T(s). Even orders give positive weights.
It runs in the gauge Λ = 1, the normaliser in the read-out.

Source: Sieber et al. 2024 (arXiv 2405.15731): softmax is separable attention with infinitely many such features.
"""

import math
import warnings
from typing import Any, ClassVar

import torch
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
from ..errors import require
from ..system import DSFSystem, taylor_features
from ..transitions import Identity

__all__ = [
    "TaylorAttentionConfig",
    "TaylorAttentionForCausalLM",
    "TaylorAttentionForSequenceClassification",
    "TaylorAttentionForTokenClassification",
    "TaylorAttentionMixer",
    "TaylorAttentionModel",
]

MAX_ORDER = 64
"""Highest order; long before it the truncated exponential is the exponential to the last digit."""
MAX_FEATURES = 2**16
"""Most states per channel: 16 MiB of float32 a head, layer and sequence at head width 64."""


@strict
class TaylorAttentionConfig(DSFConfig):
    """Configuration of Taylor attention; see `DSFConfig` for the shared fields.

    state_size is the width m of queries and keys per head; the states per channel n (`num_features`) follow from it.
    """

    model_type: ClassVar[str] = "dsf_taylor_attention"

    order: int = 2
    """Highest power P of the truncated exponential. Odd orders can give negative weights and normalisers."""
    merge_symmetric: bool = True
    """Whether equal monomials are one feature, n = C(m + P, P), or kept apart, n = Σ_{p<=P} m^p; the weights agree."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.order % 2:
            warnings.warn(
                f"order={self.order} is odd: the truncated exponential is negative for very negative logits, so that "
                "normalisers can be zero or negative; an even order is always positive.",
                stacklevel=2,
            )

    @property
    def num_features(self) -> int:
        """States per channel n."""
        if self.merge_symmetric:
            return math.comb(self.state_size + self.order, self.order)
        return sum(self.state_size**degree for degree in range(self.order + 1))

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(1 <= self.order <= MAX_ORDER, "order", self.order, f"give an order from 1 to {MAX_ORDER}.")
        remedy = "lower state_size or order" + ("." if self.merge_symmetric else ", or set merge_symmetric=True.")
        require(
            self.num_features <= MAX_FEATURES,
            "state_size",
            self.state_size,
            f"queries and keys of this width have {self.num_features} features of order {self.order} or less, "
            f"of at most {MAX_FEATURES}; {remedy}",
        )


class TaylorAttentionMixer(DSFMixer):
    """Maps u to queries, keys and values; Taylor features of the exponential, normalised read-out."""

    def __init__(self, config: TaylorAttentionConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.order = config.order
        self.features = symmetric_taylor_features if config.merge_symmetric else taylor_features
        self.qkv_proj = nn.Linear(config.hidden_size, self.conv_width(config), bias=config.use_bias)

    @classmethod
    def conv_width(cls, config: TaylorAttentionConfig) -> int:
        """Channels of q, k and v."""
        return 2 * config.num_heads * config.state_size + config.inner_size

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return q, k, v side by side for the convolution."""
        return self.qkv_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return Λ = 1, B_i = I ⊗ φ(k_i), C_i = I ⊗ φ(q_i)^T with the normalised read-out.

        Intended spectrum at step 0: logits are near 0 and weights near 1, so that η_i grows like i and λ_i = η_{i-1} /
        η_i is near i / (i + 1).
        """
        width = self.num_heads * self.state_size
        q, k, v = conv_out.split([width, width, self.inner_size], dim=-1)
        q, k = (x.unflatten(-1, (self.num_heads, self.state_size)) * self.state_size**-0.25 for x in (q, k))
        return DSFSystem(
            u=v.unflatten(-1, (self.num_heads, self.head_dim)),
            B=self.features(k, self.order),
            C=self.features(q, self.order),
            transition=Identity(),
            normalized=True,
        )


def symmetric_taylor_features(x: Tensor, order: int) -> Tensor:
    """Return x^α / √α! for all multi-indices |α| <= order: (…, m) -> (…, C(m + order, order)).

    The same kernel as `taylor_features` of the same order, Σ_α q^α k^α / α! = Σ_p (q^T k)^p / p!, in fewer features.
    """
    # A monomial of one degree more: each of the last degree, times each variable that is not before its last one.
    width, indices = x.shape[-1], {"dtype": torch.long, "device": x.device}
    last, repetitions = torch.zeros(1, **indices), torch.zeros(1, **indices)
    power = torch.ones_like(x[..., :1])
    features = [power]
    for degree in range(1, order + 1):
        size, children = math.comb(width + degree - 1, degree), width - last
        behind, place = children.cumsum(0), torch.arange(size, **indices)
        parent = torch.searchsorted(behind, place, right=True)
        variable = last[parent] + place - (behind - children)[parent]
        repetitions = torch.where(variable == last[parent], repetitions[parent] + 1, 1)
        power = _pick(power, parent) * _pick(x, variable) * repetitions.to(x.dtype).rsqrt()
        features.append(power)
        last = variable
    return torch.cat(features, dim=-1)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Return the entries `index` of the last dimension; unlike indexing's, gather's gradient is local to a row."""
    return x.gather(-1, index.expand(*x.shape[:-1], -1))


class TaylorAttentionModel(DSFModel):
    """Taylor attention without a head."""

    config: TaylorAttentionConfig


class TaylorAttentionForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """Taylor-attention language model."""

    config: TaylorAttentionConfig


class TaylorAttentionForSequenceClassification(DSFForSequenceClassification):
    """Taylor-attention sequence classifier."""

    config: TaylorAttentionConfig


class TaylorAttentionForTokenClassification(DSFForTokenClassification):
    """Taylor-attention token classifier."""

    config: TaylorAttentionConfig


register_architecture(
    Architecture(
        config_class=TaylorAttentionConfig,
        mixer_class=TaylorAttentionMixer,
        model_class=TaylorAttentionModel,
        causal_lm_class=TaylorAttentionForCausalLM,
        sequence_classification_class=TaylorAttentionForSequenceClassification,
        token_classification_class=TaylorAttentionForTokenClassification,
        transition="(η_{i-1} / η_i) I per head, η_i = Σ_{l<=i} T(q_i^T k_l / √m), T(s) = Σ_{p<=P} s^p / p!",
        input_matrix="(1 / η_i) I ⊗ φ(k_i), φ the monomials of m^(-1/4) x up to degree P",
        output_matrix="I ⊗ φ(q_i)^T",
        state_size="C(m + P, P)·d",
    )
)
