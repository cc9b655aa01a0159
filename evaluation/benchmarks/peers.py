"""Pairs of models to compare: one of ours and its peer in transformers, at the same shape and with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from dsf_models import SSDForCausalLM
from dsf_models.hub.conversion import MAMBA2

__all__ = ["PAIRS", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that a pair of models shares."""

    vocab_size: int = 1024
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_heads: int = 8
    head_dim: int = 64
    state_size: int = 128
    expand: int = 2
    conv_kernel: int = 4


def build_ssd_and_mamba2(shape: Shape, noise: float = 0.0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return our SSD and transformers' Mamba-2 with one set of weights.

    Args:
        shape: sizes of both.
        noise: standard deviation of what is added to every weight, so that those that start at 0 or 1 take part.
    """
    fields = vars(shape)
    peer = Mamba2ForCausalLM(Mamba2Config(n_groups=1, residual_in_fp32=False, **fields))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    ours = SSDForCausalLM(MAMBA2.dsf_config(peer.config))
    ours.load_state_dict(MAMBA2.dsf_weights(peer.state_dict(), peer.config))
    return ours, peer


@torch.no_grad()
def largest_difference(ours: PreTrainedModel, peer: PreTrainedModel, input_ids: Tensor) -> float:
    """Return the largest difference of the logits, relative to the largest logit of the peer."""
    expected = peer(input_ids, use_cache=False).logits
    return float((ours(input_ids, use_cache=False).logits - expected).abs().max() / expected.abs().max())


PAIRS: dict[str, Callable[..., tuple[PreTrainedModel, PreTrainedModel]]] = {"ssd": build_ssd_and_mamba2}
"""Architecture -> builder of (ours, peer) from a `Shape`."""
