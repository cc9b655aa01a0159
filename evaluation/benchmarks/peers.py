"""The models that are compared: those of transformers with their twins here, and any architecture of the zoo.

A pair is one model in two implementations: the peer's weights are converted, and its logits are compared before
anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)
from transformers.utils.import_utils import is_mambapy_available

from dsf_models.analysis.accounting import state_bytes
from dsf_models.backbone import DSFConfig, get_architecture
from dsf_models.hub.conversion import FAMILIES

__all__ = [
    "PEERS",
    "TWINS",
    "Shape",
    "build_pair",
    "build_peer",
    "build_zoo",
    "largest_difference",
    "ssd_of_equal_state",
]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that all models share."""

    vocab_size: int = 1024
    hidden_size: int = 256
    num_hidden_layers: int = 4


def _mamba2(shape: Shape) -> PreTrainedConfig:
    return Mamba2Config(**vars(shape), num_heads=8, head_dim=shape.hidden_size // 4, n_groups=1, residual_in_fp32=False)


def _mamba(shape: Shape, use_mambapy: bool = False) -> PreTrainedConfig:
    if use_mambapy and not is_mambapy_available():
        raise ImportError("mambapy is not installed, and Mamba would silently run its loop: pip install mambapy.")
    return MambaConfig(**vars(shape), use_mambapy=use_mambapy, residual_in_fp32=False)


def _recurrent_gemma(shape: Shape) -> PreTrainedConfig:
    return RecurrentGemmaConfig(
        **vars(shape),
        block_types=["recurrent"],
        intermediate_size=3 * shape.hidden_size,
        num_attention_heads=4,
    )


def _llama(shape: Shape) -> PreTrainedConfig:
    return LlamaConfig(
        **vars(shape), intermediate_size=3 * shape.hidden_size, num_attention_heads=8, max_position_embeddings=32768
    )


PEERS: dict[str, Callable[[Shape], PreTrainedConfig]] = {
    "Mamba": _mamba,
    "Mamba with mambapy": lambda shape: _mamba(shape, use_mambapy=True),
    "Mamba-2": _mamba2,
    "RecurrentGemma": _recurrent_gemma,
    "Llama": _llama,
}
"""Models of transformers that have a twin here, by the name that tables give them."""
TWINS = {"s6": "Mamba", "ssd": "Mamba-2", "rg_lru": "RecurrentGemma", "softmax_attention": "Llama"}
"""Architecture here -> the peer whose sizes it takes in the curves."""


def build_peer(name: str, shape: Shape, noise: float = 0.0) -> PreTrainedModel:
    """Return a freshly initialised model of transformers.

    Args:
        name: a key of `PEERS`.
        shape: its sizes.
        noise: standard deviation of what is added to every weight, so that those that start at 0 or 1 take part.
    """
    peer = AutoModelForCausalLM.from_config(PEERS[name](shape))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return peer.eval()


def build_pair(name: str, shape: Shape, noise: float = 0.0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our twin of a peer, and the peer, with one set of weights; arguments as for `build_peer`."""
    peer = build_peer(name, shape, noise)
    family = next(family for family in FAMILIES if isinstance(peer.config, family.source_config))
    config = family.dsf_config(peer.config)
    ours = family.model_class(config)(config)
    ours.load_state_dict(family.dsf_weights(peer.state_dict(), peer.config), strict=not config.tie_word_embeddings)
    return ours.eval(), peer


def build_zoo(name: str, shape: Shape, **fields: object) -> PreTrainedModel:
    """Return a freshly initialised model of an architecture here, with the defaults of its configuration."""
    architecture = get_architecture(name)
    return architecture.causal_lm_class(architecture.config_class(**vars(shape), **fields)).eval()


def ssd_of_equal_state(config: DSFConfig) -> PreTrainedModel:
    """Return an SSD model of the same inner width and convolution whose state takes nearly as many bytes."""
    shape = Shape(**{name: getattr(config, name) for name in vars(Shape())})
    fields = {"expand": config.expand, "num_heads": 8, "conv_kernel": config.conv_kernel}
    target = state_bytes(config, 1024)
    config_class = get_architecture("ssd").config_class

    def distance(states: int) -> int:
        return abs(state_bytes(config_class(**vars(shape), **fields, state_size=states), 1024) - target)

    most = max(1, target // (4 * config.inner_size * config.num_hidden_layers))
    return build_zoo("ssd", shape, state_size=min(range(max(1, most - 8), most + 1), key=distance), **fields)


@torch.no_grad()
def largest_difference(ours: PreTrainedModel, peer: PreTrainedModel, input_ids: Tensor) -> float:
    """Return the largest difference of the logits, relative to the largest logit of the peer."""
    expected = peer(input_ids, use_cache=False).logits
    return float((ours(input_ids, use_cache=False).logits - expected).abs().max() / expected.abs().max())
