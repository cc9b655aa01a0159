"""Generation from prompts padded on any side: transformers' `generate` reads the last slot, which must be a real token.

Letters: b batch, t time.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.generation import GenerationMixin

from .compat import CACHE_NAME

__all__ = ["DSFGenerationMixin"]


class DSFGenerationMixin(GenerationMixin):
    """transformers' generation, which expects padding on the left, for prompts that are padded anywhere."""

    def _assisted_decoding(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Decode with candidates; a filled cache is read anew, since transformers feeds it the whole sequence again.

        Raises:
            ValueError: only the tokens behind a filled cache were given, in which no candidate can be looked up.
        """
        cache, mask = kwargs.get(CACHE_NAME), kwargs.get("attention_mask")
        if cache is not None and (seen := int(cache.get_seq_length())) > 0:
            whole = getattr(kwargs["generation_config"], "_mask_length", 0) if mask is None else mask.shape[1]
            if input_ids.shape[1] < max(whole, seen + 1):
                raise ValueError(
                    f"assisted decoding needs the whole sequence, but {input_ids.shape[1]} tokens were given and "
                    f"{CACHE_NAME} holds {seen}: pass the tokens that it has seen, too."
                )
            cache.reset()
        idle = [layer for layer in getattr(cache, "layers", []) if not getattr(layer, "record_past", True)]
        try:
            return super()._assisted_decoding(input_ids, *args, **kwargs)
        finally:
            # Who goes on from the cache without an assistant need not pay for what only an assistant asks for.
            for layer in idle:
                layer.record_past = False

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as `GenerationMixin.generate` does; where a prompt ends in pads, its real tokens move to the right.

        The sequences that come back hold the prompt as it was given, and the new tokens behind it.

        Args:
            inputs: prompt ids (b, t); or give input_ids or inputs_embeds.
            args: further positional arguments of `GenerationMixin.generate`.
            kwargs: its further keywords; an attention_mask tells of the pads.

        Raises:
            ValueError: a prompt that goes on from a filled cache ends in a pad, or neither it nor the mask tells of the
                tokens in the cache.
        """
        mask, prompt = kwargs.get("attention_mask"), inputs if inputs is not None else kwargs.get("input_ids")
        for name in ("past_key_values", "cache"):
            if isinstance(kwargs.get(name), Cache):
                _check_past(name, int(kwargs[name].get_seq_length()), prompt, mask)
        if mask is None or mask.ndim != 2 or bool((mask[:, -1] != 0).all()):
            return super().generate(inputs, *args, **kwargs)
        order = torch.argsort((mask != 0).to(torch.uint8), dim=1, stable=True)
        for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds"):
            if kwargs.get(name) is not None:
                kwargs[name] = _reorder(kwargs[name], order)
        outputs = super().generate(None if inputs is None else _reorder(inputs, order), *args, **kwargs)
        if prompt is not None:
            sequences = outputs if isinstance(outputs, Tensor) else outputs.sequences
            copies = sequences.shape[0] // prompt.shape[0]
            sequences[:, : prompt.shape[1]] = prompt.repeat_interleave(copies, dim=0).to(sequences.device)
        return outputs

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # its parameters are read by name
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # transformers hands the tokenizer that finds stop strings on to the model, which reads none.
        read = {name: value for name, value in kwargs.items() if name not in ("tokenizer", "assistant_tokenizer")}
        return super().prepare_inputs_for_generation(*args, **read)

    def _prefill(
        self, input_ids: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        # transformers cuts a prompt of ids into chunks, but not one of embeddings: all but its last chunk is fed here.
        embeds, size = model_kwargs.get("inputs_embeds"), generation_config.prefill_chunk_size
        if embeds is not None and size is not None:
            past = int(model_kwargs[CACHE_NAME].get_seq_length())
            for stop in range(past + size, embeds.shape[1], size):
                self(**_chunk(model_kwargs, stop - size, stop), logits_to_keep=1)
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)

    def _get_static_cache_init_shape(self) -> None:
        # transformers would allocate keys and values alike; keys may be narrower, so the first write allocates both.
        return None


def _check_past(name: str, past: int, prompt: Tensor | None, mask: Tensor | None) -> None:
    """Raise where a prompt cannot go on from the `past` tokens of a cache."""
    if past == 0:
        return
    told = [x.shape[1] for x in (prompt, mask) if x is not None]
    if told and max(told) <= past:
        raise ValueError(
            f"input_ids and attention_mask tell of {max(told)} tokens, but {name} holds {past}: give the whole text, "
            "or the new tokens with an attention_mask over past and new ones."
        )
    if mask is not None and mask.ndim == 2 and not bool((mask[:, -1] != 0).all()):
        raise ValueError(
            f"attention_mask marks the last token of a prompt as a pad, and {name} is filled: tokens in a cache cannot "
            "be moved. Pad on the left."
        )


def _chunk(model_kwargs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Return what the model is given for the slots from `start` to `stop` of an embedded prompt."""
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    return {
        "inputs_embeds": model_kwargs["inputs_embeds"][:, start:stop],
        "attention_mask": None if mask is None else mask[:, :stop],
        "position_ids": None if positions is None else positions[..., start:stop],
        CACHE_NAME: model_kwargs[CACHE_NAME],
        "use_cache": True,
    }


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """Move the slots of x (b, t) or (b, t, d) into the order (b, t)."""
    order = order.to(x.device)
    return x.gather(1, order if x.ndim == 2 else order[..., None].expand_as(x))
