"""Time-invariant architectures as two-sided filters: they see both ways, pad and pack exactly, and cannot generate."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, StaticCache

from dsf_models import HybridConfig, list_architectures
from dsf_models.backbone import DSFModel, TimeInvariantConfig, get_architecture
from tests import contract
from tests.contract import CACHE_NAME, PAD, PADDING, VOCAB, fresh, gradients, new_cache, sequences, small_config

NAMES = [name for name in list_architectures() if issubclass(get_architecture(name).config_class, TimeInvariantConfig)]
CASES = ("full", "windowed")
every = pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in CASES])
each = pytest.mark.parametrize("name", NAMES)
FLOAT32, FLOAT64 = torch.float32, torch.float64


def two_sided(name, case="bare", head="token_classification", **changes):
    return fresh(name, case, head, bidirectional=True, num_labels=5, **changes).double()


@every
@torch.no_grad()
def test_a_token_is_seen_both_ways(name, case):
    model = two_sided(name, case)
    ids = sequences((10,))[0][None]
    changed = ids.clone()
    changed[0, 4] = 1 + ids[0, 4] % (VOCAB - 1)
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert bool((difference > 1e-7).all())


@each
@torch.no_grad()
def test_nothing_is_seen_beyond_the_window(name):
    """One layer of window U: the output changes within U of the changed token, exactly, and nowhere else."""
    for bidirectional in (False, True):
        model = fresh(name, "bare", "model", num_hidden_layers=1, window=3, bidirectional=bidirectional)
        ids = sequences((12,))[0][None]
        changed = ids.clone()
        changed[0, 6] = 1 + ids[0, 6] % (VOCAB - 1)
        seen = (model(ids)[0] != model(changed)[0]).any(-1)[0].nonzero().flatten().tolist()
        assert seen == list(range(3 if bidirectional else 6, 10))


@each
@torch.no_grad()
def test_the_filter_has_an_odd_part(name):
    """The pass from the end has a read-out of its own: Φ is neither causal nor symmetric, and constant on diagonals."""
    phi = two_sided(name).transfer_matrix(0, sequences((9,))[0][None])[0]
    contract.assert_close(phi[..., 1:, 1:], phi[..., :-1, :-1], 1e-12)
    assert bool((phi.triu(1).abs().sum((-1, -2)) > 0).all())
    assert float((phi - phi.mT).abs().max()) > 1e-3 * float(phi.abs().max())


@every
@torch.no_grad()
def test_transfer_matrix_explains_the_mixer(name, case):
    model, mask = two_sided(name, case), contract.padding_mask("interior")
    contract.assert_transfer_matrix_explains_the_mixer(model, input_ids=sequences()[0][None])
    contract.assert_transfer_matrix_explains_the_mixer(
        model, input_ids=contract.place(sequences(), mask, PAD), attention_mask=mask
    )
    contract.assert_transfer_matrix_explains_the_mixer(model, **contract.packed(sequences())["position_ids"])


@every
@torch.no_grad()
def test_padding_and_packing(name, case):
    """Padded, packed, and packed and padded batches = the sequences alone."""
    for dtype, tolerance in ((FLOAT64, 1e-10), (FLOAT32, 1e-5)):
        model = two_sided(name, case).to(dtype)
        for side in PADDING:
            contract.assert_padding_contract(model, side, tolerance)
            contract.assert_packed_and_padded(model, side, tolerance)
        contract.assert_packing_contract(model, tolerance)


@each
@torch.no_grad()
def test_sequence_classification(name):
    """The last real token is read, whichever side the pads are on."""
    model, rows = two_sided(name, "full", "sequence_classification"), sequences()
    alone = torch.cat([model(row[None]).logits for row in rows])
    for side in PADDING:
        mask = contract.padding_mask(side)
        logits = model(contract.place(rows, mask, PAD), attention_mask=mask).logits
        contract.assert_close(logits, alone, 1e-10, side)


@every
def test_gradients_reach_every_parameter(name, case):
    model = two_sided(name, case)
    ids = torch.stack(sequences((9, 9)))
    found = gradients(model, model(ids, labels=ids % 5).loss)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(bool(gradient.isfinite().all() and gradient.any()) for gradient in found.values())


@pytest.mark.parametrize("name", NAMES[:1])
@pytest.mark.parametrize("window", [None, 3])
def test_training_step_is_one_graph(name, window):
    """Documents or pads, both ways: what differs from a causal model is the base class's, so one architecture does."""
    model, mask = two_sided(name, window=window, num_hidden_layers=1).train(), contract.padding_mask("left")
    inputs = {"input_ids": contract.place(sequences(), mask, PAD), "attention_mask": mask.long()}
    inputs = inputs if window is None else contract.packed(sequences())["position_ids"]
    expected = model(**inputs, labels=inputs["input_ids"] % 5).loss
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    contract.assert_close(compiled(**inputs, labels=inputs["input_ids"] % 5).loss, expected, 1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES[:1])
@torch.no_grad()
def test_windowed_decoding_is_one_graph(name):
    model, ids = fresh(name, "windowed", num_hidden_layers=1).double(), torch.stack(sequences((8, 8)))
    whole, cache = model(ids, use_cache=False).logits, StaticCache(config=model.config, max_cache_len=8)
    model(ids[:, :4], **{CACHE_NAME: cache})
    torch._dynamo.reset()
    step = torch.compile(model, fullgraph=True, backend="eager")
    for time in range(4, 8):
        with torch.compiler.set_stance("fail_on_recompile" if time > 5 else "default"):
            logits = step(ids[:, time : time + 1], **{CACHE_NAME: cache}).logits
        contract.assert_close(logits[:, 0], whole[:, time], 1e-10, f"token {time}")
    torch._dynamo.reset()


@each
@torch.no_grad()
def test_the_second_read_out_is_a_parameter(name, tmp_path):
    """It exists where it is used alone, starts at random, and survives its file."""
    model = two_sided(name).float()
    plain = fresh(name, "bare", "token_classification", num_labels=5)
    further = model.state_dict().keys() - plain.state_dict().keys()
    assert further
    assert all("reverse" in key for key in further)
    assert plain.state_dict().keys() < model.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    ids = torch.stack(sequences((9, 9)))
    assert loaded.config.bidirectional
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    parameters = dict(
        get_architecture(name).model_class(small_config(name, "bare", bidirectional=True)).named_parameters()
    )
    for key in further:
        start = parameters[key.removeprefix("model.")]
        assert bool(start.isfinite().all())
        assert start.numel() == 1 or len(start.unique()) > 1


@each
def test_what_needs_a_causal_model_is_refused(name):
    architecture, config = get_architecture(name), small_config(name, "bare", bidirectional=True)
    assert config.looks_ahead
    for make in (architecture.causal_lm_class, AutoModelForCausalLM.from_config):
        with pytest.raises(ValueError, match=r"bidirectional=True.*classification"):
            make(config)
    model, ids = architecture.model_class(config), torch.stack(sequences((5, 5)))
    assert isinstance(model, DSFModel)
    assert model(ids).get(CACHE_NAME) is None
    with pytest.raises(ValueError, match=rf"{CACHE_NAME} is given, but bidirectional=True.*bidirectional=False"):
        model(ids, **new_cache(model))
    with pytest.raises(ValueError, match=r"use_cache is given, but bidirectional=True"):
        model(ids, use_cache=True)


@pytest.mark.parametrize("name", sorted(set(list_architectures()) - set(NAMES)))
@pytest.mark.parametrize("field", [{"bidirectional": True}, {"window": 8}], ids=str)
def test_time_varying_architectures_have_no_such_fields(name, field):
    config_class = get_architecture(name).config_class
    assert not getattr(get_architecture(name).mixer_class, "time_invariant", False)
    ((key, value),) = field.items()
    with pytest.raises(ValueError, match=f"{key}={value}: {config_class.__name__} has no field '{key}'"):
        small_config(name, "bare", **field)


@torch.no_grad()
def test_one_two_sided_layer_makes_a_hybrid_look_ahead():
    """Such a hybrid classifies, padded and packed exactly, and is no causal model."""
    config = HybridConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_heads=4,
        state_size=4,
        mixers=["ssd", "lru"],
        mixer_options={"lru": {"bidirectional": True, "window": 4}},
        num_labels=5,
        initializer_range=0.3,
    )
    assert config.looks_ahead
    with pytest.raises(ValueError, match=r"bidirectional=True.*classification"):
        AutoModelForCausalLM.from_config(config)
    model = AutoModelForTokenClassification.from_config(config).double().eval()
    contract.assert_padding_contract(model, "interior", 1e-10)
    contract.assert_packing_contract(model, 1e-10)
    phi = [model.transfer_matrix(layer, sequences((9,))[0][None]) for layer in range(2)]
    assert [bool(x.triu(1).any()) for x in phi] == [False, True]
