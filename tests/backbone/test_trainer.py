"""A real `Trainer` of a few steps on the CPU, for every architecture: losses, accumulation, evaluation, resuming."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import set_seed
from transformers.utils.generic import find_labels

from dsf_models import list_architectures
from dsf_models.backbone import get_architecture
from tests import contract
from tests.contract import NEEDED, REPRESENTATIVES, VOCAB, fresh, others_slowly

LENGTH = 7
NUM_LABELS = 3
every_architecture = pytest.mark.parametrize("name", list_architectures())
# Heads are the same code for every architecture, and so are the losses: each architecture meets each value of each
# option, and one of them meets all combinations. A run of Trainer costs a third of a second, whatever it trains.
ALL_OF = "ssd"
PAIRS = [
    *((name, "causal_lm") for name in list_architectures()),
    *((ALL_OF, head) for head in ("sequence_classification", "token_classification")),
]
LOSSES = [
    *((name, *loss) for name in list_architectures() for loss in (("next", 0.2), ("same", 0.0))),
    *((ALL_OF, *loss) for loss in (("next", 0.0), ("same", 0.2))),
]
every_head = pytest.mark.parametrize("head", ["causal_lm", "sequence_classification", "token_classification"])


def rows(head="causal_lm", count=8):
    """Return a data set whose rows score different numbers of tokens, among them the first."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, VOCAB, (count, LENGTH), generator=generator)
    if head == "sequence_classification":
        return [{"input_ids": row, "labels": row[0] % NUM_LABELS} for row in ids]
    labels = ids % NUM_LABELS if head == "token_classification" else ids.clone()
    for index, row in enumerate(labels):
        row[LENGTH - index % (LENGTH - 2) :] = -100
    return [{"input_ids": row, "labels": target} for row, target in zip(ids, labels, strict=True)]


def model_of(name, head="causal_lm", **changes):
    changes |= {} if head == "causal_lm" else {"num_labels": NUM_LABELS}
    depth = {} if name in NEEDED else {"num_hidden_layers": 1}
    return fresh(name, "default", head, **depth | {"initializer_range": 0.1} | changes)


def trainer(model, folder, data=None, parts=None, **options):
    """Return a trainer with plain SGD, which turns a wrong gradient into as wrong a step."""
    options = {
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
    } | options
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_grad_norm=0.0, seed=1, **options
    )
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, **(parts or {}))


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def loss_by_hand(model, batch, alignment, smoothing):
    """Return (1 - ε) · cross-entropy + ε · mean over the vocabulary of -log p, averaged over scored tokens."""
    ids, labels = (torch.stack([row[key] for row in batch]) for key in ("input_ids", "labels"))
    logits = model(ids).logits.double()
    if alignment == "next":
        logits, labels = logits[:, :-1], labels[:, 1:]
    surprise = -logits.log_softmax(-1)
    scored = labels != -100
    of_label = surprise.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return ((1 - smoothing) * of_label + smoothing * surprise.mean(-1))[scored].mean().item()


@pytest.mark.feature("Trainer: loss and label smoothing")
@pytest.mark.parametrize(("name", "alignment", "smoothing"), LOSSES)
def test_loss(name, alignment, smoothing, tmp_path):
    """The trained and the evaluated loss, with and without label smoothing, are those worked out by hand."""
    model, data = model_of(name, label_alignment=alignment), rows(count=4)
    with torch.no_grad():
        expected = loss_by_hand(model, data, alignment, smoothing)
    run = trainer(model, tmp_path, data, max_steps=1, label_smoothing_factor=smoothing)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    run.train()
    assert losses(run) == pytest.approx([expected], rel=1e-5)


@pytest.mark.feature("Trainer: loss and label smoothing")
@pytest.mark.parametrize(("name", "alignment", "smoothing"), LOSSES)
def test_step(name, alignment, smoothing, tmp_path):
    """One step of SGD goes down the gradient of the mean over all scored tokens of the accumulated batches."""
    model, data = model_of(name, label_alignment=alignment), rows(count=4)
    start = weights(model)
    ids, labels = (torch.stack([row[key] for row in data]) for key in ("input_ids", "labels"))
    if smoothing == 0.0:
        loss = model(ids, labels=labels).loss
    else:
        logits = model(ids).logits
        logits, labels = (logits[:, :-1], labels[:, 1:]) if alignment == "next" else (logits, labels)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(model.parameters(), gradient, strict=True)
    gradient = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    trainer(model, tmp_path, data, max_steps=1, label_smoothing_factor=smoothing, **options).train()
    contract.assert_close((start - weights(model)) / 0.1, gradient, 1e-4)


@pytest.mark.feature("Trainer: gradient accumulation")
@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_gradient_accumulation(name, head, tmp_path):
    """Two batches of two = one batch of four, though their rows score different numbers of tokens."""
    found = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        model = model_of(name, head)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        run = trainer(model, tmp_path, rows(head), max_steps=3, **options)
        run.train()
        found.append((losses(run), weights(model)))
    for run_losses, run_weights in found[1:]:
        assert run_losses == pytest.approx(found[0][0], rel=1e-4)
        contract.assert_close(run_weights, found[0][1], 1e-5)
    assert len(found[0][0]) == 3
    assert contract.error(weights(model_of(name, head)), found[0][1]) > 1e-3


@every_architecture
@every_head
def test_labels_are_the_only_labels(name, head):
    """Trainer asks a batch for every parameter of `forward` whose name tells of labels."""
    assert find_labels(getattr(get_architecture(name), f"{head}_class")) == ["labels"]


@pytest.mark.feature("Trainer: evaluation and prediction")
@every_architecture
@every_head
@torch.no_grad()
def test_evaluation_and_prediction(name, head, tmp_path):
    """Caches never reach the predictions, which are those of the model."""
    data, found = rows(head, 6), []
    for use_cache in (True, False):
        model = model_of(name, head, use_cache=use_cache)
        run = trainer(model, tmp_path, data, per_device_eval_batch_size=4)
        predictions, labels, metrics = run.predict(data)
        assert isinstance(predictions, np.ndarray)
        assert np.array_equal(labels, torch.stack([row["labels"] for row in data]).numpy())
        logits = model(torch.stack([row["input_ids"] for row in data])).logits
        contract.assert_close(torch.from_numpy(predictions), logits, 1e-5)
        found.append((metrics["test_loss"], run.evaluate()["eval_loss"]))
    assert np.ptp(found) <= 1e-6 * np.max(found)


@pytest.mark.feature("Trainer: exact resume")
@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_resumed(name, head, tmp_path):
    """A run that stops after two steps and goes on from its checkpoint = the uninterrupted run, dropout and all."""
    data = rows(head)
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "optim": "adamw_torch", "learning_rate": 1e-2}
    whole = model_of(name, head, dropout=0.3)
    uninterrupted = trainer(whole, tmp_path, data, **options)
    uninterrupted.train()
    set_seed(77)
    again = model_of(name, head, dropout=0.3)
    assert not torch.equal(weights(again), weights(whole))
    resumed = trainer(again, tmp_path, data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))
    assert losses(resumed) == losses(uninterrupted)
    stored = type(whole).from_pretrained(tmp_path / "checkpoint-4")
    assert torch.equal(weights(stored), weights(whole))


@pytest.mark.feature("Packed documents")
@every_architecture
def test_packed_training(name, tmp_path):
    """A step on rows that the collator packs goes down the gradient of the documents alone, with use_cache=True."""
    model = model_of(name)
    documents = [row["input_ids"][: LENGTH - index] for index, row in enumerate(rows(count=4))]
    scored = sum(len(document) - 1 for document in documents)
    losses_alone = [model(row[None], labels=row[None], num_items_in_batch=scored).loss for row in documents]
    expected = float(sum(losses_alone))
    gradient = contract.gradients(model, sum(losses_alone))
    unreached = {key: torch.zeros_like(parameter) for key, parameter in model.named_parameters()}
    gradient = torch.cat([value.flatten() for value in (unreached | gradient).values()])
    start = weights(model)
    collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    data = [{"input_ids": row.tolist()} for row in documents]
    run = trainer(model, tmp_path, data, {"data_collator": collator}, max_steps=1, use_cache=True)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    run.train()
    assert losses(run) == pytest.approx([expected], rel=1e-5)
    contract.assert_close((start - weights(model)) / 0.1, gradient, 1e-4)


@pytest.mark.feature("Packed documents")
@every_architecture
def test_packed_training_with_a_cache_asked_for(name):
    """Documents told by position_ids alone never leak into each other through use_cache=True."""
    model = model_of(name).train()
    documents = contract.sequences()
    inputs = contract.packed(documents)["position_ids"]
    if model.base_model.keeps_keys:
        with pytest.raises(ValueError, match="cannot cache packed documents: pass use_cache=False"):
            model(**inputs, use_cache=True)
    else:
        contract.assert_close(model(**inputs, use_cache=True).logits[0], contract.logits_alone(model, documents), 1e-5)


@pytest.mark.feature("Trainer: bfloat16")
@others_slowly()
def test_bfloat16(name, tmp_path):
    """Autocast keeps all weights in float32, a bfloat16 model those of its transition; both follow float32."""
    found = {}
    for kind in ("float32", "autocast", "bfloat16"):
        model = model_of(name)
        if kind == "bfloat16":
            model.save_pretrained(tmp_path / "start")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.bfloat16)
            strict = {key.split(".")[-1] for key, p in model.named_parameters() if p.dtype == torch.float32}
            assert strict == model.base_model._keep_in_fp32_modules_strict
        run = trainer(model, tmp_path, rows(), max_steps=2, bf16=kind == "autocast")
        run.train()
        found[kind] = losses(run)
        if kind == "autocast":
            assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert found["autocast"] == pytest.approx(found["float32"], rel=2e-2)
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=2e-2)


@pytest.mark.feature("Activation checkpointing")
@others_slowly()
def test_activation_checkpointing(name, tmp_path):
    """Both kinds, of every layer and of every second one, take the same step."""
    found = []
    for kind in (None, {"use_reentrant": True}, {"use_reentrant": False, "every_n_layers": 2}):
        model = model_of(name, num_hidden_layers=len(NEEDED.get(name, {}).get("mixers", "ab")))
        options = {} if kind is None else {"activation_checkpointing": True, "activation_checkpointing_kwargs": kind}
        trainer(model, tmp_path, rows(), max_steps=1, **options).train()
        if kind is not None:
            marked = [block.gradient_checkpointing for block in model.model.layers]
            assert marked == ([True, True] if kind["use_reentrant"] else [True, False])
        found.append(weights(model))
    for other in found[1:]:
        contract.assert_close(other, found[0], 1e-6)


def word_tokenizer():
    """Return a tokenizer of whole words, with a pad and an end of text."""
    words = [
        "<pad>",
        "<eos>",
        "<unk>",
        *["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run", "home", "again"],
    ]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.feature("Trainer: tokenizer as processing_class")
@others_slowly()
def test_text_through_a_tokenizer(name, tmp_path):
    """Padded batches of text have the loss of each text alone; the saved folder loads with its tokenizer."""
    tokenizer, model = word_tokenizer(), model_of(name, pad_token_id=0, eos_token_id=1)
    texts = ["the cat sat on a mat", "dogs run home", "the cat saw dogs run home again", "a mat"]
    data = [dict(tokenizer(text)) for text in texts]
    parts = {"processing_class": tokenizer, "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)}
    ids = [torch.tensor(row["input_ids"])[None] for row in data]
    scored = sum(row.shape[1] - 1 for row in ids)
    with torch.no_grad():
        expected = float(sum(model(row, labels=row, num_items_in_batch=scored).loss for row in ids))
    run = trainer(model, tmp_path, data, parts, max_steps=1)
    run.train()
    assert losses(run) == pytest.approx([expected], rel=1e-5)
    run.save_model(str(tmp_path / "saved"))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(weights(loaded), weights(model))


def compiled_losses(name, folder, backend):
    """Return the losses of three steps, plain and compiled."""
    found = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        torch._dynamo.reset()
        run = trainer(model_of(name), folder, rows(), max_steps=3, **options)
        run.train()
        found.append(losses(run))
    torch._dynamo.reset()
    return found


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_compiled_training(name, tmp_path):
    plain, compiled = compiled_losses(name, tmp_path, "eager")
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.feature("torch.compile of training")
@every_architecture
def test_training_compiled_by_inductor(name, tmp_path):
    plain, compiled = compiled_losses(name, tmp_path, "inductor")
    assert compiled == pytest.approx(plain, rel=1e-4)
