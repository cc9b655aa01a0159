"""Generation as users ask for it, on every architecture: every way of decoding, from prompts padded anywhere."""

import gc
import resource

import pytest
import torch
from transformers import DynamicCache, StaticCache

from dsf_models import list_architectures
from tests import contract
from tests.contract import (
    CACHE_NAME,
    GENERATION,
    PAD,
    PADDING,
    TOLERANCE,
    assert_close,
    fresh,
    generate,
    padding_mask,
    place,
    sequences,
    shared,
)

EVERY_NAME = pytest.mark.parametrize("name", list_architectures())
TITLES = {
    "greedy": "Greedy decoding",
    "sampling": "Sampling",
    "several samples": "Several samples of a prompt (num_return_sequences)",
    "beams": "Beam search",
    "sampled beams": "Beam search with sampling",
    "static cache": "Static cache",
    "static cache, beams": "Static cache",
    "prefill in chunks": "Prefill in chunks (prefill_chunk_size)",
    "prefill in chunks, static cache": "Prefill in chunks (prefill_chunk_size)",
}
EVERY_WAY = pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.feature(TITLES[how])) for how in GENERATION]
)
LENGTHS = (6, 4)


def model_of(name):
    """Return a model that rotates queries and keys, if it can, and else has all the parts of a block."""
    return shared(name, "rope" if "rope" in contract.variants(name) else "full")


def prompts(side):
    """Return two prompts padded at one side, as `generate` takes them."""
    mask = padding_mask(side, LENGTHS)
    return {"ids": place(sequences(LENGTHS), mask, PAD), "attention_mask": mask.long()}


def new_tokens(model, inputs, **options):
    """Return the six new tokens behind each prompt."""
    return generate(model, **inputs, **options)[:, -6:]


@EVERY_NAME
@EVERY_WAY
@torch.no_grad()
def test_padding_makes_no_difference(name, how):
    """Prompts padded left, right or in between, and prompts given as embeddings, go on alike."""
    model, options = model_of(name), GENERATION[how]
    expected = new_tokens(model, prompts("left"), **options)
    for side in ("right", "interior"):
        assert torch.equal(new_tokens(model, prompts(side), **options), expected), side
    embedded = prompts("left")
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("ids"))
    assert torch.equal(new_tokens(model, embedded, **options), expected)


@EVERY_NAME
@pytest.mark.parametrize("how", [how for how, options in GENERATION.items() if "do_sample" not in options])
@pytest.mark.feature("Batch of prompts = each prompt alone")
@torch.no_grad()
def test_a_batch_goes_on_as_its_rows_do_alone(name, how):
    model, options = model_of(name), GENERATION[how]
    alone = [new_tokens(model, {"ids": row[None]}, **options) for row in sequences(LENGTHS)]
    assert torch.equal(new_tokens(model, prompts("left"), **options), torch.cat(alone))


@EVERY_NAME
@pytest.mark.feature("Prompts padded on any side")
@pytest.mark.parametrize("side", PADDING)
@torch.no_grad()
def test_the_prompt_comes_back_as_it_was_given(name, side):
    inputs = prompts(side)
    found = generate(model_of(name), **inputs, num_beams=2, num_return_sequences=2)
    assert torch.equal(found[:, :-6], inputs["ids"].repeat_interleave(2, dim=0))


@EVERY_NAME
@pytest.mark.feature("A cache of one's own, reset and used again")
@torch.no_grad()
def test_a_cache_of_ones_own(name):
    model, inputs = model_of(name), prompts("right")
    expected = generate(model, **inputs)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
        for _ in range(2):
            assert torch.equal(generate(model, **inputs, **{CACHE_NAME: cache}), expected)
            cache.reset()
            assert int(cache.get_seq_length()) == 0


@EVERY_NAME
@pytest.mark.feature("Going on from a returned cache")
@pytest.mark.parametrize("how", ["greedy", "sampling", "prefill in chunks"])
@torch.no_grad()
def test_generation_goes_on(name, how):
    """In turns, as a chat does, from the cache that the last turn returned."""
    model, options = model_of(name), GENERATION[how]
    inputs, further = prompts("left"), torch.stack(sequences((3, 3), seed=7))
    turn = generate(model, **inputs)
    ids = torch.cat([turn, further], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 9), value=1)
    expected = generate(model, ids, attention_mask=mask, **options)
    for seen in (0, turn.shape[1] - 1):
        first = generate(model, **inputs, return_dict_in_generate=True)[CACHE_NAME]
        found = generate(model, ids[:, seen:], attention_mask=mask, **{CACHE_NAME: first}, **options)
        assert torch.equal(found[:, -6:], expected[:, -6:])


@pytest.mark.parametrize("mask", [{}, {"attention_mask": torch.ones(1, 2, dtype=torch.long)}], ids=["none", "short"])
@torch.no_grad()
def test_new_tokens_need_the_mask_of_the_whole_text(mask):
    model, cache = model_of("ssd"), contract.new_cache(model_of("ssd"))
    model(sequences((5,))[0][None], use_cache=True, **cache)
    with pytest.raises(ValueError, match=r"tell of 2 tokens, but \w+ holds 5"):
        generate(model, torch.tensor([[1, 2]]), **mask, **cache)


@EVERY_NAME
@pytest.mark.feature("Decoding loops of one's own (custom_generate)")
@torch.no_grad()
def test_a_decoding_loop_of_ones_own(name):
    """As transformers plugs in what it moved to the Hub: diverse (group) beam search, contrastive search, DoLa."""

    def loop(model, input_ids, stopping_criteria, generation_config, **kwargs):
        while not stopping_criteria(input_ids, None).all():
            inputs = model.prepare_inputs_for_generation(input_ids, use_cache=False)
            input_ids = torch.cat([input_ids, model(**inputs).logits[:, -1:].argmax(-1)], dim=1)
        return input_ids

    model, ids = model_of(name), torch.stack(sequences((5, 5)))
    assert torch.equal(generate(model, ids, custom_generate=loop), generate(model, ids))


def test_diverse_beam_search_says_where_it_is():
    """transformers' own code for it is a repository of the Hub, to be trusted and downloaded."""
    with pytest.raises(ValueError, match="transformers-community/group-beam-search"):
        generate(model_of("ssd"), sequences()[0][None], num_beams=4, num_beam_groups=2, diversity_penalty=1.0)


# ---- streams ---------------------------------------------------------------------------------------------------------


def streaming_model(name):
    """Return a model whose cache has one size, which attention has with a window."""
    window = {"sliding_window": 8}
    changes = {"softmax_attention": window, "hybrid": {"mixer_options": {"softmax_attention": window}}}.get(name, {})
    if name == "hybrid":
        changes["mixers"] = ["ssd", "softmax_attention"]
    return fresh(name, "default", **changes).double()


def stream(model, ids, piece):
    """Return the last logits behind a stream that is fed in pieces, and the bytes of the cache after each of them."""
    cache, sizes = DynamicCache(config=model.config), []
    for part in ids.split(piece, dim=1):
        logits = model(part, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache}).logits
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in held(cache)))
    assert int(cache.get_seq_length()) == ids.shape[1]
    return logits, sizes


def held(cache):
    """Yield every tensor that a cache holds."""
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, torch.Tensor):
                    yield tensor


STREAMS = pytest.mark.feature("Streams of any length in constant memory (attention: with sliding_window)")


@EVERY_NAME
@STREAMS
@torch.no_grad()
def test_streams_in_pieces(name):
    model, ids = streaming_model(name), sequences((300,))[0][None]
    expected = model(ids, use_cache=False).logits[:, -1:]
    for piece in (128, 37):
        logits, sizes = stream(model, ids, piece)
        assert_close(logits, expected, TOLERANCE[torch.float64], f"pieces of {piece}")
        assert len(set(sizes)) == 1


def alive():
    """Return the bytes of all tensors that are reachable."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@EVERY_NAME
@STREAMS
@pytest.mark.slow
@torch.no_grad()
def test_a_million_tokens(name):
    """Whatever the pieces, the answer is the same, and neither the cache nor the process grows on the way."""
    model, ids, found = streaming_model(name), sequences((1_000_000,))[0][None], []
    stream(model, ids[:, :50_000], 1024)
    before, peak = alive(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for piece in (1024, 777):
        logits, sizes = stream(model, ids, piece)
        assert len(set(sizes)) == 1
        found.append(logits)
        assert alive() - before < 2**16
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**14, "more than 16 MiB"
    assert_close(found[0], found[1], 1e-9)
