"""RG-LRU: the real-gated linear recurrent unit of Griffin, in Griffin's recurrent block.

    Λ_i = diag(λ_i),  λ_i = exp(-8 softplus(a) * r_i)        B_i = diag(√(1 - λ_i²) * g_i)        C_i = I        D = 0
    r_i = σ(W_r u_i + b_r),  g_i = σ(W_g u_i + b_g),  W_r and W_g block-diagonal, one block per head

At the first token of a document, which has no past, λ is 0 and the factor √(1 - λ²) of B therefore 1. The default is
the block of RecurrentGemma (convolution over x, GELU gate, biases), with its weights; Griffin's residual block adds
channel_mixer="geglu".

Source: De et al. 2024, "Griffin" (arXiv 2402.19427).
"""

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
    TokenLayout,
    register_architecture,
)
from ..system import DSFSystem
from ..transitions import ElementwiseDecay

__all__ = [
    "RGLRUConfig",
    "RGLRUForCausalLM",
    "RGLRUForSequenceClassification",
    "RGLRUForTokenClassification",
    "RGLRUMixer",
    "RGLRUModel",
]

DECAY_SCALE = 8.0
"""Griffin's c: log λ at an open gate is c times that of the radius at initialisation."""
RADIUS = (0.9, 0.999)
"""Griffin's range of exp(-softplus(a)) at initialisation."""
LARGEST_SLOPE = 1000.0
"""Bound of the square root's derivative, which is infinite at λ = 1."""


@strict
class RGLRUConfig(DSFConfig):
    """Configuration of RG-LRU; see `DSFConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_rg_lru"
    fixed_fields: ClassVar[dict[str, int]] = {"state_size": 1}

    num_heads: int = 4
    """Diagonal blocks of the gates' matrices."""
    state_size: int = 1
    """Always 1: each channel has one state."""
    conv_kernel: int = 4
    """Taps of the short causal convolution over x; 0 for none."""
    gate: str = "gelu_pytorch_tanh"
    """Activation of the output gate."""
    use_bias: bool = True
    """Whether the mixer's projections have biases."""


class RGLRUMixer(DSFMixer):
    """Maps u to x by one projection and a short convolution, and x to the gates r and g head by head."""

    shares_transfer_matrix: ClassVar[bool] = False
    uses_positions: ClassVar[bool] = True
    transition_parameters: ClassVar[tuple[str, ...]] = ("recurrent_param", "recurrent_gate_bias", "input_gate_bias")

    def __init__(self, config: RGLRUConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.in_proj = nn.Linear(config.hidden_size, config.inner_size, bias=config.use_bias)
        heads, width = config.num_heads, config.head_dim
        self.recurrent_param = nn.Parameter(torch.empty(config.inner_size))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.recurrent_gate_bias = nn.Parameter(torch.empty(heads, width))
        self.input_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.input_gate_bias = nn.Parameter(torch.empty(heads, width))

    @classmethod
    def conv_width(cls, config: RGLRUConfig) -> int:
        """Channels of x."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Draw the squared radius exp(-2 softplus(a)) uniformly from [0.9², 0.999²], the gates' weights N(0, 1/p).

        Intended spectrum at step 0: λ = radius^(8 r) with r between 0 and 1 and near 1/2, so that λ lies in [0.9^8,
        1) = [0.43, 1), near radius^4 in [0.66, 0.996]: memories from two tokens to 250.
        """
        init.uniform_(self.recurrent_param, RADIUS[0] ** 2, RADIUS[1] ** 2)
        init.copy_(self.recurrent_param, (self.recurrent_param**-0.5 - 1).log())
        for weight, bias in (
            (self.recurrent_gate_weight, self.recurrent_gate_bias),
            (self.input_gate_weight, self.input_gate_bias),
        ):
            init.normal_(weight, std=self.head_dim**-0.5)
            init.zeros_(bias)

    def system_at(self, gathered: Tensor, layout: TokenLayout, layer: Any = None) -> DSFSystem:
        """Return the system at gathered hidden states; the first token of each document is known from the layout."""
        conv_in, _ = self.project(gathered)
        system = self.system(self.convolve(conv_in, layout, layer), layout.first_tokens())
        return system.with_layout(layout.starts, layout.lengths)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return x for the convolution, and (1, t) True at the first token of a whole sequence."""
        return self.in_proj(hidden), torch.arange(hidden.shape[1], device=hidden.device)[None] == 0

    def system(self, conv_out: Tensor, rest: Tensor) -> DSFSystem:
        """Return λ_i = exp(-8 softplus(a) * r_i), B_i = diag(√(1 - λ_i²) * g_i) and C_i = I at x_i.

        Args:
            conv_out: x, (b, t, d).
            rest: (b|1, t) True at the first token of a document, where λ is 0.
        """
        x = conv_out.unflatten(-1, (self.num_heads, self.head_dim))
        recurrent = _by_blocks(x, self.recurrent_gate_weight, self.recurrent_gate_bias).sigmoid()
        rate = DECAY_SCALE * F.softplus(self.recurrent_param).view(self.num_heads, self.head_dim)
        log_decay = (recurrent * -rate).masked_fill(rest[..., None, None], -torch.inf)
        gate = _by_blocks(x, self.input_gate_weight, self.input_gate_bias).sigmoid()
        one = x.new_ones(1, 1, 1, 1)
        return DSFSystem(
            u=x,
            B=one,
            C=one,
            transition=ElementwiseDecay(log_decay.exp()),
            input_gain=_BoundedSqrt.apply(-torch.expm1(2 * log_decay)) * gate,
        )


def _by_blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x times a block-diagonal matrix, plus a bias: (b, t, h, p), (h, p, p), (h, p) -> (b, t, h, p)."""
    return torch.einsum("bthp,hpq->bthq", x, weight.to(x.dtype)) + bias


class _BoundedSqrt(torch.autograd.Function):
    """√x, with a derivative that is bounded where x is near 0."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad / (2 * root).clamp(min=1 / LARGEST_SLOPE)


class RGLRUModel(DSFModel):
    """RG-LRU without a head."""

    config: RGLRUConfig


class RGLRUForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """RG-LRU language model."""

    config: RGLRUConfig


class RGLRUForSequenceClassification(DSFForSequenceClassification):
    """RG-LRU sequence classifier."""

    config: RGLRUConfig


class RGLRUForTokenClassification(DSFForTokenClassification):
    """RG-LRU token classifier."""

    config: RGLRUConfig


register_architecture(
    Architecture(
        config_class=RGLRUConfig,
        mixer_class=RGLRUMixer,
        model_class=RGLRUModel,
        causal_lm_class=RGLRUForCausalLM,
        sequence_classification_class=RGLRUForSequenceClassification,
        token_classification_class=RGLRUForTokenClassification,
        transition="diag(exp(-8 softplus(a) * r_i)), r_i = σ(W_r u_i + b_r), W_r block-diagonal",
        input_matrix="diag(√(1 - Λ_i²) * g_i), g_i = σ(W_g u_i + b_g); no root at a document's first token",
        output_matrix="I",
        state_size="d",
    )
)
