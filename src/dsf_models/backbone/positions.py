"""Rotary positions, as transformers' attention models have them."""

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration import DSFConfig

__all__ = ["DSFRotaryEmbedding", "rotate"]


class DSFRotaryEmbedding(nn.Module):
    """Angles of the rotary embedding: cos and sin of position · theta^(-2i/m), from config.rope_parameters."""

    def __init__(self, config: DSFConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        initialise = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = initialise(config)
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: DSFConfig, device: torch.device | None = None, **kwargs: object
    ) -> tuple[Tensor, float]:
        """Return theta^(-2i/m) for i < m/2, with m = state_size (the width of queries and keys), and the factor 1."""
        base, width = config.rope_parameters["rope_theta"], config.state_size
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=device) / width
        return 1.0 / base**exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, (b or 1, t, m), in x's dtype."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of features (i, i + m/2) of x (b, t, h, m) by the angles of their positions."""
    cos, sin = angles[0][:, :, None], angles[1][:, :, None]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
