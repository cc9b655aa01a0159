"""Quantised and offloaded models compute what plain ones do."""

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from dsf_models.backbone import get_architecture
from tests.contract import NEEDED, VOCAB, error, fresh, generate, others_slowly, sequences

NAMES = others_slowly()
FOUR_BIT = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
KINDS = {
    "bitsandbytes 8-bit": (BitsAndBytesConfig(load_in_8bit=True), 0.1),
    "bitsandbytes 4-bit": (FOUR_BIT, 0.5),
    "torchao int8": (TorchAoConfig(Int8WeightOnlyConfig()), 0.1),
}
"""Configuration, and the largest error of a logit relative to the largest logit."""
# On a CPU, bitsandbytes packs 4-bit weights in blocks of 32 rows and 64 columns: so are all projections here.
WIDE = {"num_heads": 32, "state_size": 32, "hidden_size": 64, "channel_mixer": "swiglu", "gate": "silu"}
OWN = {"s6": {"state_size": 32, "time_step_rank": 64}, "gla": {"decay_rank": 64}}


def ids():
    return torch.stack(sequences((12, 12)))


def wide(name):
    config_class = get_architecture(name).config_class
    fields = WIDE | NEEDED.get(name, {}) | config_class.fixed_fields | OWN.get(name, {})
    torch.manual_seed(0)
    return get_architecture(name).causal_lm_class(config_class(vocab_size=VOCAB, num_hidden_layers=2, **fields)).eval()


def quantised():
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.feature(kind)) for kind in KINDS])


@torch.no_grad()
@quantised()
@NAMES
def test_quantised_models_stay_close(name, kind, tmp_path):
    """Every projection is quantised and nothing else; Λ stays in float32, and decoding goes through the cache."""
    config, bound = KINDS[kind]
    plain = wide(name)
    plain.save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    for module_name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            assert type(module.weight) is not nn.Parameter, f"{module_name} is not quantised"
    for block in model.model.layers:
        mixer = block.token_mixer
        assert {getattr(mixer, name).dtype for name in mixer.transition_parameters} <= {torch.float32}
    found = model(ids(), use_cache=False).logits
    assert 0 < error(found, plain(ids(), use_cache=False).logits) < bound
    assert generate(model, ids()).shape == (2, 18)
    if kind == "bitsandbytes 4-bit":
        return
    model.save_pretrained(tmp_path / kind)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
    assert torch.equal(again(ids(), use_cache=False).logits, found)


@torch.no_grad()
@pytest.mark.feature("Offload to disk")
@NAMES
def test_layers_on_disk(name, tmp_path):
    plain = fresh(name)
    plain.save_pretrained(tmp_path)
    places = {f"model.{part}": "cpu" for part, _ in plain.model.named_children() if part != "layers"}
    places |= {f"model.layers.{i}": "disk" for i in range(2)} | {"lm_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())
    assert torch.equal(model(ids(), use_cache=False).logits, plain(ids(), use_cache=False).logits)
    assert torch.equal(generate(model, ids()), generate(plain, ids()))


@torch.no_grad()
@pytest.mark.feature("Offload to CPU memory")
@NAMES
def test_layers_in_memory_until_they_run(name):
    """As on a GPU: each module's weights are on the device while it runs, and nowhere else."""
    plain, model = fresh(name), cpu_offload(fresh(name), execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(ids(), use_cache=False).logits, plain(ids(), use_cache=False).logits)
    assert torch.equal(generate(model, ids()), generate(plain, ids()))
