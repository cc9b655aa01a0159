"""transformers' RecurrentGemma is a hybrid of RG-LRU and softmax attention within a window."""

from typing import Any

import torch
from transformers import RecurrentGemmaConfig

from ...backbone import DSFConfig
from .family import Family, Rule

__all__ = ["RECURRENT_GEMMA"]

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_RENAMED = {"rms_norm_eps": "norm_eps", "logits_soft_cap": "logit_softcap"}
_CHANNEL_MIXERS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
_ACTIVATIONS = {mixer: activation for activation, mixer in _CHANNEL_MIXERS.items()}
_RECURRENT, _ATTENTION = "rg_lru", "softmax_attention"
_MIXERS = {"linear_attention": _RECURRENT, "sliding_attention": _ATTENTION}
_BLOCK_TYPES = {_RECURRENT: "recurrent", _ATTENTION: "attention"}


def _to_dsf(source: RecurrentGemmaConfig) -> dict[str, Any]:
    mixers = [_MIXERS[layer] for layer in source.layers_block_type]
    options = {
        _RECURRENT: {
            "num_heads": source.num_attention_heads,
            "expand": _plain_ratio(source.lru_width, source.hidden_size),
            "conv_kernel": source.conv1d_width,
            "gate": source.hidden_activation,
        },
        _ATTENTION: {
            "num_heads": source.num_attention_heads,
            "num_key_value_heads": source.num_key_value_heads,
            "expand": _plain_ratio(source.num_attention_heads * source.head_dim, source.hidden_size),
            "state_size": source.head_dim,
            "sliding_window": source.attention_window_size,
            "attention_dropout": source.attention_dropout,
            # The output projection always has one; those of queries, keys and values are 0 where there are none.
            "use_bias": True,
            "rope_parameters": source.rope_parameters,
        },
    }
    return {
        **{name: getattr(source, name) for name in _SAME},
        **{ours: getattr(source, theirs) for theirs, ours in _RENAMED.items()},
        "mixers": mixers,
        "mixer_options": {name: values for name, values in options.items() if name in mixers},
        "position_embedding": "rope" if _ATTENTION in mixers else "none",
        "channel_mixer": _CHANNEL_MIXERS.get(source.hidden_activation, "geglu"),
        "intermediate_size": source.intermediate_size // 2,
        "mlp_bias": True,
        # Held in bfloat16 there, whatever the dtype of the model.
        "embedding_scale": float(torch.tensor(source.hidden_size**0.5, dtype=torch.bfloat16)),
    }


def _plain_ratio(numerator: int, denominator: int) -> int | float:
    ratio = numerator / denominator
    return int(ratio) if ratio.is_integer() else ratio


def _unused(source: RecurrentGemmaConfig) -> frozenset[str]:
    of_attention = {"attention_window_size", "attention_dropout", "num_key_value_heads", "rope_parameters"}
    fields = {"linear_attention": {"lru_width", "conv1d_width"}, "sliding_attention": of_attention}
    return frozenset().union(*(fields[kind] for kind in fields.keys() - set(source.layers_block_type)))


def _to_source(config: DSFConfig) -> dict[str, Any]:
    recurrent, attention = (_layer_of(config, name) for name in (_RECURRENT, _ATTENTION))
    found = {
        **{name: getattr(config, name) for name in _SAME},
        **{theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()},
        "block_types": [_BLOCK_TYPES.get(name, "attention") for name in config.mixers],
        "hidden_activation": _ACTIVATIONS.get(config.channel_mixer, "gelu_pytorch_tanh"),
        "intermediate_size": 2 * config.intermediate_size,
        "num_attention_heads": (recurrent or attention or config).num_heads,
    }
    if recurrent is not None:
        found |= {"lru_width": recurrent.inner_size, "conv1d_width": recurrent.conv_kernel}
    if attention is not None:
        found |= {
            "head_dim": attention.state_size,
            "num_key_value_heads": attention.num_key_value_heads,
            "attention_window_size": attention.sliding_window,
            "attention_dropout": attention.attention_dropout,
            "attention_bias": True,
            "rope_parameters": attention.rope_parameters,
        }
    return found


def _layer_of(config: DSFConfig, mixer: str) -> DSFConfig | None:
    return config.layer_config(config.mixers.index(mixer)) if mixer in config.mixers else None


def _rules(num_layers: int) -> list[Rule]:
    rules = [
        Rule(("model.embed_tokens.weight",), ("model.embed_tokens.weight",)),
        Rule(("model.final_norm.weight",), ("model.norm.weight",), offset=1.0),
        Rule(("lm_head.weight",), ("lm_head.weight",)),
    ]
    modules = {f"temporal_block.{name}_proj": f"self_attn.{name}_proj" for name in "qkv"}
    modules |= {"temporal_block.o_proj": "self_attn.out_proj", "temporal_block.conv_1d": "mixer.conv"}
    modules |= {"temporal_block.linear_x": "mixer.in_proj", "temporal_block.linear_y": "mixer.gate_proj"}
    modules |= {"temporal_block.linear_out": "mixer.out_proj"}
    modules |= {f"mlp_block.{name}_proj": f"channel_mixer.{name}_proj" for name in ("gate", "up", "down")}
    gates = [f"{gate}_gate_{end}" for gate in ("input", "recurrent") for end in ("weight", "bias")]
    for layer in (f"model.layers.{index}" for index in range(num_layers)):
        for theirs, ours in {"temporal_pre_norm": "norm", "channel_pre_norm": "channel_norm"}.items():
            rules.append(Rule((f"{layer}.{theirs}.weight",), (f"{layer}.{ours}.weight",), offset=1.0))
        for name in ("recurrent_param", *gates):
            rules.append(Rule((f"{layer}.temporal_block.rg_lru.{name}",), (f"{layer}.mixer.{name}",)))
        for theirs, ours in modules.items():
            rules += [Rule((f"{layer}.{theirs}.{end}",), (f"{layer}.{ours}.{end}",)) for end in ("weight", "bias")]
    return rules


RECURRENT_GEMMA = Family(
    title="RecurrentGemma",
    source_config=RecurrentGemmaConfig,
    architecture="hybrid",
    to_dsf=_to_dsf,
    to_source=_to_source,
    rules=_rules,
    unused=_unused,
    # How weights are drawn; a pattern, whose repetition `mixers` holds; biases, which are 0 where there are none.
    harmless=frozenset({"w_init_variance_scale", "block_types", "attention_bias"}),
    harmless_here=frozenset({"initializer_range", "initialization", "max_position_embeddings"}),
)
