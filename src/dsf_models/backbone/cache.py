"""Cache layers for recurrent states: transformers' own Cache classes hold one of these for each layer.

Stock recurrent layers do not count tokens, so `generate` breaks on models without attention; these do. They register
themselves under the names that `DSFConfig.layer_types` gives.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    STATIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionLayer,
)

from .compat import CACHE_NAME
from .history import History, Snapshot

__all__ = ["DSFAttentionLayer", "DSFSlidingLayer", "DSFStateLayer", "DSFStaticAttentionLayer", "checked_layer"]


class _DSFLayer:
    """What our layers share: the convolution window (b, K - 1, d), and how tokens are taken back."""

    is_croppable = True

    @property
    def is_compileable(self) -> bool:
        """Whether decoding may be compiled: not while the past is recorded."""
        return not self.record_past

    def read_window(self, index: int = 0) -> Tensor | None:
        """Return the last K - 1 convolution inputs (or the window of another index), or None before the first write."""
        return self.conv_states[index] if self.has_previous_state[index] else None

    def write_window(self, window: Tensor, index: int = 0) -> None:
        """Store the window in place (a static address, for compiled decoding)."""
        if not self.is_conv_states_initialized[index]:
            LinearAttentionLayer.lazy_initialization(self, conv_states=window, state_idx=index)
        self.conv_states[index].copy_(window.detach())
        self.has_previous_state[index] = True

    def _map_states(self, function: Callable[[Tensor], Tensor]) -> None:
        self.history.clear()
        for states in (self.conv_states, self.recurrent_states):
            for index, value in states.items():
                if value is not None:
                    states[index] = function(value)

    # ---- taking tokens back ----------------------------------------------------------------------------------------

    @functools.cached_property
    def history(self) -> History:
        """What the layer remembers while it records."""
        return History()

    @property
    def record_past(self) -> bool:
        """Whether the layer remembers what `crop` needs: from `activate_past_recording` on."""
        return self._record_past

    @record_past.setter
    def record_past(self, value: bool) -> None:
        self._record_past = value
        if not value:
            self.history.clear()

    def snapshot(self) -> Snapshot:
        """Return copies of window and state; what was never written is left out."""
        return {
            (name, index): value.clone()
            for name in ("conv_states", "recurrent_states")
            for index, value in getattr(self, name).items()
            if value is not None and self.has_previous_state[index]
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Bring window and state back, in place."""
        for name in ("conv_states", "recurrent_states"):
            for index, value in getattr(self, name).items():
                if value is None:
                    continue
                if (name, index) in snapshot:
                    value.copy_(snapshot[name, index])
                else:
                    value.zero_()
                    self.has_previous_state[index] = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back, so that window and state are those that the tokens before them led to.

        Args:
            tokens_to_remove: minus the number of tokens (slots, pads among them).

        Raises:
            ValueError: the number is positive.
            RuntimeError: the layer did not record the tokens.
        """
        # transformers subtracts a length from `get_seq_length`, which is a tensor.
        tokens_to_remove = int(tokens_to_remove)
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give minus the number of tokens to take back.")
        if tokens_to_remove < 0 and not self.record_past:
            raise RuntimeError(
                f"crop({tokens_to_remove}): a recurrent state or convolution window can be rolled back only if it was "
                "recorded: call activate_past_recording() on the cache before it sees tokens that may be taken back."
            )
        self.history.take_back(self, -tokens_to_remove)

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        self.history.clear()
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows in the order `beam_idx`."""
        self.history.clear()
        super().reorder_cache(beam_idx)


class DSFStateLayer(_DSFLayer, LinearAttentionLayer, CacheLayerMixin):
    """Recurrent state and convolution window of one layer, with the number of tokens seen."""

    _layer_type = "dsf_state"
    supports_early_init = False
    is_sliding = False

    def __init__(self, number_of_states: int = 1, **kwargs: Any) -> None:
        CacheLayerMixin.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        self.is_initialized = False
        # A tensor: a Python integer would make a compiled decoding step specialise on every length.
        self.cumulative_length = torch.tensor(0, dtype=torch.long)

    def read_state(self) -> Tensor | None:
        """Return the recurrent state, or None before the first write."""
        if not (self.is_initialized and self.has_previous_state[0]):
            return None
        # Where gradients are computed, backward needs the state that `write_state` is about to overwrite.
        return self.recurrent_states[0].clone() if torch.is_grad_enabled() else self.recurrent_states[0]

    def write_state(self, state: Tensor, num_tokens: int) -> None:
        """Store the recurrent state in place, detached, and count the tokens that led to it."""
        if not self.is_recurrent_states_initialized[0]:
            self.lazy_initialization(recurrent_states=state)
        if state is not self.recurrent_states[0]:
            self.recurrent_states[0].copy_(state.detach())
        self.has_previous_state[0] = True
        self.cumulative_length.add_(num_tokens)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Allocate the states; the device comes from whichever is written first."""
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)
        states = [*self.conv_states.values(), *self.recurrent_states.values()]
        reference = next(state for state in states if state is not None)
        self.dtype, self.device = reference.dtype, reference.device
        if not self.is_initialized:
            self.cumulative_length = self.cumulative_length.to(reference.device)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(self.cumulative_length)
            self.is_initialized = True

    def update(
        self, key_states: Tensor | None, value_states: Tensor | None, *args: Any, **kwargs: Any
    ) -> tuple[None, None]:
        """Accept the empty update by which DataParallel rebuilds a cache.

        Raises:
            NotImplementedError: keys and values were given; a recurrent layer keeps none.
        """
        if key_states is None and value_states is None:
            return None, None
        raise NotImplementedError("a recurrent layer keeps no keys and values: use write_state and write_window.")

    def get_seq_length(self) -> Tensor | int:
        """Return the number of tokens seen."""
        return self.cumulative_length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[Tensor | int, int]:
        """Return the length and offset that a mask over the whole past would have."""
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        super().reset()
        self.cumulative_length.zero_()

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back, as `_DSFLayer.crop` does, and count them off."""
        length = self.cumulative_length + tokens_to_remove
        super().crop(tokens_to_remove)
        self.cumulative_length.copy_(length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._map_states(lambda state: state[indices])


class DSFSlidingLayer(DSFStateLayer):
    """Keys and values of the last real tokens that sliding-window attention still sees, and the convolution's window.

    transformers' own sliding layers keep the last slots, pads among them; in these a pad pushes no token out.
    """

    _layer_type = "dsf_sliding"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(number_of_states=2)

    def read_keys(self) -> Tensor | None:
        """Return keys and values side by side (b, W - 1, d), or None before the first write."""
        return self.read_window(1)

    def write_keys(self, keys: Tensor, num_tokens: int) -> None:
        """Store keys and values in place, and count the tokens that led to them."""
        if not self.is_conv_states_initialized[1]:
            self.lazy_initialization(conv_states=keys, state_idx=1)
        self.write_window(keys, 1)
        self.cumulative_length.add_(num_tokens)


class DSFAttentionLayer(_DSFLayer, LinearAttentionAndFullAttentionLayer):
    """Growing keys and values of a softmax layer with a short convolution, and the convolution's window."""

    _layer_type = "dsf_attention"
    is_compileable = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back from window, keys and values."""
        super().crop(tokens_to_remove)
        DynamicLayer.crop(self, tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_states(lambda state: state.repeat_interleave(repeats, dim=0))
        DynamicLayer.batch_repeat_interleave(self, repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._map_states(lambda state: state[indices])
        DynamicLayer.batch_select_indices(self, indices)


class DSFStaticAttentionLayer(_DSFLayer, LinearAttentionAndStaticFullAttentionLayer):
    """Preallocated keys and values of a softmax layer with a short convolution, and the convolution's window."""

    _layer_type = "dsf_attention"

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back from window, keys and values."""
        super().crop(tokens_to_remove)
        # What lies behind the length is written over; on transformers 5.23 static layers cannot be cropped.
        self.cumulative_length.add_(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_states(lambda state: state.repeat_interleave(repeats, dim=0))
        self._map_keys(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self._map_states(lambda state: state[indices])
        self._map_keys(lambda tensor: tensor[indices])

    def _map_keys(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.keys, self.values = function(self.keys), function(self.values)
            self.batch_size = self.keys.shape[0]


STATIC_LAYER_TYPE_MAPPING["dsf_state"] = DSFStateLayer
STATIC_LAYER_TYPE_MAPPING["dsf_sliding"] = DSFSlidingLayer


def checked_layer(
    cache: Cache, layer_idx: int, kind: type = _DSFLayer
) -> DSFStateLayer | DSFAttentionLayer | DSFStaticAttentionLayer:
    """Return the cache layer of a mixer, which must be of this kind.

    Raises:
        ValueError: the cache was built without the model's configuration, so it holds keys and values instead of
            states.
    """
    layer = cache.layers[layer_idx] if layer_idx < len(cache.layers) else None
    # By name: checkpoints that bring their code bring these classes each, and the last one loaded makes all caches.
    if not any(base.__name__ == kind.__name__ for base in type(layer).__mro__):
        raise ValueError(
            f"{CACHE_NAME} holds {'nothing' if layer is None else type(layer).__name__} for layer {layer_idx}, where a "
            "recurrent state or a convolution window belongs: "
            f"build it with {type(cache).__name__}(config=model.config, …)."
        )
    return layer
