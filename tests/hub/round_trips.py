"""Pushes models to the Hub at HF_ENDPOINT and pulls them again, in a process of its own, and prints what it found.

A separate process, because huggingface_hub reads its environment when it is imported. The tests of
test_server_round_trips.py read the JSON on the last line of standard output.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from dsf_models import list_architectures
from dsf_models.hub.publish import publish
from dsf_models.hub.usage import UsageError
from tests.contract import fresh, sequences
from tests.hub.text import text

IDS = torch.stack(sequences((9, 9)))
API = HfApi()


@torch.no_grad()
def differs(model: PreTrainedModel, repo_id: str, **options: Any) -> float:
    """Largest difference of logits between a model and what the Hub gives out under a name."""
    pulled = AutoModelForCausalLM.from_pretrained(repo_id, **options).eval()
    assert type(pulled) is type(model)
    return float((pulled(IDS).logits - model(IDS).logits).abs().max())


def whole(name: str) -> float:
    model = fresh(name)
    model.push_to_hub(f"alice/{name}")
    return differs(model, f"alice/{name}")


def sharded(name: str) -> dict[str, Any]:
    model, repo_id = fresh(name), f"alice/{name}-sharded"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="8KB")
        publish(Path(folder), repo_id)
    files = API.list_repo_files(repo_id)
    return {"differs": differs(model, repo_id), "shards": sum(file.endswith(".safetensors") for file in files)}


def reshaped() -> dict[str, Any]:
    """Weights in one file, then in shards, then in one file again, under one name."""
    found = {}
    for step, (size, initializer_range) in enumerate((("1GB", 0.3), ("8KB", 0.4), ("1GB", 0.5))):
        model = fresh("ssd", initializer_range=initializer_range)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size=size)
            publish(Path(folder), "alice/reshaped")
            weights = {file for file in API.list_repo_files("alice/reshaped") if ".safetensors" in file}
            found[step] = [
                differs(model, "alice/reshaped"),
                weights == {p.name for p in Path(folder).glob("*.safetensors*")},
            ]
    for step, (size, initializer_range) in enumerate((("1GB", 0.3), ("8KB", 0.4), ("1GB", 0.5))):
        model = fresh("ssd", initializer_range=initializer_range)
        model.push_to_hub("alice/reshaped_too", max_shard_size=size)
        shards = sum(file.endswith(".safetensors") for file in API.list_repo_files("alice/reshaped_too"))
        found[f"pushed {step}"] = [differs(model, "alice/reshaped_too"), (shards > 1) == (size == "8KB")]
    return found


def generation_config() -> dict[str, Any]:
    model = fresh("ssd")
    model.generation_config = GenerationConfig(max_new_tokens=7, temperature=0.5, do_sample=True, pad_token_id=0)
    model.push_to_hub("alice/generates")
    pulled = AutoModelForCausalLM.from_pretrained("alice/generates")
    return {key: getattr(pulled.generation_config, key) for key in ("max_new_tokens", "temperature", "do_sample")} | {
        "generated": pulled.generate(IDS, do_sample=False).shape[1] - IDS.shape[1]
    }


def tokenizer() -> dict[str, Any]:
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "state": 2, "space": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    with tempfile.TemporaryDirectory() as folder:
        fresh("ssd").save_pretrained(folder)
        made.save_pretrained(folder)
        (Path(folder) / "optimizer.pt").write_bytes(b"state of a run, not of a model")
        publish(Path(folder), "alice/speaks")
    pulled = AutoTokenizer.from_pretrained("alice/speaks")
    return {"ids": pulled("state space models").input_ids, "files": API.list_repo_files("alice/speaks")}


def revisions() -> dict[str, Any]:
    first, second, third = fresh("ssd"), fresh("ssd", initializer_range=0.4), fresh("ssd", initializer_range=0.5)
    repo_id = "alice/revised"
    with tempfile.TemporaryDirectory() as folder:
        for model, revision in ((first, None), (second, None), (third, "trial")):
            model.save_pretrained(folder)
            publish(Path(folder), repo_id, revision=revision)
            if model is first:
                API.create_tag(repo_id, tag="v1")
    return {
        "tag": differs(first, repo_id, revision="v1"),
        "main": differs(second, repo_id),
        "branch": differs(third, repo_id, revision="trial"),
        "commit": differs(second, repo_id, revision=API.model_info(repo_id).sha),
        "tag against main": differs(first, repo_id),
        "commits": len(API.list_repo_commits(repo_id)),
    }


def private() -> dict[str, str]:
    model, repo_id = fresh("ssd"), "alice/secret"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        publish(Path(folder), repo_id, private=True)
    outcomes = {}
    for who, token in {"owner": "hf_alice", "other": "hf_bob", "stranger": "hf_nobody", "nobody": False}.items():
        with tempfile.TemporaryDirectory() as cache:
            try:
                outcomes[who] = str(differs(model, repo_id, token=token, cache_dir=cache))
            except OSError as error:
                outcomes[who] = str(error)
    return outcomes


def refused() -> dict[str, str]:
    """What is said to alice, who may not publish under bob's name, nor privately where others look already."""
    attempts = {"somebody else's": ("bob/model", False), "public": (f"alice/{list_architectures()[0]}", True)}
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        fresh("ssd").save_pretrained(folder)
        for attempt, (repo_id, private) in attempts.items():
            try:
                said[attempt] = publish(Path(folder), repo_id, private=private)
            except UsageError as error:
                said[attempt] = str(error)
    return said


if __name__ == "__main__":
    names = list_architectures()
    found = {check.__name__: {name: check(name) for name in names} for check in (whole, sharded)}
    found |= {
        check.__name__: check() for check in (reshaped, generation_config, tokenizer, revisions, private, refused, text)
    }
    print(json.dumps(found))
