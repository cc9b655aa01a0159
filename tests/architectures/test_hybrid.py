"""Hybrids: whose defaults and options a layer has, that it is the architecture's own layer, and both kinds of cache."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, DynamicCache, StaticCache

from dsf_models import HybridConfig, LSTMConfig, SoftmaxAttentionConfig, SSDConfig, list_architectures
from dsf_models.backbone import get_architecture, registry
from tests.contract import (
    CACHE_NAME,
    PAD,
    assert_close,
    fresh,
    generate,
    logits_alone,
    logits_in_segments,
    new_cache,
    padding_mask,
    place,
    sequences,
    small_config,
)

SMALL = {"vocab_size": 41, "hidden_size": 16, "num_heads": 4, "state_size": 4}


def ids():
    return torch.stack(sequences((9, 9)))


def test_layers_are_configured_by_their_architectures():
    options = {"ssd": {"n_groups": 2, "gate": "gelu"}, "softmax_attention": {"num_key_value_heads": 1}}
    shared = {"norm": "layernorm", "dropout": 0.1, "num_heads": 4, "position_embedding": "rope"}
    config = HybridConfig(
        hidden_size=32, mixers=("ssd", "softmax_attention", "lstm", "ssd"), mixer_options=options, **shared
    )
    ssd, attention, lstm, again = (config.layer_config(i) for i in range(4))
    assert [type(layer) for layer in (ssd, attention, lstm)] == [SSDConfig, SoftmaxAttentionConfig, LSTMConfig]
    assert again is ssd
    # The architecture's own defaults, the hybrid's shared fields, the options; heads only where there is a choice.
    assert (ssd.expand, ssd.conv_kernel, ssd.output_norm) == (2, 4, "rmsnorm")
    assert (attention.expand, attention.conv_kernel, attention.output_norm) == (1, 0, "none")
    assert [layer.num_heads for layer in (ssd, attention, lstm)] == [4, 4, 1]
    assert (ssd.n_groups, ssd.gate, attention.num_key_value_heads, attention.gate) == (2, "gelu", 1, "none")
    assert all((layer.norm, layer.dropout, layer.num_hidden_layers) == ("layernorm", 0.1, 4) for layer in (ssd, lstm))
    assert [layer.position_embedding for layer in (ssd, attention, lstm)] == ["none", "rope", "none"]
    assert config.layer_types == ["dsf_state", "full_attention", "dsf_state", "dsf_state"]
    assert config.rotary_config is attention


def test_fields_of_the_mixer_hold_for_all_layers_unless_an_option_differs():
    config = HybridConfig(**SMALL, mixers=["ssd", "linear_attention"], expand=1, mixer_options={"ssd": {"expand": 3}})
    assert [config.layer_config(i).inner_size for i in range(2)] == [48, 16]


@torch.no_grad()
def test_a_hybrid_of_one_architecture_is_that_architecture():
    for name in ("ssd", "softmax_attention", "normalized_attention"):
        alone, hybrid = fresh(name, "default"), fresh("hybrid", "default", mixers=[name] * 2)
        hybrid.load_state_dict(alone.state_dict())
        assert torch.equal(hybrid(ids()).logits, alone(ids()).logits)


def test_files_keep_names_and_options(tmp_path):
    config = HybridConfig(**SMALL, mixers=["ssd", "lstm"], mixer_options={"ssd": {"time_step_limit": (0.0, 0.5)}})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.mixers, loaded.num_hidden_layers) == (["ssd", "lstm"], 2)
    assert loaded.layer_config(0).to_dict() == config.layer_config(0).to_dict()
    assert "_configs" not in (tmp_path / "config.json").read_text()


@torch.no_grad()
def test_the_attention_backend_reaches_the_layers():
    model = fresh("hybrid", "bare")
    expected = model(ids()).logits
    model.set_attn_implementation("eager")
    assert model.model.layers[1].token_mixer.config._attn_implementation == "eager"
    outputs = model(ids(), output_attentions=True)
    assert_close(outputs.logits, expected, 1e-6)
    (weights,) = outputs.attentions
    assert_close(weights.double(), model.transfer_matrix(1, ids()), 1e-5)
    assert fresh("hybrid", "bare", attn_implementation="eager").model.layers[1].self_attn.config._attn_implementation


def test_the_attention_backend_reaches_the_layers_of_a_saved_model(tmp_path):
    model = fresh("hybrid", "bare")
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    assert model.model.layers[1].token_mixer.config._attn_implementation == "eager"


def test_layers_follow_a_changed_configuration():
    config = small_config("hybrid", "rope", mixers=["ssd", "softmax_attention"])
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
    assert config.rotary_config.rope_parameters == config.rope_parameters
    config.rope_parameters["factor"] = 3.0
    assert config.layer_config(1).rope_parameters == config.rotary_config.rope_parameters == config.rope_parameters


@torch.no_grad()
def test_both_kinds_of_cache():
    model = fresh("hybrid", "rope", mixers=["ssd", "softmax_attention", "lstm"], num_hidden_layers=3).double()
    whole = model(ids(), use_cache=False).logits
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=12)):
        kinds = [type(layer).__name__ for layer in cache.layers]
        assert kinds[0] == kinds[2] == "DSFStateLayer"
        assert kinds[1] in ("DSFAttentionLayer", "DSFStaticAttentionLayer")
        parts = [model(ids()[:, cut], **{CACHE_NAME: cache}).logits for cut in (slice(0, 4), slice(4, 5), slice(5, 9))]
        assert_close(torch.cat(parts, dim=1), whole, 1e-10, kinds[1])


@pytest.mark.parametrize("name", [name for name in list_architectures() if name != "hybrid"])
@torch.no_grad()
def test_every_architecture_has_its_place(name):
    model = fresh("hybrid", "default", mixers=[name, "softmax_attention"]).double()
    assert type(model.config.layer_config(0)) is get_architecture(name).config_class
    rows, mask = sequences(), padding_mask("left")
    prompts = place(rows, mask, PAD)
    alone = logits_alone(model, rows)
    assert_close(model(prompts, attention_mask=mask, use_cache=False).logits[mask], alone, 1e-10)
    cached = logits_in_segments(model, prompts, (7, 8), mask.long())
    assert_close(cached[mask], alone, 1e-10)
    beams = {"attention_mask": mask.long(), "num_beams": 2}
    assert torch.equal(generate(model, prompts, **beams), generate(model, prompts, **beams, use_cache=False))


@torch.no_grad()
def test_packed_documents_are_cached_where_attention_sees_a_window_only():
    model = fresh("hybrid", "sliding").double()
    row, positions = ids()[:1], torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]])
    whole = model(row, position_ids=positions).logits
    cache = new_cache(model)
    parts = [
        model(row[:, cut], position_ids=positions[:, cut], use_cache=True, **cache).logits
        for cut in (slice(0, 5), slice(5, 9))
    ]
    assert_close(torch.cat(parts, dim=1), whole, 1e-10)


def test_layers_that_rotate_share_their_angles(monkeypatch):
    @strict
    class OtherAttentionConfig(SoftmaxAttentionConfig):
        model_type: ClassVar[str] = "dsf_other_attention"

    other = dataclasses.replace(get_architecture("softmax_attention"), config_class=OtherAttentionConfig)
    monkeypatch.setitem(registry._ARCHITECTURES, "other_attention", other)
    mixers = ["softmax_attention", "other_attention"]
    for options in ({"state_size": 8}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}):
        with pytest.raises(ValueError, match=r"mixer_options=.*share their angles: give them one state_size"):
            small_config("hybrid", "rope", mixers=mixers, mixer_options={"other_attention": options})
    assert small_config("hybrid", "rope", mixers=mixers).layer_types == ["dsf_attention"] * 2


def test_unknown_names_in_a_file_are_refused(tmp_path):
    HybridConfig(**SMALL, mixers=["ssd"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"ssd"', '"sssd"'))
    with pytest.raises(ValueError, match=r"mixers='sssd'.*did you mean ssd\?"):
        AutoConfig.from_pretrained(tmp_path)
