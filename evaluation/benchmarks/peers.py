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

from dsf_models import RGLRUConfig, RGLRUForCausalLM, S6ForCausalLM, SSDForCausalLM
from dsf_models.hub.conversion import MAMBA, MAMBA2

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
    ours = SSDForCausalLM(MAMBA2.dsf_config(peer.config))
    ours.load_state_dict(MAMBA2.dsf_weights(peer.state_dict(), peer.config))
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
    ours = S6ForCausalLM(MAMBA.dsf_config(peer.config))
    ours.load_state_dict(MAMBA.dsf_weights(peer.state_dict(), peer.config))
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
