"""Rotary positions, as transformers' attention models have them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration import DSFConfig

__all__ = ["DSFRotaryEmbedding", "rotary_width", "rotate"]


class DSFRotaryEmbedding(nn.Module):
    """Angles of the rotary embedding: cos and sin of position · theta^(-2i/r), from config.rope_parameters.

    r is the rotated width: state_size (the width m of queries and keys), or its share partial_rotary_factor.
    """

    def __init__(self, config: DSFConfig) -> None:
        super().__init__()
        # transformers reads the width from head_dim, which is that of the values here.
        self.config = copy.copy(config)
        self.config.head_dim = config.state_size
        self.rope_type = config.rope_parameters["rope_type"]
        initialise = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = initialise(self.config)
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: DSFConfig, device: torch.device | None = None, **kwargs: object
    ) -> tuple[Tensor, float]:
        """Return theta^(-2i/r) for i < r/2, and the factor 1; `config` is this module's, its head_dim being m."""
        base, width = config.rope_parameters["rope_theta"], rotary_width(config.head_dim, config.rope_parameters)
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=device) / width
        return 1.0 / base**exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, (b or 1, t, r), in x's dtype."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def rotary_width(width: int, rope_parameters: dict[str, Any]) -> int:
    """Return how many of `width` features of queries and keys are rotated."""
    return int(width * (rope_parameters.get("partial_rotary_factor") or 1.0))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of features (i, i + r/2), i < r/2, of x (b, t, h, m) by the angles of their positions."""
    cos, sin = angles[0][:, :, None], angles[1][:, :, None]
    width = cos.shape[-1]
    rotated, rest = (x, None) if width == x.shape[-1] else x.split([width, x.shape[-1] - width], dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat([-second, first], dim=-1) * sin
    return rotated if rest is None else torch.cat([rotated, rest], dim=-1)
