"""What a model is given wrongly is refused: the message names what was given, its value and the remedy."""

import inspect
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import DynamicCache, StaticCache
from transformers.utils import TransformersKwargs

from dsf_models import list_architectures
from dsf_models.backbone import DSFForCausalLM, DSFForSequenceClassification, DSFForTokenClassification, DSFModel
from tests import contract
from tests.contract import CACHE_NAME, HEADS, fresh, new_cache, sequences, shared, small_config

LENGTH = 6
every_architecture = pytest.mark.parametrize("name", list_architectures())
every_head = pytest.mark.parametrize("head", HEADS)


unknown_keywords = pytest.mark.feature("Unknown keywords of forward are errors")


def ids(length=LENGTH, rows=2, seed=0):
    return torch.stack(sequences((length,) * rows, seed))


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


@every_head
@pytest.mark.skipif(CACHE_NAME != "cache", reason="before transformers 5.24 past_key_values is the only name")
def test_the_older_name_of_the_cache_is_told_of(head):
    model = model_of("ssd", head=head)
    with pytest.warns(FutureWarning, match=r"`past_key_values` is deprecated .* Use `cache`"):
        model(ids(), past_key_values=DynamicCache(config=model.config))


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
        assert "give exactly one of input_ids, inputs_embeds and inputs_values" in refusal(model, ValueError, **inputs)


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
@unknown_keywords
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


@every_architecture
@every_head
@unknown_keywords
def test_keywords_of_another_head(name, head):
    model = model_of(name, head=head)
    own = inspect.signature(type(model).forward).parameters
    for key in ("labels", "logits_to_keep", "label_alignment"):
        if key not in own and not (head == "causal_lm" and key == "label_alignment"):
            message = refusal(model, TypeError, ids(), **{key: None})
            assert f"unknown keyword '{key}'; only a model with another head has it" in message


WITHOUT_EFFECT = {
    "model": {"num_items_in_batch"},
    "sequence_classification": {"num_items_in_batch"},
    "token_classification": {"use_cache"},
}
"""Keywords that a model takes since callers of every model pass them, and has no use for; documented as such."""
OF_FLASH_ATTENTION = {"cu_seq_lens_k", "max_length_q", "max_length_k"}
"""Keywords that name the same documents as cu_seq_lens_q, in the form that one attention backend asks for."""
REFUSED = {"is_causal": False, "output_router_logits": True}


def keywords(model):
    """Return every keyword that a model takes, each at a value that must change the outputs, by its name."""
    embeds = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    labels = {"labels": torch.tensor([1, 0]) if isinstance(model, DSFForSequenceClassification) else ids()}
    labels["labels"] = labels["labels"] % 2 if isinstance(model, DSFForTokenClassification) else labels["labels"]
    found = {
        "input_ids": ({"input_ids": ids(seed=3)}, {}),
        "inputs_embeds": ({"input_ids": None, "inputs_embeds": embeds}, {}),
        "attention_mask": ({"attention_mask": mask}, {}),
        "position_ids": ({"position_ids": positions}, {}),
        "seq_idx": ({"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}, {}),
        "cu_seq_lens_q": ({"input_ids": ids()[:1], "cu_seq_lens_q": torch.tensor([0, 3, 6])}, {"input_ids": ids()[:1]}),
        "past_key_values": ({"past_key_values": filled_cache(model)}, {}),
        "cache": ({"cache": filled_cache(model)}, {}),
        "use_cache": ({"use_cache": False}, {}),
        "labels": (labels, {}),
        "logits_to_keep": ({"logits_to_keep": 2}, {}),
        "label_alignment": (labels | {"label_alignment": "same"}, labels),
        "shift_labels": ({"shift_labels": ids()}, {}),
        "num_items_in_batch": (labels | {"num_items_in_batch": 3}, labels),
        "output_hidden_states": ({"output_hidden_states": True}, {}),
        "return_dict": ({"return_dict": False}, {}),
    }
    return {key: value for key, value in found.items() if key in accepted(model)}


def filled_cache(model):
    """Return the state after a few tokens."""
    cache = new_cache(model)
    model(ids(seed=5), use_cache=True, **cache)
    return cache[CACHE_NAME]


def accepted(model):
    """Return the names of all keywords that a model takes: those of transformers, and those it declares."""
    own = set(inspect.signature(type(model).forward).parameters) | set(inspect.signature(DSFModel.forward).parameters)
    extra = {"return_dict"} | ({"label_alignment", "shift_labels"} if isinstance(model, DSFForCausalLM) else set())
    return (own | extra | TransformersKwargs.__annotations__.keys()) - {"self", "kwargs"}


def seen(model, inputs):
    """Return what a call puts out, as far as it can be compared."""
    outputs = model(**{"input_ids": ids()} | inputs)
    if isinstance(outputs, tuple):
        return "a tuple"
    return {
        key: value.tolist() if isinstance(value, torch.Tensor) else str(type(value)) for key, value in outputs.items()
    }


@every_architecture
@every_head
@unknown_keywords
@torch.no_grad()
def test_no_keyword_is_swallowed(name, head):
    """Each keyword that a model takes changes what it puts out, is refused, or is documented to have no effect."""
    model = shared(name, "default", torch.float32, head)
    found, spare = keywords(model), WITHOUT_EFFECT.get(head, set())
    elsewhere = {
        "output_attentions",
        "inputs_values",
    }  # tests of attention weights and of real-valued inputs look at them
    assert accepted(model) - found.keys() == OF_FLASH_ATTENTION | REFUSED.keys() | elsewhere
    for key, (changed, plain) in found.items():
        if key in spare:
            assert f"{key} has no effect" in type(model).forward.__doc__
            continue
        assert seen(model, changed) != seen(model, plain), f"{key} is swallowed"
    for key, value in REFUSED.items():
        assert f"{key}={value}" in refusal(model, ValueError, ids(), **{key: value})
        assert seen(model, {key: not value}) == seen(model, {})
