"""LoRA on every architecture: each projection is adapted, has an effect, and merges."""

import subprocess
import sys

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from dsf_models import lora_config
from dsf_models.backbone import get_architecture
from tests.contract import assert_close, fresh, others_slowly, sequences, small_config

NAMES = others_slowly()
CASES = ("full", "default")


def ids():
    return torch.stack(sequences((12, 12)))


def logits(model):
    with torch.no_grad():
        return model(ids(), use_cache=False).logits


def adapted(name, case="full", head="causal_lm", **fields):
    torch.manual_seed(1)
    model = fresh(name, case, head)
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **fields))


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.feature("LoRA (PEFT)")
@NAMES
def test_every_projection_is_adapted_by_default(name):
    for case in CASES:
        expected = {n for n, x in fresh(name, case).model.named_modules() if isinstance(x, nn.Linear)}
        assert {n.removeprefix("base_model.model.model.") for n in layers(adapted(name, case))} == expected


@pytest.mark.feature("LoRA (PEFT)")
@NAMES
def test_every_adapter_has_gradient_and_effect(name):
    for case in CASES:
        model = adapted(name, case).eval()
        model(ids(), labels=ids(), use_cache=False).loss.backward()
        trained = {n: x for n, x in model.named_parameters() if x.requires_grad}
        assert [n for n, x in trained.items() if x.grad is None or not bool(x.grad.abs().max() > 0)] == []
        whole = logits(model)
        for layer_name, layer in layers(model).items():
            scale = layer.scaling["default"]
            layer.scaling["default"] = 0.0
            assert not torch.equal(logits(model), whole), f"{layer_name} has no effect"
            layer.scaling["default"] = scale


@pytest.mark.feature("LoRA (PEFT)")
@NAMES
def test_an_adapter_is_saved_loaded_and_merged(name, tmp_path):
    model = adapted(name).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(name), tmp_path).eval()
    assert torch.equal(logits(loaded), expected)
    assert_close(logits(loaded.merge_and_unload()), expected, 1e-5, "merged")


@pytest.mark.feature("LoRA with activation checkpointing")
@NAMES
def test_activation_checkpointing_changes_no_gradient(name):
    found = []
    for checkpointing in (False, True):
        model = adapted(name).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model(ids(), labels=ids()).loss.backward()
        found.append({n: x.grad for n, x in model.named_parameters() if x.requires_grad})
    for parameter, gradient in found[0].items():
        assert_close(found[1][parameter], gradient, 1e-5, parameter)


@pytest.mark.feature("LoRA training of Λ")
@NAMES
def test_mixers_are_trained_whole_and_saved(name, tmp_path):
    """Λ included, and beside adapters of the channel mixers where there are any."""
    for case in CASES:
        model = get_peft_model(fresh(name, case), lora_config(fresh(name, case), train_mixers=True, r=2)).train()
        named = dict(model.named_parameters())
        for i, block in enumerate(model.get_base_model().model.layers):
            own = {n for n in named if f"layers.{i}.{block.mixer_attribute}.modules_to_save" in n}
            transition = set(block.token_mixer.transition_parameters)
            assert transition <= {n.rpartition(".")[2] for n in own}
            assert all(named[n].requires_grad for n in own)
        optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.01)
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        model.save_pretrained(tmp_path / case)
        loaded = PeftModel.from_pretrained(fresh(name, case), tmp_path / case)
        assert torch.equal(logits(loaded.eval()), logits(model.eval()))


@pytest.mark.feature("LoRA by add_adapter")
@NAMES
def test_adapters_of_transformers_itself(name):
    model = fresh(name)
    plain = logits(model)
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"add_adapter of this transformers needs peft >= {MIN_PEFT_VERSION}.")
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False))
    assert not torch.equal(logits(model), plain)
    model.disable_adapters()
    assert torch.equal(logits(model), plain)


@pytest.mark.feature("LoRA classifier saves its head")
@NAMES
def test_a_classifier_saves_its_head(name, tmp_path):
    base = fresh(name, head="sequence_classification")
    model = get_peft_model(base, lora_config(base, r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(name, head="sequence_classification"), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


TEXT = """The state of a layer is all that it knows of the past. What it keeps, and for how long, is a choice of its
transition matrix; what it takes in, of its input matrix; and what it gives away, of its output matrix. """


@pytest.mark.feature("LoRA (PEFT)")
@NAMES
def test_training_learns_a_text(name):
    """Bytes of a sentence; adapters alone are trained."""
    torch.manual_seed(0)
    config = small_config(
        name, "default", vocab_size=128, initializer_range=0.1, hidden_size=32, channel_mixer="swiglu"
    )
    model = get_architecture(name).causal_lm_class(config)
    model = get_peft_model(model, lora_config(model, r=8, lora_alpha=32))
    tokens = torch.tensor([list(TEXT.encode())])
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=0.02)
    losses = []
    for _ in range(12):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3, losses


def test_peft_is_not_imported():
    code = "import sys, dsf_models; assert 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
