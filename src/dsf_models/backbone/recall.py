"""Associative recall by weights that are written down, not learned: a network between two time-invariant mixers.

A sequence k_1 v_1 … k_P v_P q holds pairs of words and a query, one of the keys; the answer is its value. A word w has
a code e(w) in {-1, 1}^m, m = ⌈log2 |W|⌉, the bits of w. From the input on, the model is

    Emb     code and type: one flag each for query, key and value
    FNN1    routes the code to the channels of its type:  ReLU(e + flag - 1) - ReLU(-e + flag - 1)
    SSM1    broadcasts the query (λ = 1, both ways), delays the key by one token (short convolution), keeps the value
    FNN2    compares and gates:  s = ReLU(Σ_b |q_b + k_b| - 2m + 1) in {0, 1},  ReLU(v + s - 1) - ReLU(-v + s - 1)
    SSM2    sums (λ = 1)
    head    scores e(w)^T y: m for the answer, at most m - 2 for every other word

It is exact for every number of pairs. Its two networks have 44 m + 1 weights that are not zero, the largest 2m - 1.

The construction is this project's own; that two such layers solve recall is a theorem of Nishikawa & Suzuki 2025 (arXiv
2405.19036), whose construction may differ.

Letters: m code bits, |W| words.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import require
from .layers import MLPChannelMixer
from .modeling import DSFBlock

__all__ = ["RecallConstructionMixin"]

QUERY, KEY, VALUE = range(3)


class RecallConstructionMixin:
    """Adds `from_construction` to the sequence classifier of a time-invariant architecture.

    Its mixer has `write_filters(sums)`: channels where the mask holds become sums over all tokens, the others pass.
    """

    @classmethod
    def from_construction(cls, vocab_size: int, **fields: Any) -> Self:
        """Return the network that recalls a value by its key, its weights set by hand.

        Args:
            vocab_size: |W|, the number of words. Token ids: w for the word as a key, |W| + w as a value, 2|W| + w as
                the query; the label is the word.
            fields: further fields of the configuration, such as those that an ablation changes.

        Returns:
            The model, in float32 and evaluation mode; it saves and loads as every other.

        Raises:
            ValueError: fewer than two words.
        """
        require(vocab_size >= 2, "vocab_size", vocab_size, "give at least two words to tell apart.")
        bits = (vocab_size - 1).bit_length()
        model = cls(cls.config_class(**_recall_fields(vocab_size, bits) | fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            code = _codes(vocab_size, bits)
            _write_embedding(model.model.embed_tokens.weight, code)
            if model.model.input_mixer is not None:
                _write_router(model.model.input_mixer.channel_mixer, bits)
            first, second = model.model.layers
            _write_mixer(first, bits, summed=QUERY, delayed=KEY)
            if first.channel_mixer is not None:
                _write_gate(first.channel_mixer, bits)
            _write_mixer(second, bits, summed=VALUE)
            model.score.weight[:, _channels(VALUE, bits)] = code
        return model.eval()


def _recall_fields(vocab_size: int, bits: int) -> dict[str, Any]:
    """Return the fields of FNN ∘ SSM ∘ FNN ∘ SSM ∘ FNN without residual stream, norms and gates."""
    width = max(3 * bits, bits + 3)
    return {
        "vocab_size": 3 * vocab_size,
        "num_labels": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "state_size": bits,
        "expand": 1,
        "bidirectional": True,
        "conv_kernel": 2,
        "conv_bias": False,
        "gate": "none",
        "output_norm": "none",
        "use_bias": False,
        "channel_mixer": "mlp",
        "channel_mixer_depth": [1, 3, 0],
        "pre_channel_mixer": True,
        "intermediate_size": 6 * bits,
        "hidden_act": "relu",
        "mlp_bias": True,
        "residual": False,
        "norm": "none",
    }


def _codes(vocab_size: int, bits: int) -> Tensor:
    """Return e(w) for every word, (|W|, m) of -1 and 1."""
    return 2.0 * ((torch.arange(vocab_size)[:, None] >> torch.arange(bits)) & 1) - 1.0


def _channels(kind: int, bits: int) -> slice:
    """Return the channels of the code of queries, keys or values."""
    return slice(kind * bits, (kind + 1) * bits)


def _write_embedding(weight: Tensor, code: Tensor) -> None:
    words, bits = code.shape
    weight[:, :bits] = code.repeat(3, 1)
    for block, kind in enumerate((KEY, VALUE, QUERY)):
        weight[block * words : (block + 1) * words, bits + kind] = 1.0


def _write_router(network: MLPChannelMixer, bits: int) -> None:
    """FNN1: the code of a token goes to the channels of its type, its other channels are 0."""
    for kind in (QUERY, KEY, VALUE):
        for row, sign in ((2 * kind * bits, 1.0), ((2 * kind + 1) * bits, -1.0)):
            rows = torch.arange(row, row + bits)
            network.up_proj.weight[rows, torch.arange(bits)] = sign
            network.up_proj.weight[rows, bits + kind] = 1.0
            network.up_proj.bias[rows] = -1.0
            network.down_proj.weight[torch.arange(bits) + kind * bits, rows] = sign


def _write_gate(network: MLPChannelMixer, bits: int) -> None:
    """FNN2: the value passes where the key before it is the query, else 0."""
    bit = torch.arange(bits)
    plus, minus = bit, bits + bit
    match, value, passed = network.up_proj.weight, _channels(VALUE, bits).start + bit, 2 * bits + bit
    for rows, sign in ((plus, 1.0), (minus, -1.0)):
        match[rows, bit] = match[rows, bits + bit] = sign
        match[rows + 2 * bits, value] = sign
    second, third = network.hidden_projs
    second.weight[0, : 2 * bits] = 1.0
    second.bias[0] = 1.0 - 2 * bits
    for offset in (0, bits):
        second.weight[1 + offset + bit, passed + offset] = 1.0
    for rows, sign in ((plus, 1.0), (minus, -1.0)):
        third.weight[rows, 0] = 1.0
        third.weight[rows, 1 + bit], third.weight[rows, 1 + bits + bit] = sign, -sign
        third.bias[rows] = -1.0
        network.down_proj.weight[value, rows] = sign


def _write_mixer(block: DSFBlock, bits: int, summed: int, delayed: int | None = None) -> None:
    """Let a mixer sum the channels of one kind over all tokens; the others pass, those of another kind a token late."""
    mixer, width = block.token_mixer, block.token_mixer.config.hidden_size
    sums = torch.zeros(width, dtype=torch.bool)
    sums[_channels(summed, bits)] = True
    mixer.write_filters(sums)
    nn.init.eye_(mixer.out_proj.weight)
    taps = mixer.conv.weight[:, 0]
    taps[:, 1] = 1.0
    if delayed is not None:
        taps[_channels(delayed, bits)] = torch.tensor([1.0, 0.0])
