"""The heads of every architecture: losses, pooling, outputs, embeddings, checkpointing."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from dsf_models.errors import NotADynamicalSystemError
from dsf_models.system import SoftmaxSystem
from tests import contract
from tests.contract import CACHE_NAME, HEADS, NEEDED, PADDING, VOCAB, every, fresh, gradients, sequences, shared

FLOAT32 = torch.float32


def token_ids():
    return torch.stack(sequences((10, 10)))


def scored_by_hand(logits, targets):
    return F.cross_entropy(logits.double().flatten(0, 1), targets.flatten())


# ---- language model -------------------------------------------------------------------------------------------------


@every("default", "full")
@torch.no_grad()
def test_label_alignment(name, case):
    model, ids = shared(name, case), token_ids()
    labels = torch.where(torch.arange(10) % 3 == 0, -100, ids)
    logits = model(ids).logits
    shifted, aligned = scored_by_hand(logits[:, :-1], labels[:, 1:]), scored_by_hand(logits, labels)
    assert shifted != aligned
    contract.assert_close(model(ids, labels=labels).loss, shifted, 1e-12)
    contract.assert_close(model(ids, labels=labels, label_alignment="next").loss, shifted, 1e-12)
    contract.assert_close(model(ids, labels=labels, label_alignment="same").loss, aligned, 1e-12)
    same = fresh(name, case, label_alignment="same").double()
    contract.assert_close(same(ids, labels=labels).loss, aligned, 1e-12)
    contract.assert_close(same(ids, labels=labels, label_alignment="next").loss, shifted, 1e-12)
    with pytest.raises(ValueError, match=r"label_alignment='shifted'.*next.*same"):
        model(ids, labels=labels, label_alignment="shifted")


@pytest.mark.feature("Token-weighted loss (num_items_in_batch)")
@every("default")
@torch.no_grad()
def test_labels_shifted_beforehand(name, case):
    """shift_labels take the place of labels, as sequence parallelism needs it."""
    model, ids = shared(name, case), token_ids()
    targets, other = ids.roll(3, dims=1), ids.roll(1, dims=1)
    expected = scored_by_hand(model(ids).logits, targets)
    for labels in ({}, {"labels": other}):
        contract.assert_close(model(ids, shift_labels=targets, **labels).loss, expected, 1e-12)


@every("default")
@torch.no_grad()
def test_loss_weighted_by_tokens(name, case):
    model, ids = shared(name, case), token_ids()
    labels = ids.masked_fill(torch.arange(20).reshape(2, 10) % 4 == 1, -100)
    items = int((labels[:, 1:] != -100).sum())
    whole = model(ids, labels=labels).loss
    parts = [
        model(row[None], labels=target[None], num_items_in_batch=count).loss
        for row, target, count in zip(ids, labels, (items, torch.tensor(items)), strict=True)
    ]
    contract.assert_close(sum(parts), whole, 1e-12)


@pytest.mark.feature("logits_to_keep")
@every("default")
@torch.no_grad()
def test_logits_to_keep(name, case):
    model, ids = shared(name, case), token_ids()
    logits, labels = model(ids).logits, token_ids()
    chosen = torch.tensor([1, 4, 8])
    kept = torch.rand(2, 10) > 0.5
    for keep, expected in ((3, logits[:, -3:]), (0, logits), (chosen, logits[:, chosen]), (kept, logits[kept])):
        contract.assert_close(model(ids, logits_to_keep=keep).logits, expected, 1e-12)
    loss = model(ids, labels=labels, logits_to_keep=chosen).loss
    contract.assert_close(loss, scored_by_hand(logits[:, chosen], labels[:, chosen + 1]), 1e-12)


@every("full")
@torch.no_grad()
def test_a_loss_of_ones_own(name, case):
    model, ids = fresh(name, case), token_ids()
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: labels.sum() + vocab_size
    assert model(ids, labels=ids).loss == ids.sum() + VOCAB


# ---- classification -------------------------------------------------------------------------------------------------


@pytest.mark.feature("Sequence classification")
@every("default", "full")
@torch.no_grad()
def test_pooling_of_the_last_real_token(name, case):
    model, rows = fresh(name, case, "sequence_classification", num_labels=3).double(), sequences()
    alone = torch.cat([model(row[None]).logits for row in rows])
    padded = fresh(name, case, "sequence_classification", num_labels=3, pad_token_id=contract.PAD).double()
    padded.load_state_dict(model.state_dict())
    for classifier, side in itertools.product((model, padded), PADDING):
        mask = contract.padding_mask(side)
        ids = contract.place(rows, mask, contract.PAD)
        for kind in (mask, mask.long(), mask.float()):
            contract.assert_close(classifier(ids, attention_mask=kind).logits, alone, 1e-10, side)
        embeds = classifier.get_input_embeddings()(ids)
        contract.assert_close(classifier(inputs_embeds=embeds, attention_mask=mask).logits, alone, 1e-10, side)
    right = contract.padding_mask("right")
    # Without a mask, pads on the right are told by pad_token_id, as in transformers; without that, there are none.
    ids = contract.place(rows, right, contract.PAD)
    contract.assert_close(padded(ids).logits, alone, 1e-10)
    contract.assert_close(model(ids).logits[:1], alone[:1], 1e-10)
    assert contract.error(model(ids).logits, alone) > 1e-3


@pytest.mark.feature("Regression and multi-label heads")
@every("default")
@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), "multi_label_classification"),
        (1, torch.tensor([0.5, -1.0]), "regression"),
        (2, torch.tensor([[0.5, -1.0], [2.0, 0.0]]), "regression"),
    ],
    ids=["single label", "multi label", "regression", "regression on two"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_sequence_classification_losses(name, case, num_labels, labels, problem_type, dtype):
    given = problem_type if num_labels == 2 else None
    model = fresh(name, case, "sequence_classification", num_labels=num_labels, problem_type=given).to(dtype)
    outputs = model(token_ids(), labels=labels)
    logits = outputs.logits.double()
    expected = {
        "single_label_classification": lambda: F.cross_entropy(logits, labels),
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(logits, labels.double()),
        "regression": lambda: F.mse_loss(logits.squeeze(-1), labels.double()),
    }[problem_type]()
    contract.assert_close(outputs.loss, expected, 1e-6)
    assert model.config.problem_type == problem_type
    outputs.loss.backward()


@pytest.mark.feature("Token classification")
@every("default")
@torch.no_grad()
def test_token_classification(name, case):
    model, ids = fresh(name, case, "token_classification", num_labels=5).double(), token_ids()
    labels = torch.randint(0, 5, ids.shape).masked_fill(ids % 3 == 0, -100)
    outputs = model(ids, labels=labels)
    assert outputs.logits.shape == (2, 10, 5)
    contract.assert_close(outputs.loss, scored_by_hand(outputs.logits, labels), 1e-6)
    items = int((labels != -100).sum())
    contract.assert_close(model(ids, labels=labels, num_items_in_batch=items).loss, outputs.loss, 1e-6)


# ---- all heads ------------------------------------------------------------------------------------------------------


def loss_of(model, head, **inputs):
    labels = {
        "causal_lm": token_ids(),
        "sequence_classification": torch.tensor([0, 1]),
        "token_classification": torch.ones(2, 10, dtype=torch.long),
    }
    outputs = model(token_ids(), **inputs, **({} if head == "model" else {"labels": labels[head]}))
    return outputs.last_hidden_state.square().mean() if head == "model" else outputs.loss


@every("default", "full", "mlp", "minimal")
def test_gradients_reach_every_parameter(name, case):
    for head in HEADS:
        model = shared(name, case, torch.float64, head)
        found = gradients(model, loss_of(model, head))
        assert found.keys() == dict(model.named_parameters()).keys()
        assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.feature("Activation checkpointing")
@every("full", "minimal")
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing(name, case, use_reentrant):
    for head in ("causal_lm", "sequence_classification"):
        model = fresh(name, case, head).double().train()
        mask = contract.padding_mask("left", (10, 6))
        expected = gradients(model, loss_of(model, head, attention_mask=mask))
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert model.base_model.gradient_checkpointing
        loss = loss_of(model, head, attention_mask=mask)
        loss.backward()
        found = {key: parameter.grad for key, parameter in model.named_parameters()}
        contract.assert_gradients_close(found, expected, 1e-12)
        cached = model(token_ids(), use_cache=True, **contract.new_cache(model))
        assert cached.get(CACHE_NAME) is None


@pytest.mark.feature("Hidden states (output_hidden_states)")
@every("default", "full")
@torch.no_grad()
def test_outputs(name, case):
    ids = token_ids()
    for head in HEADS:
        model = shared(name, case, FLOAT32, head)
        plain = model(ids, use_cache=False)
        states = model(ids, use_cache=False, output_hidden_states=True).hidden_states
        assert len(states) == model.config.num_hidden_layers + 1
        assert all(state.shape == (2, 10, model.config.hidden_size) for state in states)
        assert torch.equal(states[-1], model.base_model(ids).last_hidden_state)
        flat = model(ids, use_cache=False, return_dict=False)
        assert isinstance(flat, tuple)
        assert torch.equal(flat[0], plain[0])
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds, use_cache=False)[0], plain[0])
        by_config = fresh(name, case, head, return_dict=False, output_hidden_states=True)
        assert isinstance(by_config(ids), tuple)
        assert len(by_config(ids, return_dict=True).hidden_states) == model.config.num_hidden_layers + 1


@every("default")
@torch.no_grad()
def test_use_cache(name, case):
    model, ids = fresh(name, case), token_ids()
    assert model(ids).get(CACHE_NAME) is not None
    assert model(ids, use_cache=False).get(CACHE_NAME) is None
    given = contract.new_cache(model)
    whole = model(ids, use_cache=False).logits
    model(ids[:, :6], **given)
    # A given cache is read and written whatever use_cache says, as in transformers.
    contract.assert_close(model(ids[:, 6:], use_cache=False, **given).logits, whole[:, 6:], 1e-5)
    assert int(given[CACHE_NAME].get_seq_length()) == 10
    model.train()
    assert model(ids).get(CACHE_NAME) is None
    assert model(ids, use_cache=True).get(CACHE_NAME) is not None
    model.config.use_cache = False
    assert model.eval()(ids).get(CACHE_NAME) is None


@every("default")
def test_gradients_with_a_cache(name, case):
    """What enters the cache is detached: segments can be trained one after the other."""
    model, ids = fresh(name, case), token_ids()
    cache = contract.new_cache(model)
    cuts = [0, 4, 5, 6, 10]
    losses = [
        model(ids[:, start:stop], labels=ids[:, start:stop], label_alignment="same", use_cache=True, **cache).loss
        for start, stop in itertools.pairwise(cuts)
    ]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model, sum(losses)).values())


@pytest.mark.feature("Resized embeddings")
@every("default", "full")
@torch.no_grad()
def test_resized_embeddings(name, case, tmp_path):
    model, ids = fresh(name, case), token_ids()
    logits = model(ids).logits
    model.resize_token_embeddings(VOCAB + 7)
    assert model.config.vocab_size == VOCAB + 7
    assert model(ids + 7, labels=ids + 7).logits.shape == (2, 10, VOCAB + 7)
    contract.assert_close(model(ids).logits[..., :VOCAB], logits, 1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.feature("Resized embeddings")
@every("default", "full")
@torch.no_grad()
def test_resized_embeddings_to_a_multiple(name, case):
    """Tied or not, to a multiple and back, with new rows drawn around the mean of the old ones or not."""
    for mean_resizing, tied in itertools.product((True, False), repeat=2):
        model, ids = fresh(name, case, tie_word_embeddings=tied), token_ids()
        logits = model(ids).logits
        model.resize_token_embeddings(VOCAB + 1, pad_to_multiple_of=16, mean_resizing=mean_resizing)
        assert model.config.vocab_size == model.lm_head.out_features == 48
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        contract.assert_close(model(ids).logits[..., :VOCAB], logits, 1e-6)
        loss = model(ids, labels=ids + 7).loss
        contract.assert_close(loss, scored_by_hand(model(ids).logits[:, :-1], ids[:, 1:] + 7), 1e-6)
        model.resize_token_embeddings(VOCAB)
        contract.assert_close(model(ids).logits, logits, 1e-6)


@pytest.mark.feature("Tied embeddings")
@every("default", "full")
@torch.no_grad()
def test_tied_embeddings(name, case, tmp_path):
    model = fresh(name, case, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(token_ids()).logits, model(token_ids()).logits)
    untied = fresh(name, case, tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


# ---- attention weights ----------------------------------------------------------------------------------------------


def shares_transition_in_heads(model):
    """Whether every layer has one Φ for all channels of a head."""
    systems = model.dsf_systems(token_ids())
    return all(system is not None and system.transfer_matrix().ndim == 4 for system in systems)


@pytest.mark.feature("Attention weights (output_attentions)")
@every("default", "full", "bare")
@torch.no_grad()
def test_output_attentions(name, case):
    """Φ of every layer, or the attention layers' weights, rows and columns in the order of the slots."""
    for head in HEADS:
        model = fresh(name, case, head, attn_implementation="eager").double()
        softmax = [isinstance(system, SoftmaxSystem) for system in model.dsf_systems(token_ids())]
        if not any(softmax) and not shares_transition_in_heads(model):
            with pytest.raises((ValueError, NotADynamicalSystemError), match=r"transfer_matrix\(layer\)|is an LSTM"):
                model(token_ids(), output_attentions=True)
            continue
        layers = [layer for layer, is_softmax in enumerate(softmax) if is_softmax or not any(softmax)]
        for inputs in ({}, {"attention_mask": contract.padding_mask("left", (10, 6))}):
            outputs = model(token_ids(), output_attentions=True, **inputs)
            contract.assert_close(outputs[0], model(token_ids(), **inputs)[0], 1e-12)
            assert len(outputs.attentions) == len(layers)
            real = inputs.get("attention_mask", torch.ones(2, 10, dtype=torch.bool))[:, None, :, None]
            for layer, weights in zip(layers, outputs.attentions, strict=True):
                assert weights.shape == (2, weights.shape[1], 10, 10)
                expected = model.transfer_matrix(layer, token_ids(), **inputs)
                contract.assert_close(weights * real, expected * real, 1e-10)
        if not any(softmax) and head == "causal_lm":
            cache = contract.new_cache(model)
            model(token_ids()[:, :4], output_attentions=True, **cache)
            with pytest.raises(ValueError, match=r"output_attentions=True with a cache that holds 4 tokens"):
                model(token_ids()[:, 4:], output_attentions=True, **cache)
    if name == "lstm":
        pytest.skip("the nonlinear control has no transfer matrix")
    if name not in NEEDED and not any(softmax) and not shares_transition_in_heads(model):
        pytest.skip("channels of a head have different transfer matrices: ask model.transfer_matrix(layer)")


# ---- real-valued inputs ---------------------------------------------------------------------------------------------


@pytest.mark.feature("Real-valued inputs")
@every("default", "full")
def test_inputs_values(name, case, tmp_path):
    """A regression on vectors of real numbers: padded = alone, gradients, save and load, and what is refused."""
    model = fresh(name, case, "sequence_classification", num_labels=1, problem_type="regression", input_size=3).double()
    values = torch.randn(3, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for side in PADDING:
        mask = contract.padding_mask(side)
        placed = torch.full((*mask.shape, 3), 7.0, dtype=torch.float64)
        rows = [row[:length] for row, length in zip(values, contract.LENGTHS, strict=True)]
        placed[mask] = torch.cat(rows)
        alone = torch.cat([model(inputs_values=row[None]).logits for row in rows])
        contract.assert_close(model(inputs_values=placed, attention_mask=mask).logits, alone, 1e-10, side)
    model(inputs_values=values, labels=torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)).loss.backward()
    used = {key: parameter.grad for key, parameter in model.named_parameters() if "embed_tokens" not in key}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in used.values())
    assert float(model.model.embed_values.weight.grad.abs().max()) > 0
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    # Not to the last bit: where a file's weights lie in memory decides in which order some processors sum.
    contract.assert_close(loaded(inputs_values=values).logits, model(inputs_values=values).logits, 1e-12, "loaded")
    for wrong in (values[..., :2], values[0]):
        with pytest.raises(ValueError, match=r"inputs_values of shape .* with input_size=3: build the model with"):
            model(inputs_values=wrong)
    with pytest.raises(ValueError, match="give exactly one of"):
        model(token_ids(), inputs_values=values)
    with pytest.raises(ValueError, match="input_size=None"):
        fresh(name, case, "model")(inputs_values=values)


@pytest.mark.feature("Trainer: bfloat16")
@every()
def test_autocast(name, case):
    """Training and decoding under autocast to bfloat16 follow float32."""
    model, ids = fresh(name, case).train(), token_ids()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    contract.assert_close(loss, model(ids, labels=ids).loss, 3e-2)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoded = contract.logits_in_segments(model, ids, [6, 7])
        contract.assert_close(decoded, model(ids, use_cache=False).logits, 5e-2)
