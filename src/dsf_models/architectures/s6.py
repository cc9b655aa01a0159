"""S6 (Mamba): one input-dependent step size per channel, and one learned rate for each of its states.

    Λ_i = exp(-(Δ_i ⊗ I) A)        B_i = Δ_i ⊗ b_i        C_i = I ⊗ c_i^T        D = diag(D)
    Δ_i = diag(softplus(W_Δ W_u x_i + b_Δ)),  b_i = W_B x_i,  c_i = W_C x_i,  A = exp(A_log)

The default is the Mamba block (inner width twice the model's, convolution in front, SiLU gate behind).
`S6Config.minimal` is the bare core of the DSF paper.

Sources: Gu & Dao 2023 (arXiv 2312.00752); Sieber et al. 2024 (arXiv 2405.15731).
"""

import math
from typing import Any, ClassVar

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
    activation_function,
    init_time_step_bias,
    register_architecture,
)
from ..errors import require
from ..system import DSFSystem
from ..transitions import LOG2_E, FactoredDecay

__all__ = [
    "S6Config",
    "S6ForCausalLM",
    "S6ForSequenceClassification",
    "S6ForTokenClassification",
    "S6Mixer",
    "S6Model",
]


@strict
class S6Config(DSFConfig):
    """Configuration of S6; see `DSFConfig` for the shared fields. It has no heads: every channel is its own system."""

    model_type: ClassVar[str] = "dsf_s6"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1}

    num_heads: int = 1
    """Always 1: the channels share B and C, and nothing else."""
    expand: int | float = 2
    """Inner width over hidden_size."""
    state_size: int = 16
    """States per channel n."""
    conv_kernel: int = 4
    """Taps of the short causal convolution in front of the system; 0 for none."""
    conv_activation: str = "silu"
    """Activation after the short convolution."""
    gate: str = "silu"
    """Activation of the output gate."""
    time_step_rank: int | None = None
    """Rank of the map from the input to Δ. Default: hidden_size / 16, rounded up."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""
    time_step_floor: float | int = 1e-4
    """Smaller values of Δ are raised to this at initialisation."""

    @classmethod
    def minimal(cls, **fields: Any) -> "S6Config":
        """Return the bare core, as the DSF paper has it: no convolution, no gate, inner width that of the model."""
        return cls(**{"expand": 1, "conv_kernel": 0, "gate": "none", **fields})

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields."""
        super().fill_defaults()
        if self.time_step_rank is None:
            self.time_step_rank = math.ceil(self.hidden_size / 16)

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_activation("conv_activation")
        if not self.conv_kernel:
            self._require_default("there is no convolution (conv_kernel=0)", "conv_activation")
        self._require_positive("time_step_rank", "time_step_min", "time_step_max", "time_step_floor")
        for name in ("time_step_min", "time_step_floor"):
            value = getattr(self, name)
            require(value <= self.time_step_max, name, value, f"must be at most time_step_max={self.time_step_max}.")


class S6Mixer(DSFMixer):
    """Maps u to x, through the convolution, and x to Δ (by a low-rank map), b and c; Λ = exp(-Δ A)."""

    shares_transfer_matrix: ClassVar[bool] = False
    transition_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias", "D")
    released_zeros: ClassVar[tuple[str, ...]] = ("dt_bias",)

    def __init__(self, config: S6Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if self.conv is not None:
            self.conv.activation = activation_function(config.conv_activation)
        rank, n, d = config.time_step_rank, config.state_size, config.inner_size
        self.split_sizes = [rank, n, n]
        self.in_proj = nn.Linear(config.hidden_size, d, bias=config.use_bias)
        self.x_proj = nn.Linear(d, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, d, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d))
        self.A_log = nn.Parameter(torch.empty(n, d))
        self.D = nn.Parameter(torch.empty(d))

    @classmethod
    def conv_width(cls, config: S6Config) -> int:
        """Channels of x."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Set A = k for the k-th state (S4D-Real), Δ log-uniform in [time_step_min, time_step_max], and D = 1.

        Intended spectrum at step 0: λ = exp(-Δ k) with Δ near softplus(b_Δ), so that with the defaults and n = 16
        states λ lies in [exp(-1.6), exp(-0.001)] = [0.2, 0.999]: memories from one token to a thousand.
        """
        config = self.config
        rates = torch.arange(1, config.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, rates.log()[:, None].expand_as(self.A_log))
        init.ones_(self.D)
        bound = config.time_step_rank**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        init_time_step_bias(self.dt_bias, config.time_step_min, config.time_step_max, config.time_step_floor)

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return x (b, t, d) for the convolution."""
        return self.in_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return λ_i = exp(-Δ_i A), B_i = Δ_i ⊗ b_i, C_i = I ⊗ c_i^T, D."""
        # Under autocast a projection is narrower than what it was given.
        dt, B, C = self.x_proj(conv_out).to(conv_out.dtype).split_with_sizes(self.split_sizes, dim=-1)
        softplus = _Softplus.apply if torch.is_grad_enabled() else F.softplus
        delta = softplus(self.dt_proj(dt) + self.dt_bias).unsqueeze(2)
        return DSFSystem(
            u=conv_out.unsqueeze(2),
            B=B.unsqueeze(2),
            C=C.unsqueeze(2),
            transition=FactoredDecay(delta, (self.A_log * LOG2_E).exp2()[None]),
            D=self.D[None],
            input_gain=delta,
        )


class _Softplus(torch.autograd.Function):
    """softplus(x) with its derivative σ(x) = 1 - exp(-softplus(x)) from the result, so that x need not be kept."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = F.softplus(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.expm1(-y).mul_(grad).neg_()


class S6Model(DSFModel):
    """S6 without a head."""

    config: S6Config


class S6ForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """S6 language model."""

    config: S6Config


class S6ForSequenceClassification(DSFForSequenceClassification):
    """S6 sequence classifier."""

    config: S6Config


class S6ForTokenClassification(DSFForTokenClassification):
    """S6 token classifier."""

    config: S6Config


register_architecture(
    Architecture(
        config_class=S6Config,
        mixer_class=S6Mixer,
        model_class=S6Model,
        causal_lm_class=S6ForCausalLM,
        sequence_classification_class=S6ForSequenceClassification,
        token_classification_class=S6ForTokenClassification,
        transition="exp(-Δ_{i,c} a_{c,k}) for state k of channel c, Δ_i = softplus(W_Δ W_u x_i + b_Δ)",
        input_matrix="Δ_i ⊗ b_i, b_i = W_B x_i",
        output_matrix="I ⊗ c_i^T, c_i = W_C x_i",
        feed_through="diag(D), learned",
    )
)
