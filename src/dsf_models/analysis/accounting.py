"""What a configuration costs before anything is built: parameters, state bytes and floating-point operations.

Nothing here knows an architecture: sizes come from the model without data (on the meta device), from the mixers, and
from the kernel of each structure of Λ. Counted are matrix products, the short convolution and the core of each layer;
norms, activations, biases and sums of the residual stream are not.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..backbone import DSFConfig, DSFForCausalLM, get_architecture
from ..backbone.registry import mixer_class
from ..engine import Flops, compute_dtype

__all__ = [
    "Parameters",
    "count_parameters",
    "decoding_flops",
    "has_bounded_state",
    "prefill_flops",
    "state_bytes",
    "training_flops",
]

_LONG = 2**24
"""Tokens: more than any window of local attention holds."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a language model."""

    body: int
    """Blocks and final norm."""
    embedding: int
    """Tokens and learned positions."""
    head: int
    """Projection to the vocabulary; 0 where it shares the embedding's weights."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.body + self.embedding + self.head


def count_parameters(config: DSFConfig) -> Parameters:
    """Return the numbers of parameters of the language model that a configuration describes."""
    model = _without_data(config)
    base = model.base_model
    embedding = sum(_size(module) for module in (base.embed_tokens, base.embed_positions) if module is not None)
    head = 0 if config.tie_word_embeddings else _size(model.lm_head)
    return Parameters(body=_size(base) - embedding, embedding=embedding, head=head)


def state_bytes(config: DSFConfig, length: int, dtype: torch.dtype | None = None) -> int:
    """Return the bytes that the cache holds for one sequence, over all layers.

    Recurrent states do not depend on the length and are held in at least float32; windows of convolutions, keys and
    values are held in the model's dtype. One token counter a layer, which all sequences share, is left out.

    Args:
        config: any configuration.
        length: tokens seen so far.
        dtype: of the model. Default: config.dtype, or float32.
    """
    dtype = dtype or config.dtype or torch.float32
    # save_pretrained leaves the name of the dtype in the configuration of the model that it saves.
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    total = 0
    for layer_config in _layers(config):
        shapes = mixer_class(layer_config).cache_shapes(layer_config, length)
        total += compute_dtype(dtype).itemsize * sum(map(math.prod, shapes.states))
        total += dtype.itemsize * sum(map(math.prod, shapes.activations))
    return total


def has_bounded_state(config: DSFConfig) -> bool:
    """Return whether the state of a sequence stops growing, so that the cost of a sequence is linear in its length."""
    return state_bytes(config, 2 * _LONG) == state_bytes(config, _LONG)


def training_flops(config: DSFConfig, length: int) -> Flops:
    """Return what one training step costs for one sequence: three forward passes.

    Each product Y = A B of the forward pass is followed by two of its size, for the gradients of A and B. Left out are
    what a kernel computes again to save memory, and the gradient of a triangular solve.
    """
    return (_body_flops(config, length) + _head_flops(config) * length) * 3


def prefill_flops(config: DSFConfig, length: int) -> Flops:
    """Return what reading a prompt costs, with the logits of its last token alone, as generation computes them."""
    return _body_flops(config, length) + _head_flops(config)


def decoding_flops(config: DSFConfig, context: int) -> Flops:
    """Return what one new token costs behind `context` earlier ones."""
    return _body_flops(config, 1, context) + _head_flops(config)


def _body_flops(config: DSFConfig, length: int, context: int = 0) -> Flops:
    base = _without_data(config).base_model
    channel_mixers = (base.input_mixer, *(block.channel_mixer for block in base.layers))
    linear = (module for mixer in channel_mixers if mixer is not None for module in mixer.modules())
    total = sum(map(_flops_of_linear, linear), Flops()) * length
    for layer in _layers(config):
        mixer = mixer_class(layer)
        total += mixer.token_flops(layer) * length + mixer.core_flops(layer, length, context)
    return total


def _head_flops(config: DSFConfig) -> Flops:
    return Flops(matmul=2 * config.hidden_size * config.vocab_size)


def _flops_of_linear(module: nn.Module) -> Flops:
    """Return what a module costs for each token, if it is a projection; 0 for all others."""
    return Flops(matmul=2 * module.weight.numel()) if isinstance(module, nn.Linear) else Flops()


def _layers(config: DSFConfig) -> list[DSFConfig]:
    return [config.layer_config(index) for index in range(config.num_hidden_layers)]


def _without_data(config: DSFConfig) -> DSFForCausalLM:
    with torch.device("meta"):
        return get_architecture(config.model_type.removeprefix("dsf_")).causal_lm_class(config)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
