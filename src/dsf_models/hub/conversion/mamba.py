"""transformers' Mamba is S6 with its default block."""

from typing import Any

from transformers import MambaConfig

from ...backbone import DSFConfig
from .family import Family, Rule

__all__ = ["MAMBA"]

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "state_size",
    "expand",
    "conv_kernel",
    "use_bias",
    "initializer_range",
    "time_step_rank",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
# The activation of the convolution; that of the gate is always SiLU.
_RENAMED = {"layer_norm_epsilon": "norm_eps", "use_conv_bias": "conv_bias", "hidden_act": "conv_activation"}


def _to_dsf(source: MambaConfig) -> dict[str, Any]:
    return {
        **{name: getattr(source, name) for name in _SAME},
        **{ours: getattr(source, theirs) for theirs, ours in _RENAMED.items()},
    }


def _to_source(config: DSFConfig) -> dict[str, Any]:
    return {
        **{name: getattr(config, name) for name in _SAME},
        **{theirs: getattr(config, ours) for theirs, ours in _RENAMED.items()},
    }


def _rules(num_layers: int) -> list[Rule]:
    rules = [
        Rule(("backbone.embeddings.weight",), ("model.embed_tokens.weight",)),
        Rule(("backbone.norm_f.weight",), ("model.norm.weight",)),
        Rule(("lm_head.weight",), ("lm_head.weight",)),
    ]
    for index in range(num_layers):
        theirs, ours = f"backbone.layers.{index}", f"model.layers.{index}"
        pairs = {"norm.weight": "norm.weight", "mixer.D": "mixer.D", "mixer.dt_proj.bias": "mixer.dt_bias"}
        pairs |= {f"mixer.{name}.weight": f"mixer.{name}.weight" for name in ("x_proj", "dt_proj")}
        for end in ("weight", "bias"):
            pairs |= {f"mixer.conv1d.{end}": f"mixer.conv.{end}", f"mixer.out_proj.{end}": f"mixer.out_proj.{end}"}
            fused = (f"{ours}.mixer.in_proj.{end}", f"{ours}.mixer.gate_proj.{end}")
            rules.append(Rule((f"{theirs}.mixer.in_proj.{end}",), fused))
        rules.append(Rule((f"{theirs}.mixer.A_log",), (f"{ours}.mixer.A_log",), transposed=True))
        rules += [Rule((f"{theirs}.{old}",), (f"{ours}.{new}",)) for old, new in pairs.items()]
    return rules


MAMBA = Family(
    title="Mamba",
    source_config=MambaConfig,
    architecture="s6",
    to_dsf=_to_dsf,
    to_source=_to_source,
    rules=_rules,
    # How weights are drawn, which scan computes the same numbers, and the rounding of residuals in half precision.
    harmless=frozenset(
        {
            "time_step_scale",
            "time_step_init_scheme",
            "rescale_prenorm_residual",
            "use_mambapy",
            "use_associative_scan",
            "residual_in_fp32",
        }
    ),
    harmless_here=frozenset({"initialization", "max_position_embeddings"}),
)
