"""Normalized attention: linear attention whose normaliser depends on the current token alone.

    y_i = Σ_{j<=i} φ(q_i)^T ψ(k_j) v_j / η_i        η_i = η(x_i) > 0        x_i = w_η^T u_i + b_η + offset, one per head
    Λ_i = (η_{i-1} / η_i) I        B_i = (1 / η_i) I ⊗ ψ(k_i)        C_i = I ⊗ φ(q_i)^T        D = 0

It runs in the gauge Λ = 1, C_i = (1 / η_i) I ⊗ φ(q_i)^T: the same Φ, and no ratio of normalisers is ever formed. φ is
the identity or ELU + 1, and ψ = φ, or φ / √m. Weights are signed (for φ the identity) and do not sum to one.

| normalizer | η(x) |
|---|---|
| exp, softplus, sigmoid (the DSF paper) | e^x, log(1 + e^x), σ(x) |
| exp_exp, exp_softplus, exp_sigmoid, exp_elu (the follow-up) | exp(e^x), 1 + e^x, exp(σ(x)), exp(ELU(x)) |

The follow-up writes η = exp(f(x)) and names f alone: its "exp" is exp_exp here, and so on.

Sources: Sieber et al. 2024 (arXiv 2405.15731); Rickenbach et al. 2025 (arXiv 2510.09379).
"""

from collections.abc import Callable
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
from ..errors import require
from ..system import DSFSystem
from ..transitions import Identity

__all__ = [
    "NormalizedAttentionConfig",
    "NormalizedAttentionForCausalLM",
    "NormalizedAttentionForSequenceClassification",
    "NormalizedAttentionForTokenClassification",
    "NormalizedAttentionMixer",
    "NormalizedAttentionModel",
]


@strict
class NormalizedAttentionConfig(DSFConfig):
    """Configuration of normalized attention; see `DSFConfig` for the shared fields.

    state_size is the width m of queries and keys per head. The convolution never sees the normaliser's pre-activation.
    """

    model_type: ClassVar[str] = "dsf_normalized_attention"

    normalizer: Literal["exp", "softplus", "sigmoid", "exp_exp", "exp_softplus", "exp_sigmoid", "exp_elu"] = "exp"
    """η as a function of its pre-activation x: e^x, log(1 + e^x), σ(x); exp(e^x), 1 + e^x, exp(σ(x)), exp(ELU(x))."""
    feature_map: Literal["identity", "elu+1"] = "identity"
    """φ, applied to queries and keys."""
    scale_keys: bool = False
    """Whether the features of keys are divided by √m."""
    offset: Literal["none", "exp", "uniform"] = "none"
    """Learned offset of each head's pre-activation, and its start: over [4, 9] ("exp") or [8, 14] ("uniform")."""
    conv_channels: Literal["qkv", "qk"] = "qkv"
    """What the short convolution sees: queries, keys and values, or queries and keys alone."""

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(
            self.conv_channels == "qkv" or self.conv_kernel > 0,
            "conv_channels",
            self.conv_channels,
            "there is no convolution (conv_kernel=0): set conv_kernel, or leave conv_channels out.",
        )


class NormalizedAttentionMixer(DSFMixer):
    """Maps u to queries, keys, values and the normaliser's pre-activation."""

    conv_activation: ClassVar[str | None] = "silu"

    def __init__(self, config: NormalizedAttentionConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.key_scale = self.state_size**-0.5 if config.scale_keys else 1.0
        self.features = FEATURE_MAPS[config.feature_map]
        self.log_normalizer = LOG_NORMALIZERS[config.normalizer]
        width = 2 * config.num_heads * config.state_size
        self.qk_width = width
        self.convolve_values = config.conv_channels == "qkv"
        self.qkv_proj = nn.Linear(config.hidden_size, width + config.inner_size, bias=config.use_bias)
        # b_η belongs to the equation of η, whether or not the other projections have biases.
        self.eta_proj = nn.Linear(config.hidden_size, config.num_heads)
        self.offset = nn.Parameter(torch.empty(config.num_heads)) if config.offset != "none" else None

    @property
    def transition_parameters(self) -> tuple[str, ...]:
        """The offset, where there is one."""
        return () if self.offset is None else ("offset",)

    @classmethod
    def conv_width(cls, config: NormalizedAttentionConfig) -> int:
        """Channels of q, k and, unless it is left out, v."""
        width = 2 * config.num_heads * config.state_size
        return width + config.inner_size if config.conv_channels == "qkv" else width

    def init_parameters(self) -> None:
        """Set the offsets: 4 to 9 ("exp"), or log(e^a - 1), a from 0.02 to 0.1, stretched over 8 to 14 ("uniform").

        Intended spectrum at step 0: w_η^T u_i is near 0, so that η_i hardly changes and λ_i = η_{i-1} / η_i is near 1;
        offsets make η_i large, and the outputs small, but leave λ_i near 1 (exp_exp apart: it spreads with η_i).
        """
        if self.offset is not None:
            init.copy_(self.offset, initial_offsets(self.config.offset, self.num_heads))

    def project(self, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Return what the convolution sees, and log η (b, t, h) with the values that it does not see."""
        qkv, x = self.qkv_proj(hidden), self.eta_proj(hidden)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        log_eta = self.log_normalizer(x if self.offset is None else x + self.offset)
        if self.convolve_values:
            return qkv, (log_eta, None)
        qk, v = qkv.split([self.qk_width, self.inner_size], dim=-1)
        return qk, (log_eta, v)

    def system(self, conv_out: Tensor, rest: tuple[Tensor, Tensor | None]) -> DSFSystem:
        """Return Λ = 1, B_i = I ⊗ ψ(k_i), C_i = (1 / η_i) I ⊗ φ(q_i)^T."""
        log_eta, v = rest
        if v is None:
            conv_out, v = conv_out.split([self.qk_width, self.inner_size], dim=-1)
        q, k = (x.unflatten(-1, (self.num_heads, self.state_size)) for x in conv_out.chunk(2, dim=-1))
        return DSFSystem(
            u=v.unflatten(-1, (self.num_heads, self.head_dim)),
            B=self.features(k) * self.key_scale,
            C=self.features(q),
            transition=Identity(),
            log_normalizer=log_eta,
        )


def initial_offsets(kind: str, num_heads: int) -> Tensor:
    """Return one offset a head, (h,): 4 to 9 ("exp"), or 8 to 14 ("uniform"; 11 for a single head)."""
    if kind == "exp":
        return torch.linspace(4.0, 9.0, num_heads)
    if num_heads == 1:
        return torch.tensor([11.0])
    x = torch.linspace(0.02, 0.1, num_heads, dtype=torch.float64).expm1().log()
    return (8.0 + 6.0 * (x - x[0]) / (x[-1] - x[0])).float()


# ---- φ and log η ----------------------------------------------------------------------------------------------------


def _identity(x: Tensor) -> Tensor:
    return x


def _elu_plus_one(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x); torch's own default rounds it to x from 20 on, which float64 would see."""
    return F.softplus(x, threshold=50)


def _log_softplus(x: Tensor) -> Tensor:
    """Return log log(1 + e^x), which is x to the last digit where the logarithm within would underflow."""
    within = x.clamp(min=-40.0)
    return _softplus(within).log() + (x - within)


def _bounded_exp(x: Tensor) -> Tensor:
    """Return e^x, held where float32 ends: exp(-e^x) is exactly 0 there, and its gradient 0 instead of ∞ · 0."""
    return x.clamp(max=80.0).exp()


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"identity": _identity, "elu+1": _elu_plus_one}
LOG_NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": _identity,
    "softplus": _log_softplus,
    "sigmoid": F.logsigmoid,
    "exp_exp": _bounded_exp,
    "exp_softplus": _softplus,
    "exp_sigmoid": torch.sigmoid,
    "exp_elu": F.elu,
}
"""log η as a function of the pre-activation x."""


class NormalizedAttentionModel(DSFModel):
    """Normalized attention without a head."""

    config: NormalizedAttentionConfig


class NormalizedAttentionForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """Normalized-attention language model."""

    config: NormalizedAttentionConfig


class NormalizedAttentionForSequenceClassification(DSFForSequenceClassification):
    """Normalized-attention sequence classifier."""

    config: NormalizedAttentionConfig


class NormalizedAttentionForTokenClassification(DSFForTokenClassification):
    """Normalized-attention token classifier."""

    config: NormalizedAttentionConfig


register_architecture(
    Architecture(
        config_class=NormalizedAttentionConfig,
        mixer_class=NormalizedAttentionMixer,
        model_class=NormalizedAttentionModel,
        causal_lm_class=NormalizedAttentionForCausalLM,
        sequence_classification_class=NormalizedAttentionForSequenceClassification,
        token_classification_class=NormalizedAttentionForTokenClassification,
        transition="(η_{i-1} / η_i) I per head, η_i = η(w_η^T u_i + b_η) of the token alone",
        input_matrix="(1 / η_i) I ⊗ ψ(k_i)",
        output_matrix="I ⊗ φ(q_i)^T",
    )
)
