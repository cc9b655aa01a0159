"""transformers' Mamba-2 is SSD with its default block."""

import math
from typing import Any

from transformers import Mamba2Config

from ...backbone import DSFConfig
from .family import Family, Rule

__all__ = ["MAMBA2"]

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_heads",
    "head_dim",
    "state_size",
    "expand",
    "n_groups",
    "conv_kernel",
    "use_bias",
    "initializer_range",
    "time_step_min",
    "time_step_max",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_RENAMED = {"layer_norm_epsilon": "norm_eps", "use_conv_bias": "conv_bias"}
_NO_LIMIT = [0.0, math.inf]


def _to_dsf(source: Mamba2Config) -> dict[str, Any]:
    limit = list(source.time_step_limit)
    return {
        **{name: getattr(source, name) for name in _SAME},
        **{ours: getattr(source, theirs) for theirs, ours in _RENAMED.items()},
        "time_step_limit": None if limit == _NO_LIMIT else limit,
    }


def _to_source(config: DSFConfig) -> dict[str, Any]:
    return {
        **{name: getattr(config, name) for name in _SAME},
        **{theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()},
        "time_step_limit": config.time_step_limit or _NO_LIMIT,
    }


def _rules(num_layers: int) -> list[Rule]:
    rules = [
        Rule(("backbone.embeddings.weight",), ("model.embed_tokens.weight",)),
        Rule(("backbone.norm_f.weight",), ("model.norm.weight",)),
        Rule(("lm_head.weight",), ("lm_head.weight",)),
    ]
    for index in range(num_layers):
        theirs, ours = f"backbone.layers.{index}", f"model.layers.{index}"
        pairs = {"norm.weight": "norm.weight", "mixer.norm.weight": "mixer.output_norm.weight"}
        pairs |= {f"mixer.{name}": f"mixer.{name}" for name in ("A_log", "dt_bias", "D")}
        for end in ("weight", "bias"):
            pairs |= {f"mixer.conv1d.{end}": f"mixer.conv.{end}", f"mixer.out_proj.{end}": f"mixer.out_proj.{end}"}
            fused = (f"{ours}.mixer.gate_proj.{end}", f"{ours}.mixer.in_proj.{end}")
            rules.append(Rule((f"{theirs}.mixer.in_proj.{end}",), fused))
        rules += [Rule((f"{theirs}.{old}",), (f"{ours}.{new}",)) for old, new in pairs.items()]
    return rules


MAMBA2 = Family(
    title="Mamba-2",
    source_config=Mamba2Config,
    architecture="ssd",
    to_dsf=_to_dsf,
    to_source=_to_source,
    rules=_rules,
    # How weights are drawn, a rank that Mamba-2 does not use, the length of chunks, and the rounding of residuals in
    # half precision.
    harmless=frozenset(
        {"time_step_floor", "time_step_rank", "rescale_prenorm_residual", "chunk_size", "residual_in_fp32"}
    ),
    harmless_here=frozenset({"a_init_range", "initialization", "max_position_embeddings"}),
)
