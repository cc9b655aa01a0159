"""SSD (Mamba-2): one input-dependent scalar decay per head.

    Λ_i = λ_i I,  λ_i = exp(-Δ_i a)        B_i = Δ_i ⊗ b_i        C_i = I ⊗ c_i^T        D = diag(D)
    Δ_i = softplus(W_Δ u_i + b_Δ),  b_i = W_B u_i,  c_i = W_C u_i,  a = exp(A_log)

The default is the Mamba-2 block (convolution over x, B and C; SiLU gate; gated norm). `SSDConfig.minimal` is the
strict form of the DSF paper: one head, one a, nothing around it. Two more forms of Λ:

    time_step_bias="channel"    Δ_{i,c} = softplus(w_Δ^T u_i + b_{Δ,c}): one λ per channel, as in the paper's code
    decay="constant"            λ = exp(-softplus(A)) at every position; Δ_i scales the input alone

Sources: Dao & Gu 2024 (arXiv 2405.21060); Sieber et al. 2024 (arXiv 2405.15731).
"""

import math
import sys
from typing import Any, ClassVar, Literal

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
from ..errors import require
from ..system import DSFSystem
from ..transitions import FactoredDecay, ScalarDecay, Transition

__all__ = [
    "SSDConfig",
    "SSDForCausalLM",
    "SSDForSequenceClassification",
    "SSDForTokenClassification",
    "SSDMixer",
    "SSDModel",
]


@strict
class SSDConfig(DSFConfig):
    """Configuration of SSD; see `DSFConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_ssd"

    expand: int | float = 2
    """Inner width over hidden_size."""
    conv_kernel: int = 4
    """Taps of the short causal convolution over x, B and C; 0 for none."""
    gate: str = "silu"
    """Activation of the output gate."""
    output_norm: Literal["none", "rmsnorm"] = "rmsnorm"
    """Norm behind the gate."""
    n_groups: int = 1
    """Groups of heads that share B and C."""
    decay: Literal["selective", "constant"] = "selective"
    """"selective": λ_i = exp(-Δ_i a). "constant": λ = exp(-softplus(A)), the same at every position."""
    time_step_bias: Literal["head", "channel"] = "head"
    """What b_Δ has an entry for; with "channel", Δ and λ differ between the channels of a head."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""
    time_step_limit: list[float | int] | tuple[float | int, ...] | None = None
    """Bounds that Δ is clamped to; None for none."""
    a_init_range: float | int | list[float | int] | tuple[float | int, ...] | None = None
    """Range from which a (or A, where decay="constant") is drawn at initialisation, or its one value. Default: (1, 16),
    or (-8, -2)."""

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields."""
        super().fill_defaults()
        if self.a_init_range is None:
            self.a_init_range = [1.0, 16.0] if self.decay == "selective" else [-8.0, -2.0]

    @classmethod
    def minimal(cls, **fields: Any) -> "SSDConfig":
        """Return the strict form of the DSF paper: one Δ_i and one a for all states, no convolution, gate or norm.

        With time_step_bias="channel" it is the form of the paper's code, in which a bias tells the channels apart.
        """
        strict_form = {
            "num_heads": 1,
            "expand": 1,
            "conv_kernel": 0,
            "gate": "none",
            "output_norm": "none",
            "a_init_range": None if fields.get("decay") == "constant" else (1.0, 1.0),
        }
        return cls(**{**strict_form, **fields})

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(
            self.n_groups > 0 and self.num_heads % self.n_groups == 0,
            "n_groups",
            self.n_groups,
            f"must divide num_heads={self.num_heads}.",
        )
        self._require_order("time_step_min", "time_step_max")
        self._require_range("time_step_limit", "non-negative", 0.0, math.inf)
        if self.decay == "selective":
            self._require_range("a_init_range", "positive and finite", math.ulp(0.0), sys.float_info.max)
        else:
            self._require_range("a_init_range", "finite", -sys.float_info.max, sys.float_info.max)
        require(
            self.decay == "selective" or self.time_step_bias == "head",
            "time_step_bias",
            self.time_step_bias,
            'with decay="constant" no Δ enters λ, which could then differ by channel: use "head".',
        )


class SSDMixer(DSFMixer):
    """Maps u to x, Δ, B, C by one projection and a short convolution; Λ = exp(-Δ a) per head."""

    conv_activation: ClassVar[str | None] = "silu"
    transition_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias", "D")
    released_zeros: ClassVar[tuple[str, ...]] = ("dt_bias",)

    def __init__(self, config: SSDConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.n_groups = config.n_groups
        self.time_step_limit = config.time_step_limit
        self.split_sizes = [self.conv_width(config), config.num_heads]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.use_bias)
        self.selective, self.per_channel = config.decay == "selective", config.time_step_bias == "channel"
        rate = nn.Parameter(torch.empty(config.num_heads))
        if self.selective:
            self.A_log = rate
        else:
            self.A = rate
            self.transition_parameters = ("A", "dt_bias", "D")
        self.dt_bias = nn.Parameter(torch.empty(config.inner_size if self.per_channel else config.num_heads))
        self.D = nn.Parameter(torch.empty(config.num_heads))

    @classmethod
    def conv_width(cls, config: SSDConfig) -> int:
        """Channels of x, B and C."""
        return config.inner_size + 2 * config.n_groups * config.state_size

    @classmethod
    def norm_groups(cls, config: SSDConfig) -> int:
        """One group of the output norm for each group of heads."""
        return config.n_groups

    def init_parameters(self) -> None:
        """Draw a (or A) from a_init_range and Δ log-uniformly from [time_step_min, time_step_max]; D = 1.

        Intended spectrum at step 0: λ = exp(-Δ a) with Δ near softplus(dt_bias), so that with the defaults λ lies in
        [exp(-1.6), exp(-0.001)] = [0.2, 0.999]: memories from one token to a thousand. Constant decays are
        exp(-softplus(A)) in [0.881, 0.9997]: memories from eight tokens to three thousand.
        """
        config = self.config
        if self.selective:
            init.uniform_(self.A_log, *bounds(config.a_init_range))
            init.copy_(self.A_log, self.A_log.log())
        else:
            init.uniform_(self.A, *bounds(config.a_init_range))
        init_time_step_bias(self.dt_bias, config.time_step_min, config.time_step_max)
        init.ones_(self.D)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, B, C side by side for the convolution, and the raw Δ (b, t, h), which it does not see."""
        conv_in, dt = self.in_proj(hidden).split_with_sizes(self.split_sizes, dim=-1)
        return conv_in, dt

    def system(self, conv_out: Tensor, rest: Tensor) -> DSFSystem:
        """Return λ_i = exp(-Δ_i a), B_i = Δ_i ⊗ b_i, C_i = I ⊗ c_i^T, D."""
        batch, length = conv_out.shape[:2]
        shared = self.n_groups * self.state_size
        x, B, C = conv_out.split_with_sizes([self.inner_size, shared, shared], dim=-1)
        delta = self.time_step(rest)
        return DSFSystem(
            u=x.view(batch, length, self.num_heads, self.head_dim),
            B=B.view(batch, length, self.n_groups, self.state_size),
            C=C.view(batch, length, self.n_groups, self.state_size),
            transition=self.transition(delta),
            D=self.D,
            input_gain=delta,
        )

    def time_step(self, raw: Tensor) -> Tensor:
        """Return Δ from its raw values (b, t, h): (b, t, h), or (b, t, h, p) with a bias per channel."""
        if self.per_channel:
            raw = raw[..., None] + self.dt_bias.view(self.num_heads, self.head_dim)
        else:
            raw = raw + self.dt_bias
        delta = F.softplus(raw)
        return delta if self.time_step_limit is None else delta.clamp(*self.time_step_limit)

    def transition(self, delta: Tensor) -> Transition:
        """Return Λ at these Δ."""
        if not self.selective:
            return ScalarDecay(-F.softplus(self.A)[None, None])
        if self.per_channel:
            return FactoredDecay(delta, self.A_log.exp()[:, None, None])
        return ScalarDecay(delta * -self.A_log.exp())


class SSDModel(DSFModel):
    """SSD without a head."""

    config: SSDConfig


class SSDForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """SSD language model."""

    config: SSDConfig


class SSDForSequenceClassification(DSFForSequenceClassification):
    """SSD sequence classifier."""

    config: SSDConfig


class SSDForTokenClassification(DSFForTokenClassification):
    """SSD token classifier."""

    config: SSDConfig


register_architecture(
    Architecture(
        config_class=SSDConfig,
        mixer_class=SSDMixer,
        model_class=SSDModel,
        causal_lm_class=SSDForCausalLM,
        sequence_classification_class=SSDForSequenceClassification,
        token_classification_class=SSDForTokenClassification,
        transition="exp(-Δ_i a) I per head, Δ_i = softplus(W_Δ u_i + b_Δ)",
        input_matrix="Δ_i ⊗ b_i, b_i = W_B u_i",
        output_matrix="I ⊗ c_i^T, c_i = W_C u_i",
        feed_through="diag(D), learned",
    )
)
