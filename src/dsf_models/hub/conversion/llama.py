"""transformers' Llama is softmax attention with rotary positions and a gated channel mixer."""

from typing import Any

from transformers import LlamaConfig

from ...backbone import DSFConfig
from .family import Family, Rule

__all__ = ["LLAMA"]

_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "mlp_bias",
)
_RENAMED = {"num_attention_heads": "num_heads", "rms_norm_eps": "norm_eps", "attention_bias": "use_bias"}
_CHANNEL_MIXERS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}
_ACTIVATIONS = {mixer: activation for activation, mixer in _CHANNEL_MIXERS.items()}


def _to_dsf(source: LlamaConfig) -> dict[str, Any]:
    inner = source.num_attention_heads * source.head_dim
    expand = inner / source.hidden_size
    return {
        **{name: getattr(source, name) for name in _SAME},
        **{ours: getattr(source, theirs) for theirs, ours in _RENAMED.items()},
        # Llama rotates every feature: the key of partial models would be obeyed here and is ignored there.
        "rope_parameters": {k: v for k, v in source.rope_parameters.items() if k != "partial_rotary_factor"},
        "state_size": source.head_dim,
        "expand": int(expand) if expand.is_integer() else expand,
        "channel_mixer": _CHANNEL_MIXERS.get(source.hidden_act, "swiglu"),
        "position_embedding": "rope",
    }


def _to_source(config: DSFConfig) -> dict[str, Any]:
    return {
        **{name: getattr(config, name) for name in _SAME},
        **{theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()},
        "hidden_act": _ACTIVATIONS.get(config.channel_mixer, "silu"),
    }


def _rules(num_layers: int) -> list[Rule]:
    rules = [
        Rule(("model.embed_tokens.weight",), ("model.embed_tokens.weight",)),
        Rule(("model.norm.weight",), ("model.norm.weight",)),
        Rule(("lm_head.weight",), ("lm_head.weight",)),
    ]
    modules = {f"self_attn.{name}_proj": f"self_attn.{name}_proj" for name in "qkv"}
    modules |= {"self_attn.o_proj": "self_attn.out_proj"}
    modules |= {f"mlp.{name}_proj": f"channel_mixer.{name}_proj" for name in ("gate", "up", "down")}
    modules |= {"input_layernorm": "norm", "post_attention_layernorm": "channel_norm"}
    for layer in (f"model.layers.{index}" for index in range(num_layers)):
        for theirs, ours in modules.items():
            rules += [Rule((f"{layer}.{theirs}.{end}",), (f"{layer}.{ours}.{end}",)) for end in ("weight", "bias")]
    return rules


LLAMA = Family(
    title="Llama",
    source_config=LlamaConfig,
    architecture="softmax_attention",
    to_dsf=_to_dsf,
    to_source=_to_source,
    rules=_rules,
    # A degree of parallelism at training time, which no supported release reads.
    harmless=frozenset({"pretraining_tp"}),
    stale=("rotary_emb.inv_freq",),
)
