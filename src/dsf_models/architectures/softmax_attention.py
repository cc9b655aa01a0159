"""Softmax attention: a system with an infinite state, run on transformers' attention interface.

    y_i = Σ_{j<=i} exp(s_ij) v_j / η_i        s_ij = q_i^T k_j / √n        η_i = Σ_{l<=i} exp(s_il)
    Λ_i = (η_{i-1} / η_i) I        B_i = (1 / η_i) I ⊗ ψ(k_i)        C_i = I ⊗ φ(q_i)^T        D = 0

φ and ψ are the infinite Taylor features of exp; `SoftmaxSystem.truncated` cuts them off. With a sliding window of W
positions the sums start at j = i - W + 1.

Sources: Vaswani et al. 2017; Sieber et al. 2024 (arXiv 2405.15731).
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_rope_utils import RopeParameters
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..backbone import (
    Architecture,
    AttentionCapabilities,
    CacheShapes,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFMixer,
    DSFModel,
    DSFSlidingLayer,
    TokenLayout,
    checked_layer,
    register_architecture,
    rotate,
)
from ..engine import Flops, next_window
from ..errors import require
from ..system import SoftmaxSystem

__all__ = [
    "SoftmaxAttentionConfig",
    "SoftmaxAttentionForCausalLM",
    "SoftmaxAttentionForSequenceClassification",
    "SoftmaxAttentionForTokenClassification",
    "SoftmaxAttentionMixer",
    "SoftmaxAttentionModel",
]


@strict
class SoftmaxAttentionConfig(DSFConfig):
    """Configuration of softmax attention; see `DSFConfig` for the shared fields.

    state_size is the width of queries and keys per head.
    """

    model_type: ClassVar[str] = "dsf_softmax_attention"
    uses_rope: ClassVar[bool] = True

    num_key_value_heads: int | None = None
    """Heads of keys and values, shared by groups of query heads. Default: num_heads."""
    attention_dropout: float | int = 0.0
    """Dropout of the attention weights."""
    sliding_window: int | None = None
    """Number of positions W that a query sees, its own among them; None for all."""
    rope_parameters: RopeParameters | dict | None = None
    """Rotary settings of transformers (rope_type, rope_theta, …), for position_embedding="rope"."""

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields."""
        super().fill_defaults()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_heads

    @property
    def cache_layer_type(self) -> str:
        """Keys and values of a window or of all positions, with the convolution's window where there is one."""
        if self.sliding_window is not None:
            return "dsf_sliding"
        return "dsf_attention" if self.conv_kernel else "full_attention"

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(
            self.num_key_value_heads > 0 and self.num_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"must divide num_heads={self.num_heads}.",
        )
        require(
            0 <= self.attention_dropout < 1,
            "attention_dropout",
            self.attention_dropout,
            "give a probability in [0, 1).",
        )
        require(
            self.sliding_window is None or self.sliding_window >= 2,
            "sliding_window",
            self.sliding_window,
            "give the number of positions seen, at least 2, or None for all.",
        )


class SoftmaxAttentionMixer(DSFMixer):
    """Maps u to queries, keys and values, and attends with the backend that transformers is told to use."""

    block_attribute: ClassVar[str] = "self_attn"
    no_interventions: ClassVar[str | None] = (
        "softmax attention has an infinite state, and runs on transformers' attention interface: its λ and Φ can be "
        "read, but not changed on the way; taylor_attention and linear_attention have a finite state that can be"
    )

    def __init__(self, config: SoftmaxAttentionConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_key_value_groups = config.num_heads // config.num_key_value_heads
        self.scaling = config.state_size**-0.5
        self.is_causal = True
        self.attention_dropout = config.attention_dropout
        self.sliding_window = config.sliding_window
        self.split_sizes = [
            config.num_heads * config.state_size,
            config.num_key_value_heads * config.state_size,
            config.num_key_value_heads * config.head_dim,
        ]
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, width, bias=config.use_bias) for width in self.split_sizes
        )

    @classmethod
    def conv_width(cls, config: SoftmaxAttentionConfig) -> int:
        """Channels of q, k and v."""
        return config.num_heads * config.state_size + config.num_key_value_heads * (config.state_size + config.head_dim)

    @classmethod
    def cache_shapes(cls, config: SoftmaxAttentionConfig, length: int) -> CacheShapes:
        """Return keys (g, t, n) and values (g, t, p) of all tokens so far, and the convolution's window.

        Within a sliding window they lie side by side with a mark of the tokens, (W - 1, g·(n + p) + 1).
        """
        groups, widths = config.num_key_value_heads, (config.state_size, config.head_dim)
        kept = [(groups, length, width) for width in widths]
        if config.sliding_window is not None:
            kept = [(config.sliding_window - 1, groups * sum(widths) + 1)]
        return CacheShapes([], [*kept, *cls.window_shapes(config)])

    @classmethod
    def core_flops(cls, config: SoftmaxAttentionConfig, length: int, context: int = 0) -> Flops:
        """Return what q^T k and the weighted sum of values cost, the masked half of the square included."""
        past = context if config.sliding_window is None or context == 0 else config.sliding_window - 1
        pairs = config.num_heads * length * (past + length)
        return Flops(2 * pairs * (config.state_size + config.head_dim), 4 * pairs)

    def tp_plan(self) -> dict[str, str]:
        """Return how the projections are sharded: by heads, where nothing else sees all of them."""
        if self.conv is not None or self.output_norm is not None or self.sliding_window is not None:
            return super().tp_plan()
        names = [name for name, _ in self.named_children() if name.endswith("_proj")]
        return {name: "rowwise" if name == "out_proj" else "colwise" for name in names}

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return q, k, v side by side for the convolution."""
        return torch.cat([self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)], dim=-1), None

    def heads(self, qkv: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Split q (b, t, h, n), k (b, t, g, n), v (b, t, g, p), and rotate q and k where positions are rotary."""
        ranks = sum(self.split_sizes) // qkv.shape[-1]  # tensor parallelism leaves a share of the heads
        q, k, v = qkv.split([width // ranks for width in self.split_sizes], dim=-1)
        q, k = (x.unflatten(-1, (-1, self.state_size)) for x in (q, k))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v.unflatten(-1, (-1, self.head_dim))

    def forward(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; the convolution follows the padding rule, the attention its mask, so slots keep their order.

        Args:
            hidden: normed hidden states (b, t, hidden_size).
            layout: positions, padding and documents.
            cache: holds keys, values and the convolution's window; updated in place.
            attention_mask: the backend's causal mask.
            position_embeddings: cos and sin of rotary positions.
            kwargs: options of the attention backend.

        Returns:
            (b, t, hidden_size), and the attention weights (b, h, t, t) where the backend returns them; with a sliding
            window those of gathered tokens, the window's keys first.
        """
        if self.sliding_window is not None:
            return self._within_window(hidden, layout, cache, position_embeddings or (), kwargs)
        layer = checked_layer(cache, self.layer_idx) if cache is not None and self.conv is not None else None
        q, k, v = self.heads(self._mixed_qkv(hidden, layout, layer), position_embeddings)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        y, weights = self._attend(q.transpose(1, 2), k, v, attention_mask, kwargs)
        return self.finish(y.flatten(2), hidden), weights

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Run the attention backend on (b, heads, positions, width)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        return attend(self, q, k, v, mask, dropout=dropout, scaling=self.scaling, **options)

    def _within_window(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        cache: Cache | None,
        angles: tuple[Tensor, ...],
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the last W real tokens of the document: like a convolution, on gathered tokens and a window."""
        layer = checked_layer(cache, self.layer_idx, DSFSlidingLayer) if cache is not None else None
        past = layer.read_keys() if layer is not None else None
        if layer is not None and layer.record_past:
            past = None if past is None else past.clone()
            found = layer.history.walk(layer, self._advance_keys, self._advance_keys, layout, hidden, *angles)
            q, keys = (layout.gather(x) for x in found)
            seen = keys if past is None else torch.cat([past.to(keys.dtype), keys], dim=1)
        else:
            q, keys = (layout.gather(x) for x in self._queries_and_keys(hidden, *angles, layout=layout, layer=layer))
            seen = keys if layer is None else self._push_keys(keys, layout, layer)
        keys = keys if past is None else seen
        mask = self._window_mask(keys[..., -1] != 0 if past is not None else None, hidden, keys.shape[1], layout)
        k, v, _ = keys.split([*self.split_sizes[1:], 1], dim=-1)
        q, k = (x.unflatten(-1, (-1, self.state_size)).transpose(1, 2) for x in (q, k))
        v = v.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        y, weights = self._attend(q, k, v, mask, {"sliding_window": self.sliding_window, **options})
        return layout.scatter(self.finish(y.flatten(2), layout.gather(hidden))), weights

    def _queries_and_keys(
        self, hidden: Tensor, *angles: Tensor, layout: TokenLayout, layer: DSFSlidingLayer | None
    ) -> tuple[Tensor, Tensor]:
        """Return q, and k and v side by side with a mark: 1, where a window without a token there has 0."""
        q, k, v = (x.flatten(2) for x in self.heads(self._mixed_qkv(hidden, layout, layer), angles or None))
        return q, torch.cat([k, v, torch.ones_like(k[..., :1])], dim=-1)

    def _push_keys(self, keys: Tensor, layout: TokenLayout, layer: DSFSlidingLayer) -> Tensor:
        """Put gathered keys (b, t, ·) behind those of the window, of which the last stay; return all of them."""
        past, keep = layer.read_keys(), self.sliding_window - 1
        seen = F.pad(keys, (0, 0, keep, 0)) if past is None else torch.cat([past.to(keys.dtype), keys], dim=1)
        layer.write_keys(next_window(seen, keep, layout.starts, layout.lengths), keys.shape[1])
        return seen

    def _advance_keys(
        self, hidden: Tensor, *angles: Tensor, layout: TokenLayout, layer: DSFSlidingLayer
    ) -> tuple[Tensor, Tensor]:
        """Do both of the above."""
        q, keys = self._queries_and_keys(hidden, *angles, layout=layout, layer=layer)
        self._push_keys(layout.gather(keys), layout, layer)
        return q, keys

    def _window_mask(self, real: Tensor | None, hidden: Tensor, num_keys: int, layout: TokenLayout) -> Any:
        """Return the backend's mask of gathered tokens, whose keys are `num_keys`, those of the window first.

        Args:
            real: (b, num_keys) False where the window holds no token; None without a window.
            hidden: (b, t, hidden_size), for sizes only.
            num_keys: W - 1 + t with a window, else t.
            layout: document starts.

        Raises:
            ValueError: FlashAttention is told of documents that begin behind a cached window.
        """
        batch, length = hidden.shape[:2]
        allowed = sliding_window_causal_mask_function(self.sliding_window)
        if layout.starts is not None:
            # A guard: this backend alone takes no mask function, and would attend across documents.
            if real is not None and "flash" in self.config._attn_implementation:  # trf-ignore: TRF051
                raise ValueError(
                    "FlashAttention takes packed documents or a cached window, not both: give one document a row, or "
                    'use attn_implementation="sdpa".'
                )
            documents = F.pad(layout.starts.long().cumsum(1), (num_keys - length, 0))
            allowed = and_masks(allowed, packed_sequence_mask_function(documents))
        return ALL_MASK_ATTENTION_FUNCTIONS[self.config._attn_implementation](
            batch_size=batch,
            q_length=length,
            kv_length=num_keys,
            q_offset=num_keys - length,
            mask_function=allowed,
            attention_mask=real,
            local_size=self.sliding_window,
            allow_is_causal_skip=real is None and layout.starts is None,
            dtype=hidden.dtype,
            device=hidden.device,
            config=self.config,
        )

    def _mixed_qkv(self, hidden: Tensor, layout: TokenLayout, layer: Any) -> Tensor:
        """Return q, k, v side by side after the short convolution, in slot order."""
        qkv, _ = self.project(hidden)
        if self.conv is None:
            return qkv
        if layer is not None and layer.record_past and self.sliding_window is None:
            return layer.history.walk(layer, self._convolved, self._convolved, layout, qkv)[0]
        return self._convolved(qkv, layout, layer)[0]

    def _convolved(self, qkv: Tensor, layout: TokenLayout, layer: Any) -> tuple[Tensor]:
        return (layout.scatter(self.convolve(layout.gather(qkv), layout, layer)),)

    def observed_system(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        cache: Cache | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> SoftmaxSystem:
        """Return the exact system of softmax attention at these arguments (real tokens first in each row)."""
        q, k, v = self.heads(self._mixed_qkv(hidden, layout, None), position_embeddings)
        q, k, v = (layout.gather(x.flatten(2)).unflatten(-1, x.shape[2:]) for x in (q, k, v))
        return SoftmaxSystem(
            q=q,
            k=k,
            u=v,
            scale=self.scaling,
            starts=layout.starts,
            lengths=layout.lengths,
            window=self.sliding_window,
        )


def _eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return softmax(q^T k · scaling + mask) v (b, t, h, p) and the weights (b, h, t, keys), as backends are called."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # In at least float32: the mask's least float64 is -inf in float32, and a row of pads would become NaN.
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SoftmaxAttentionModel(AttentionCapabilities, DSFModel):
    """Softmax attention without a head."""

    config: SoftmaxAttentionConfig


class SoftmaxAttentionForCausalLM(AttentionCapabilities, DSFForCausalLM, DSFGenerationMixin):
    """Softmax-attention language model."""

    config: SoftmaxAttentionConfig


class SoftmaxAttentionForSequenceClassification(AttentionCapabilities, DSFForSequenceClassification):
    """Softmax-attention sequence classifier."""

    config: SoftmaxAttentionConfig


class SoftmaxAttentionForTokenClassification(AttentionCapabilities, DSFForTokenClassification):
    """Softmax-attention token classifier."""

    config: SoftmaxAttentionConfig


register_architecture(
    Architecture(
        config_class=SoftmaxAttentionConfig,
        mixer_class=SoftmaxAttentionMixer,
        model_class=SoftmaxAttentionModel,
        causal_lm_class=SoftmaxAttentionForCausalLM,
        sequence_classification_class=SoftmaxAttentionForSequenceClassification,
        token_classification_class=SoftmaxAttentionForTokenClassification,
        transition="(η_{i-1} / η_i) I per head, η_i = Σ_{l<=i} exp(q_i^T k_l / √n)",
        input_matrix="(1 / η_i) I ⊗ ψ(k_i), ψ infinite",
        output_matrix="I ⊗ φ(q_i)^T, φ infinite",
        state_size="∞",
    )
)
