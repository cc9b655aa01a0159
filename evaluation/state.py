"""The size of what a model remembers, measured on the cache that it really keeps."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


@torch.no_grad()
def state_bytes(model: PreTrainedModel, input_ids: torch.Tensor) -> int | None:
    """Bytes of state per sequence after one forward pass.

    Args:
        model: any causal language model.
        input_ids: (sequences, length).

    Returns:
        The bytes of all tensors in the cache, over the number of sequences; None where the model returns no cache.
    """
    outputs = model(input_ids=input_ids, use_cache=True)
    # Its name depends on the model and on the release of transformers, which warns when asked for the older one.
    cache = next((outputs[name] for name in tuple(outputs.keys()) if name in _CACHE_NAMES), None)
    if cache is None:
        return None
    tensors = {id(tensor): tensor for layer in cache.layers for tensor in _tensors(vars(layer))}
    # A scalar counts tokens for the whole batch: it is no part of any sequence's state.
    return sum(t.numel() * t.element_size() for t in tensors.values() if t.ndim > 0) // len(input_ids)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
