"""Pairs of models to compare: one of ours and its peer in transformers, at the same shape and with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from transformers.utils.import_utils import is_mambapy_available

from dsf_models import RGLRUConfig, RGLRUForCausalLM, S6Config, S6ForCausalLM, SSDConfig, SSDForCausalLM

__all__ = ["PAIRS", "WITHOUT_CACHE", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that a pair of models shares."""

    vocab_size: int = 1024
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_heads: int = 8
    head_dim: int = 64
    state_size: int = 128
    s6_state_size: int = 16
    """States per channel of S6, where each has a decay of its own."""
    expand: int = 2
    conv_kernel: int = 4


def build_ssd_and_mamba2(shape: Shape, noise: float = 0.0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our SSD and transformers' Mamba-2 with one set of weights.

    Args:
        shape: sizes of both.
        noise: standard deviation of what is added to every weight, so that those that start at 0 or 1 take part.
    """
    fields = {name: value for name, value in vars(shape).items() if name != "s6_state_size"}
    peer = Mamba2ForCausalLM(Mamba2Config(n_groups=1, residual_in_fp32=False, **fields))
    add_noise(peer, noise)
    ours = SSDForCausalLM(SSDConfig(n_groups=1, norm_eps=peer.config.layer_norm_epsilon, **fields))
    ours.load_state_dict(convert_mamba2(peer.state_dict(), shape))
    return ours, peer


def build_s6_and_mamba(
    shape: Shape, noise: float = 0.0, use_mambapy: bool = False, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our S6 and transformers' Mamba with one set of weights.

    Args:
        shape: sizes of both.
        noise: standard deviation of what is added to every weight, so that those that start at 0 or 1 take part.
        use_mambapy: whether the peer runs the parallel scan of the package mambapy instead of its own loop.
        options: further fields of Mamba's configuration: use_bias, use_conv_bias, time_step_rank, hidden_act.

    Raises:
        ImportError: mambapy is asked for and not installed.
    """
    if use_mambapy and not is_mambapy_available():
        raise ImportError("mambapy is not installed, and Mamba would silently run its loop: pip install mambapy.")
    fields = {name: getattr(shape, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers", "expand")}
    fields |= {"state_size": shape.s6_state_size, "conv_kernel": shape.conv_kernel, "tie_word_embeddings": False}
    peer = MambaForCausalLM(MambaConfig(residual_in_fp32=False, use_mambapy=use_mambapy, **fields, **options))
    add_noise(peer, noise)
    ours = S6ForCausalLM(
        S6Config(
            norm_eps=peer.config.layer_norm_epsilon,
            time_step_rank=peer.config.time_step_rank,
            use_bias=peer.config.use_bias,
            conv_bias=peer.config.use_conv_bias,
            conv_activation=peer.config.hidden_act,
            **fields,
        )
    )
    ours.load_state_dict(convert_mamba(peer.state_dict(), shape.num_hidden_layers))
    return ours, peer


def build_s6_and_mambapy(shape: Shape, noise: float = 0.0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our S6 and transformers' Mamba on the parallel scan of the package mambapy."""
    return build_s6_and_mamba(shape, noise, use_mambapy=True)


def build_rg_lru_and_recurrent_gemma(shape: Shape, noise: float = 0.0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our RG-LRU and transformers' RecurrentGemma, all of its blocks recurrent, with one set of weights.

    Its caches hold inner widths of hidden_size alone, so expand does not apply; its soft cap of the logits, which ours
    do not have, is put out of reach.

    Args:
        shape: sizes of both.
        noise: standard deviation of what is added to every weight, so that those that start at 0 or 1 take part.
    """
    sizes = {name: getattr(shape, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    peer = RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            num_attention_heads=shape.num_heads,
            intermediate_size=3 * shape.hidden_size,
            conv1d_width=shape.conv_kernel,
            block_types=["recurrent"],
            logits_soft_cap=1e6,
            tie_word_embeddings=False,
            **sizes,
        )
    )
    add_noise(peer, noise)
    ours = RGLRUForCausalLM(
        RGLRUConfig(
            num_heads=shape.num_heads,
            conv_kernel=shape.conv_kernel,
            norm_eps=peer.config.rms_norm_eps,
            channel_mixer="geglu",
            intermediate_size=peer.config.intermediate_size // 2,
            mlp_bias=True,
            **sizes,
        )
    )
    ours.load_state_dict(convert_recurrent_gemma(peer.state_dict(), peer.model.normalizer.float()))
    return ours, peer


@torch.no_grad()
def add_noise(model: PreTrainedModel, noise: float) -> None:
    """Add normal noise to every weight."""
    for parameter in model.parameters():
        parameter.add_(noise * torch.randn_like(parameter))


def convert_mamba(weights: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return Mamba's weights under the names of our S6."""
    converted = {
        "model.embed_tokens.weight": weights["backbone.embeddings.weight"],
        "model.norm.weight": weights["backbone.norm_f.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    for layer in range(num_layers):
        old, new = f"backbone.layers.{layer}.", f"model.layers.{layer}."
        block = {name.removeprefix(old): value for name, value in weights.items() if name.startswith(old)}
        converted |= {new + name: value for name, value in convert_mamba_block(block).items()}
    return converted


def convert_mamba_block(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return one block's weights; the fused projection is split into system input and gate, A_log is (n, d) here."""
    converted = {}
    for name, value in weights.items():
        if "in_proj" in name:
            converted[name], converted[name.replace("in_proj", "gate_proj")] = value.chunk(2)
        elif name.endswith("A_log"):
            converted[name] = value.t()
        else:
            converted[name.replace("conv1d", "conv").replace("dt_proj.bias", "dt_bias")] = value
    return converted


def convert_recurrent_gemma(weights: dict[str, Tensor], embedding_scale: Tensor) -> dict[str, Tensor]:
    """Return RecurrentGemma's weights under the names of our RG-LRU; its norms multiply by 1 + weight."""
    names = {
        "temporal_pre_norm": "norm",
        "channel_pre_norm": "channel_norm",
        "final_norm": "norm",
        "temporal_block": "mixer",
        "mlp_block": "channel_mixer",
        "rg_lru.": "",
        "linear_x": "in_proj",
        "linear_y": "gate_proj",
        "linear_out": "out_proj",
        "conv_1d": "conv",
    }
    converted = {}
    for name, value in weights.items():
        value = value + 1 if "norm.weight" in name else value
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        converted[name] = value
    converted["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * embedding_scale
    return converted


def convert_mamba2(weights: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return Mamba-2's weights under the names of our SSD; the fused projection is split into gate and system input."""
    inner = shape.num_heads * shape.head_dim
    converted = {
        "model.embed_tokens.weight": weights["backbone.embeddings.weight"],
        "model.norm.weight": weights["backbone.norm_f.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    for layer in range(shape.num_hidden_layers):
        old, new = f"backbone.layers.{layer}", f"model.layers.{layer}"
        gate, system = weights[f"{old}.mixer.in_proj.weight"].tensor_split([inner])
        converted |= {
            f"{new}.norm.weight": weights[f"{old}.norm.weight"],
            f"{new}.mixer.gate_proj.weight": gate,
            f"{new}.mixer.in_proj.weight": system,
            f"{new}.mixer.conv.weight": weights[f"{old}.mixer.conv1d.weight"],
            f"{new}.mixer.conv.bias": weights[f"{old}.mixer.conv1d.bias"],
            f"{new}.mixer.output_norm.weight": weights[f"{old}.mixer.norm.weight"],
            f"{new}.mixer.out_proj.weight": weights[f"{old}.mixer.out_proj.weight"],
        }
        converted |= {f"{new}.mixer.{name}": weights[f"{old}.mixer.{name}"] for name in ("A_log", "dt_bias", "D")}
    return converted


@torch.no_grad()
def largest_difference(ours: PreTrainedModel, peer: PreTrainedModel, input_ids: Tensor) -> float:
    """Return the largest difference of the logits, relative to the largest logit of the peer."""
    expected = peer(input_ids, use_cache=False).logits
    return float((ours(input_ids, use_cache=False).logits - expected).abs().max() / expected.abs().max())


PAIRS: dict[str, Callable[..., tuple[PreTrainedModel, PreTrainedModel]]] = {
    "rg_lru": build_rg_lru_and_recurrent_gemma,
    "s6": build_s6_and_mamba,
    "s6_mambapy": build_s6_and_mambapy,
    "ssd": build_ssd_and_mamba2,
}
"""Pair, named for our architecture -> builder of (ours, peer) from a `Shape`."""

WITHOUT_CACHE = (RecurrentGemmaForCausalLM,)
"""Peers that raise when asked for a cache, as RecurrentGemma does where no block is attention; they do not decode."""
