"""Tokens that are taken back from a cache leave no trace, in any order of feeding and taking back."""

import copy
import random

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from dsf_models import list_architectures
from dsf_models.backbone import history
from dsf_models.backbone.compat import CACHE_NAME
from tests import contract
from tests.contract import VOCAB, assert_close, every, new_cache, shared

LENGTH = 20
"""Tokens of a sequence, fewer than the small configurations' longest."""


def recording(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache that records."""
    cache = new_cache(model)[CACHE_NAME]
    cache.activate_past_recording()
    return cache


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def feed(model: PreTrainedModel, cache: DynamicCache, ids: Tensor, mask: Tensor | None = None, **inputs: Tensor):
    """Return the logits of further tokens; the mask is that of the whole sequence."""
    seen = int(cache.get_seq_length()) + ids.shape[1]
    masks = {} if mask is None else {"attention_mask": mask[:, :seen]}
    return model(ids, use_cache=True, **{CACHE_NAME: cache}, **masks, **inputs).logits


def remembered(cache: DynamicCache) -> list[history.History]:
    """Return what the layers remember; those that keep all keys and values need not."""
    return [layer.history for layer in cache.layers if hasattr(layer, "history")]


def states(cache: DynamicCache) -> list[Tensor]:
    """Return all states and windows."""
    held = [
        list(values.values())
        for layer in cache.layers
        for values in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {}))
    ]
    return [state.clone() for values in held for state in values if state is not None]


def wander(model: PreTrainedModel, cache: DynamicCache, ids: Tensor, seed: int, mask: Tensor | None = None) -> Tensor:
    """Feed segments at random, take tokens back at random, wrong ones among them; return the logits from the start on.

    What is taken back is at times right, and at times another token that must leave no trace.
    """
    draw = random.Random(seed)
    logits = torch.zeros(*ids.shape, VOCAB, dtype=model.dtype)
    kept = 0
    for _ in range(6):
        stop = min(LENGTH - 1, kept + draw.choice([1, 1, 2, 3, 7]))
        if stop > kept:
            logits[:, kept:stop] = feed(model, cache, ids[:, kept:stop], mask)
            kept = stop
        wrong = draw.choice([0, 1, 4])
        wrong = min(wrong, LENGTH - kept)
        if wrong:
            feed(model, cache, tokens(ids.shape[0], wrong, draw.randrange(99)), mask)
        reach = min([found.slots for found in remembered(cache)], default=kept + wrong)
        back = min(wrong + draw.choice([0, 0, 1, 3, 9]), reach)
        assert back >= wrong
        cache.crop(-back)
        kept -= back - wrong
        assert int(cache.get_seq_length()) == kept
    logits[:, kept:] = feed(model, cache, ids[:, kept:], mask)
    return logits


@pytest.mark.feature("Taking tokens back from a cache")
@every()
@torch.no_grad()
@pytest.mark.parametrize("reach", [4, 256])
def test_tokens_taken_back_leave_no_trace(name, case, reach, monkeypatch):
    monkeypatch.setattr(history, "REACH", reach)
    model, ids = shared(name, case), tokens()
    whole = model(ids, use_cache=False).logits
    for seed in range(2):
        cache = recording(model)
        assert_close(wander(model, cache, ids, seed), whole, 1e-10, f"seed {seed}")
        assert all(len(found.checkpoints) <= 3 and found.slots <= 3 * reach for found in remembered(cache))


@every()
@torch.no_grad()
def test_from_padded_rows_and_static_caches(name, case):
    """Pads are slots: taking them back takes no token from the rows that have none there."""
    model, ids = shared(name, case), tokens(3)
    mask = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, -1] = mask[0, 0] = True
    mask[2, 10:16] = False
    mask[1, :5] = False
    whole = model(ids, attention_mask=mask.long(), use_cache=False).logits
    found = wander(model, recording(model), ids, 5, mask.long())
    assert_close(found[mask], whole[mask], 1e-10, "padded rows")
    cache = StaticCache(config=model.config, max_cache_len=LENGTH)
    if not all(hasattr(layer, "crop") for layer in cache.layers):
        return  # transformers 5.23 has no crop for its own static layers
    cache.activate_past_recording()
    feed(model, cache, ids[:, :3])
    addresses = [x.data_ptr() for x in held_by(cache)]
    cache.crop(-3)
    assert_close(wander(model, cache, ids, 6), model(ids, use_cache=False).logits, 1e-10, "static cache")
    assert [x.data_ptr() for x in held_by(cache)] == addresses


def held_by(cache: StaticCache) -> list[Tensor]:
    """Return the tensors of a cache themselves, whose addresses compiled decoding relies on."""
    attributes = [value for layer in cache.layers for value in vars(layer).values()]
    attributes += [value for found in attributes if isinstance(found, dict) for value in found.values()]
    return [value for value in attributes if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", list_architectures())
@torch.no_grad()
def test_in_packed_documents(name):
    """A document that starts in a segment is taken back with it, and the one before goes on."""
    for case in contract.variants(name):
        model, ids = shared(name, case), tokens(1)
        if model.base_model.keeps_keys:
            continue
        positions = torch.cat([torch.arange(9), torch.arange(4), torch.arange(7)])[None]
        alone = torch.cat([model(row, use_cache=False).logits for row in ids.split([9, 4, 7], dim=1)], dim=1)
        cache = recording(model)
        feed(model, cache, ids[:, :5], position_ids=positions[:, :5])
        feed(model, cache, ids[:, 5:15], position_ids=positions[:, 5:15])
        for kept in (14, 11, 8, 3):
            cache.crop(kept - int(cache.get_seq_length()))
            again = copy.deepcopy(cache)
            logits = feed(model, again, ids[:, kept:], position_ids=positions[:, kept:])
            assert_close(logits, alone[:, kept:], 1e-10, f"{case}, {kept} tokens kept")


@pytest.mark.parametrize("name", list_architectures())
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "float64"]
)
@torch.no_grad()
def test_whole_segments_are_taken_back_bit_by_bit(name, dtype):
    """The state is computed anew by the same function from the same inputs, so that not one bit differs."""
    model, ids = contract.fresh(name).to(dtype), tokens()
    cache, alone = recording(model), new_cache(model)[CACHE_NAME]
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 10), (10, 11), (11, 16)):
        feed(model, cache, ids[:, start:stop])
        if stop <= 10:
            feed(model, alone, ids[:, start:stop])
    cache.crop(-6)
    assert all(torch.equal(a, b) for a, b in zip(states(cache), states(alone), strict=True))
    assert torch.equal(feed(model, cache, ids[:, 10:13]), feed(model, alone, ids[:, 10:13]))


@pytest.mark.parametrize("name", list_architectures())
@torch.no_grad()
def test_parts_of_segments_are_taken_back_up_to_rounding(name):
    """Fewer tokens at once are other sums in the projections: a few units of the last place, in float32."""
    model, ids = shared(name, "full", torch.float32), tokens()
    cache, alone = recording(model), new_cache(model)[CACHE_NAME]
    feed(model, cache, ids[:, :16])
    cache.crop(-6)
    feed(model, alone, ids[:, :10])
    for found, expected in zip(states(cache), states(alone), strict=True):
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("name", list_architectures())
@torch.no_grad()
def test_memory_is_bounded_while_recording(name, monkeypatch):
    """However long it goes on, and whether or not tokens are taken back; nothing is kept where nothing records."""
    monkeypatch.setattr(history, "REACH", 8)
    model = contract.fresh(name, "default")
    for often in (2, 10**9):
        cache = recording(model)
        for time in range(40):
            feed(model, cache, tokens(1, 1 + time % 5, time))
            if time % often == often - 1:
                cache.crop(-(time % 5))
            assert all(len(found.checkpoints) <= 3 and found.slots <= 24 for found in remembered(cache))
            states_bytes = sum(x.nbytes for x in states(cache))
            assert sum(map(bytes_of, remembered(cache))) <= 3 * states_bytes + 24 * bytes_of_token(cache)
        assert all(found.slots >= 8 for found in remembered(cache))
    cache = new_cache(model)[CACHE_NAME]
    feed(model, cache, tokens(1))
    cache.crop(0)
    assert not any(found.checkpoints for found in remembered(cache))


def bytes_of_token(cache: DynamicCache) -> int:
    """Return what the inputs of one token take, over all layers."""
    steps = [found.checkpoints[-1].steps[-1] for found in remembered(cache)]
    return sum(x.nbytes // x.shape[1] for step in steps for x in step.inputs)


def bytes_of(found: history.History) -> int:
    """Return what a history holds, each tensor's whole memory counted once."""
    kept = [x for checkpoint in found.checkpoints for x in checkpoint.snapshot.values()]
    kept += [x for checkpoint in found.checkpoints for step in checkpoint.steps for x in step.inputs]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}.values())


@pytest.mark.parametrize("name", list_architectures())
@torch.no_grad()
def test_what_cannot_be_taken_back_is_refused(name, monkeypatch):
    monkeypatch.setattr(history, "REACH", 4)
    model, ids = shared(name, "full"), tokens()
    for change in (
        lambda cache: cache.reset(),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
    ):
        cache = recording(model)
        feed(model, cache, ids)
        with pytest.raises(RuntimeError, match=r"crop\(-17\): the layer remembers 4 tokens.*Propose fewer"):
            cache.crop(-17)
        change(cache)
        with pytest.raises(RuntimeError, match=r"crop\(-1\): the layer remembers 0 tokens"):
            cache.crop(-1)
    cache = new_cache(model)[CACHE_NAME]
    feed(model, cache, ids[:, :12])
    with pytest.raises(RuntimeError, match=r"crop\(-2\).*call activate_past_recording\(\) on the cache before"):
        cache.crop(-2)
    with pytest.raises(ValueError, match=r"crop\(3\): give minus the number"):
        cache.crop(3)


@torch.no_grad()
def test_copies_of_a_cache_share_the_model_and_go_their_own_way():
    for name in list_architectures():
        model, ids = shared(name, "full"), tokens(1)
        cache = recording(model)
        feed(model, cache, ids[:, :12])
        copied = copy.deepcopy(cache)
        copied.crop(-5)
        assert int(cache.get_seq_length()) == 12
        for found in remembered(copied):
            mixers = {id(module) for module in model.modules()}
            assert {id(step.advance.__self__) for part in found.checkpoints for step in part.steps} <= mixers
        whole = model(ids, use_cache=False).logits
        assert_close(feed(model, cache, ids[:, 12:]), whole[:, 12:], 1e-10, name)
        assert_close(feed(model, copied, ids[:, 7:]), whole[:, 7:], 1e-10, name)


@torch.no_grad()
def test_under_autocast_of_the_time_of_feeding():
    model, ids = contract.fresh("ssd", "full"), tokens(1)
    cache, alone = recording(model), new_cache(model)[CACHE_NAME]
    for start, stop in ((0, 6), (6, 9), (9, 12)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            feed(model, cache, ids[:, start:stop])
            if stop <= 9:
                feed(model, alone, ids[:, start:stop])
    cache.crop(-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feed(model, cache, ids[:, 6:9])
        feed(model, cache, ids[:, 9:12])
    cache.crop(-3)
    assert all(torch.equal(a, b) for a, b in zip(states(cache), states(alone), strict=True))
