"""Token-wise layers and the short convolution that every architecture shares.

Letters: b batch, t time, d width, K convolution taps.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from ..engine import causal_convolution, next_window
from .configuration import DSFConfig
from .layout import TokenLayout

__all__ = [
    "GatedChannelMixer",
    "GroupRMSNorm",
    "LearnedPositions",
    "MLPChannelMixer",
    "ShortConvolution",
    "activation_function",
    "build_channel_mixer",
    "build_norm",
    "gathered_plan",
    "in_segments",
    "residual_std",
    "segment_length",
]

SEGMENT_TOKENS, SEGMENT_NUMBERS = 2048, 2**21
"""A segment of a long sequence holds so many tokens, or more where a tensor of them stays below so many numbers: larger
ones are given back to the system after each operation, and claiming them anew costs more than the operation."""


def segment_length(x: Tensor, width: int) -> int:
    """Return the tokens of a segment of x (b, t, …) where tensors of width `width` are made on the way.

    A graph that is compiled is not cut: it would hold every segment's operations.
    """
    if torch.compiler.is_compiling():
        return x.shape[1]
    return max(SEGMENT_TOKENS, SEGMENT_NUMBERS // max(1, x.shape[0] * width))


def in_segments(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a token-wise function to x (b, t, d), segment by segment where it is long."""
    size = segment_length(x, width)
    if x.shape[1] <= size:
        return function(x)
    return torch.cat([function(part) for part in x.split(size, dim=1)], dim=1)


def residual_std(config: DSFConfig) -> float:
    """Return the released standard deviation of projections into the residual stream, two of them a layer."""
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation by the name that transformers gives it.

    The common ones are functions: to call a module takes as long as to apply it to the features of one token.
    """
    return _FUNCTIONS.get(name) or ACT2FN[name]


def gathered_plan(module: nn.Module) -> dict[str, str]:
    """Return the tensor-parallel plan that shards the rows of every projection and gathers what they put out."""
    return {name: "colwise_gather_output" for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def build_norm(config: DSFConfig, width: int) -> nn.Module:
    """Return the norm that config.norm names, over `width` features ("none": the identity)."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps)
    return nn.RMSNorm(width, eps=config.norm_eps)


class GroupRMSNorm(nn.Module):
    """RMSNorm over groups of features: y = weight * x / sqrt(mean_group(x^2) + eps), computed in at least float32."""

    def __init__(self, width: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (…, width)."""
        if self.num_groups == 1:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        grouped = x.unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class LearnedPositions(nn.Embedding):
    """Table of learned absolute positions, added to the embeddings."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """Look positions up: (b or 1, t) -> (b or 1, t, d).

        Raises:
            ValueError: a position lies beyond the table (checked eagerly only).
        """
        if not torch.compiler.is_compiling() and position_ids.numel():
            # Positions without data (on the meta device) can only be counted.
            longest = position_ids.shape[-1] if position_ids.is_meta else int(position_ids.max()) + 1
            if longest > self.num_embeddings:
                raise ValueError(
                    f"the sequence holds {longest} tokens, but max_position_embeddings={self.num_embeddings}: "
                    "shorten it, or build the "
                    'model with a larger max_position_embeddings (or position_embedding="none" or "rope").'
                )
        return super().forward(position_ids)


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time: y_t = bias + Σ_k w_k * x_{t-K+1+k}, followed by an activation.

    Its state is the window of the last K - 1 inputs of the current document.
    """

    def __init__(self, width: int, kernel_size: int, bias: bool, activation: str | None) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(width, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.activation = activation_function(activation) if activation else None

    def init_parameters(self) -> None:
        """Draw taps and bias uniformly from ±1/√K (the fan-in of a depthwise convolution), as Mamba does."""
        bound = self.kernel_size**-0.5
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, layout: TokenLayout, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve gathered tokens.

        Args:
            x: (b, t, d).
            layout: lengths and document starts of the rows.
            window: the K - 1 inputs before x, (b, K - 1, d); None for zeros.

        Returns:
            The outputs (b, t, d), and the window before the next token (b, K - 1, d): zeros where an earlier document
            lies.
        """
        past = x.new_zeros(x.shape[0], self.kernel_size - 1, x.shape[2]) if window is None else window.to(x.dtype)
        inputs = torch.cat([past, x], dim=1)
        y = causal_convolution(inputs, self.weight.permute(1, 2, 0)[0], self.bias, layout.starts)
        if self.activation is not None:
            y = self.activation(y)
        return y, next_window(inputs, self.kernel_size - 1, layout.starts, layout.lengths)


class MLPChannelMixer(nn.Module):
    """Token-wise network y = W_out act(… act(W_1 x)) of `depth` hidden layers."""

    def __init__(self, config: DSFConfig, depth: int) -> None:
        super().__init__()
        width, bias = config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.hidden_projs = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(depth - 1))
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)
        self.activation = activation_function(config.hidden_act)
        # A plan names a module for all layers at once, and a second hidden layer mixes what the first one's rows give.
        self.shallow = max(config.channel_mixer_depths) == 1

    def tp_plan(self) -> dict[str, str]:
        """Return how the projections are sharded: by hidden features, unless some channel mixer is deep."""
        return {"up_proj": "colwise", "down_proj": "rowwise"} if self.shallow else gathered_plan(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, t, d) to (b, t, d)."""
        return in_segments(self._map, x, self.up_proj.out_features)

    def _map(self, x: Tensor) -> Tensor:
        x = self.activation(self.up_proj(x))
        for projection in self.hidden_projs:
            x = self.activation(projection(x))
        return self.down_proj(x)


class GatedChannelMixer(nn.Module):
    """Token-wise gated network y = W_down (act(W_gate x) * W_up x): SwiGLU or GeGLU."""

    def __init__(self, config: DSFConfig, activation: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = activation_function(activation)

    def tp_plan(self) -> dict[str, str]:
        """Return how the projections are sharded: by hidden features."""
        return {"gate_proj": "colwise", "up_proj": "colwise", "down_proj": "rowwise"}

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, t, d) to (b, t, d)."""
        return in_segments(self._map, x, self.up_proj.out_features)

    def _map(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def build_channel_mixer(config: DSFConfig, index: int) -> nn.Module | None:
    """Return the channel mixer of this index (from the input on), as config.channel_mixer names it, or None."""
    depth = config.channel_mixer_depths[index]
    match config.channel_mixer if depth else "none":
        case "mlp":
            return MLPChannelMixer(config, depth)
        case "swiglu":
            return GatedChannelMixer(config, "silu")
        case "geglu":
            return GatedChannelMixer(config, "gelu_pytorch_tanh")
    return None
