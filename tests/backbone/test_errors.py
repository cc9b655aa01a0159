"""What a model is given wrongly is refused: the message names what was given, its value and the remedy."""

import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import DynamicCache, StaticCache

from dsf_models import list_architectures
from tests import contract
from tests.contract import CACHE_NAME, HEADS, fresh, new_cache, sequences, shared, small_config

LENGTH = 6
every_architecture = pytest.mark.parametrize("name", list_architectures())
every_head = pytest.mark.parametrize("head", HEADS)


def ids(length=LENGTH, rows=2):
    return torch.stack(sequences((length,) * rows))


def model_of(name, case="default", head="causal_lm"):
    return shared(name, case, torch.float32, head)


def refusal(model, error, *args, **inputs):
    with pytest.raises(error) as found:
        model(*args, **inputs)
    return str(found.value)


# ---- caches ---------------------------------------------------------------------------------------------------------


@every_architecture
def test_cache_without_configuration(name):
    """Where a layer keeps a state or a window, a cache must be told so."""
    for case in ("default", "bare", "full"):
        model = model_of(name, case)
        if set(model.config.layer_types) == {"full_attention"}:
            assert model(ids(), **{CACHE_NAME: DynamicCache()}).logits.shape == (2, LENGTH, contract.VOCAB)
            continue
        message = refusal(model, ValueError, ids(), **{CACHE_NAME: DynamicCache()})
        assert CACHE_NAME in message
        assert "nothing for layer" in message
        assert "DynamicCache(config=model.config" in message


@every_architecture
def test_cache_of_another_configuration(name):
    model = model_of(name, "full")
    other = small_config("softmax_attention", "bare")
    for cache in (DynamicCache(config=other), StaticCache(config=other, max_cache_len=9)):
        message = refusal(model, ValueError, ids(), **{CACHE_NAME: cache})
        layer = type(cache.layers[0]).__name__
        assert f"{CACHE_NAME} holds {layer} for layer 0" in message
        assert f"{type(cache).__name__}(config=model.config" in message


@every_architecture
@every_head
def test_both_names_of_the_cache(name, head):
    model = model_of(name, head=head)
    caches = {"past_key_values": DynamicCache(config=model.config), "cache": DynamicCache(config=model.config)}
    message = refusal(model, ValueError, ids(), **caches)
    assert "past_key_values and cache" in message
    assert "pass only one" in message


@every_architecture
@every_head
@pytest.mark.parametrize("field", ["past_key_values", "cache"])
def test_cache_of_another_type(name, head, field):
    for given in (((torch.zeros(1), torch.zeros(1)),), [], {}):
        message = refusal(model_of(name, head=head), TypeError, ids(), **{field: given})
        assert f"{CACHE_NAME} is a {type(given).__name__}" in message
        assert "DynamicCache(config=model.config)" in message


# ---- masks ----------------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("case", ["default", "bare"])
@pytest.mark.parametrize("padded", [False, True], ids=["ones", "zeros"])
def test_mask_of_another_length(name, case, padded):
    model = model_of(name, case)
    fill = torch.zeros if padded else torch.ones
    for length in (LENGTH - 1, LENGTH + 2):
        message = refusal(model, ValueError, ids(), attention_mask=fill(2, length))
        assert f"attention_mask covers {length} tokens" in message
        assert f"hold {LENGTH}: pass the mask of the whole sequence" in message
    cache = new_cache(model)
    model(ids(), use_cache=True, **cache)
    for length in (1, LENGTH, LENGTH + 2):
        message = refusal(model, ValueError, ids(1), attention_mask=fill(2, length), use_cache=True, **cache)
        assert f"attention_mask covers {length} tokens" in message
        assert f"hold {LENGTH + 1}: pass the mask of the whole sequence" in message
    message = refusal(model, ValueError, ids(), attention_mask=fill(3, LENGTH))
    assert "attention_mask has 3 rows, but the inputs have 2" in message


@every_architecture
def test_refused_calls_leave_a_cache_as_it_was(name):
    for case in ("default", "bare"):
        model = model_of(name, case)
        whole, cache = model(ids(8), use_cache=False).logits, new_cache(model)
        model(ids(8)[:, :5], use_cache=True, **cache)
        refusal(model, ValueError, ids(8)[:, 5:], attention_mask=torch.ones(2, 3), **cache)
        refusal(model, TypeError, ids(8)[:, 5:], atention_mask=torch.ones(2, 8), **cache)
        refusal(model, ValueError, **cache)
        contract.assert_close(model(ids(8)[:, 5:], use_cache=True, **cache).logits, whole[:, 5:], 1e-5)


@every_architecture
@every_head
def test_mask_of_other_dimensions(name, head):
    for case, dims in (("default", 1), ("default", 3), ("full", 4), ("default", 4)):
        model = model_of(name, case, head)
        mask = torch.ones((2, 1, LENGTH, LENGTH, 1)[:dims]) if dims != 3 else torch.ones(2, LENGTH, LENGTH)
        if dims == 4 and set(model.config.layer_types) == {"full_attention"}:
            assert model(ids(), attention_mask=torch.zeros(2, 1, LENGTH, LENGTH))[0].isfinite().all()
            continue
        message = refusal(model, ValueError, ids(), attention_mask=mask)
        assert f"attention_mask has {dims} dimensions" in message
        assert "give a padding mask (batch, length)" in message


# ---- tokens and positions -------------------------------------------------------------------------------------------


@every_architecture
@every_head
def test_both_or_neither_of_ids_and_embeddings(name, head):
    model = model_of(name, head=head)
    embeds = model.get_input_embeddings()(ids())
    for inputs in ({}, {"input_ids": ids(), "inputs_embeds": embeds}):
        assert "give exactly one of input_ids and inputs_embeds" in refusal(model, ValueError, **inputs)


@every_architecture
def test_positions_of_another_shape(name):
    for key in ("position_ids", "seq_idx"):
        message = refusal(model_of(name), ValueError, ids(), **{key: torch.arange(LENGTH - 1)[None]})
        assert f"{key} has shape (1, {LENGTH - 1}): give (2, {LENGTH})" in message
    message = refusal(model_of(name), ValueError, ids(), cu_seq_lens_q=torch.tensor([0, 2, LENGTH]))
    assert "cu_seq_lens" in message
    assert "2 rows: pass seq_idx instead" in message


@every_architecture
@torch.no_grad()
def test_longer_than_the_learned_positions(name):
    """The table's size counts real tokens, past ones too, and no pads."""
    model = fresh(name, "full", max_position_embeddings=8).double()
    message = refusal(model, ValueError, ids(9))
    assert "the sequence holds 9 tokens, but max_position_embeddings=8" in message
    assert "larger max_position_embeddings" in message
    cache = new_cache(model)
    model(ids(8), use_cache=True, **cache)
    assert "holds 9 tokens" in refusal(model, ValueError, ids(1), use_cache=True, **cache)
    with pytest.raises(ValueError, match="max_position_embeddings=8"):
        model.generate(ids(6), max_new_tokens=6, pad_token_id=0, do_sample=False)
    rows, pads = sequences((8, 3)), torch.zeros(2, 5, dtype=torch.bool)
    alone = contract.logits_alone(model, rows)
    for side in contract.PADDING:
        mask = contract.padding_mask(side, (8, 3))
        mask = torch.cat([mask, pads] if side == "right" else [pads, mask], dim=1)
        padded = contract.place(rows, mask, contract.PAD)
        logits = model(padded, attention_mask=mask, use_cache=False).logits
        contract.assert_close(logits[mask], alone, 1e-10, side)
    # Packed documents are counted one by one.
    contract.assert_packing_contract(fresh(name, "full", max_position_embeddings=12).double(), 1e-10)


# ---- keywords -------------------------------------------------------------------------------------------------------


@every_architecture
@every_head
def test_unknown_keywords_offer_the_closest(name, head):
    model = model_of(name, head=head)
    for wrong, right in (
        ("atention_mask", "attention_mask"),
        ("input_embeds", "inputs_embeds"),
        ("use_cahce", "use_cache"),
        ("seq_ids", "seq_idx"),
        ("cu_seqlens_q", "cu_seq_lens_q"),
        ("output_hidden_state", "output_hidden_states"),
    ):
        message = refusal(model, TypeError, ids(), **{wrong: None})
        assert re.search(rf"unknown keyword '{wrong}'; did you mean {right}(\?| or )", message), message
    assert "unknown keyword 'zzzz'" in refusal(model, TypeError, ids(), zzzz=1)


@every_architecture
def test_misspelt_cache_offers_the_right_name(name):
    message = refusal(model_of(name), TypeError, ids(), past_key_value=None)
    assert "did you mean past_key_values?" in message


@every_architecture
@every_head
def test_not_causal(name, head):
    message = refusal(model_of(name, head=head), ValueError, ids(), is_causal=False)
    assert "is_causal=False" in message
    assert "leave is_causal out" in message


@every_architecture
def test_unknown_label_alignment(name):
    message = refusal(model_of(name), ValueError, ids(), labels=ids(), label_alignment="shifted")
    assert "label_alignment='shifted'" in message
    assert '"next"' in message
    assert '"same"' in message
    with pytest.raises(StrictDataclassFieldValidationError, match="label_alignment"):
        small_config(name, label_alignment="shifted")


@every_architecture
def test_systems_of_a_cached_call(name):
    model = model_of(name)
    for key in ("past_key_values", "cache"):
        with pytest.raises(ValueError, match=f"{key} is given: .* pass all tokens instead"):
            model.dsf_systems(ids(), **{key: DynamicCache(config=model.config)})
    with pytest.raises(ValueError, match="layer=2: the model has 2 layers"):
        model.transfer_matrix(2, ids())


@every_architecture
def test_generation_from_a_filled_cache_with_a_pad_at_the_end(name):
    model, cache = model_of(name), new_cache(model_of(name))
    model(ids(), use_cache=True, **cache)
    mask = torch.ones(2, LENGTH + 2)
    mask[0, -1] = 0
    with pytest.raises(ValueError, match=r"attention_mask marks the last token .* Pad on the left"):
        model.generate(ids(LENGTH + 2), attention_mask=mask, max_new_tokens=2, pad_token_id=0, **cache)
