"""Files from strangers: nothing in them runs, reaches the network, leads elsewhere, or takes memory beyond reason."""

import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dsf_models import list_architectures
from dsf_models.backbone import get_architecture
from dsf_models.backbone.checkpoint import SPARE_ELEMENTS, check_files
from dsf_models.backbone.configuration import MAX_LAYERS, MAX_SIZE
from tests.contract import fresh, sequences, small_config

ROOT = Path(__file__).parents[2]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
every_architecture = pytest.mark.parametrize("name", list_architectures())
hostile = pytest.mark.feature("Hostile configurations are refused before memory is allocated")
safetensors_only = pytest.mark.feature("Weights load from safetensors only; nothing is unpickled")


def token_ids():
    return torch.stack(sequences((9, 9)))


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def numbers(fields):
    """Return the names of fields that hold sizes, and of those that hold other numbers."""
    own = {key: value for key, value in fields.items() if type(value) in (int, float)}
    types = {key: str(AutoConfig.for_model(**fields).__dataclass_fields__[key].type) for key in own}
    return [key for key in own if "float" not in types[key]], [key for key in own if "float" in types[key]]


# ---- configurations -------------------------------------------------------------------------------------------------


@every_architecture
@hostile
def test_numbers_beyond_reason_are_refused(name, tmp_path):
    small_config(name, "default").save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    sizes, others = numbers(whole)
    assert {"vocab_size", "hidden_size", "num_hidden_layers"} <= set(sizes)
    never = [math.nan, math.inf, -math.inf, -1, "9", [-9], {"a": 9}]
    for key in sizes + others:
        for wrong in [*never, 10**9, 10**30] if key in sizes else never:
            (tmp_path / "config.json").write_text(json.dumps(whole | {key: wrong}))
            with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=key):
                AutoConfig.from_pretrained(tmp_path)


@every_architecture
@hostile
def test_other_hostile_values_are_refused(name, tmp_path):
    for field, value, named in (
        ("num_labels", 10**9, "num_labels"),
        ("num_labels", -1, "num_labels"),
        ("num_labels", "many", "num_labels"),
        ("id2label", {"NaN": "x"}, "id2label"),
        ("id2label", {"-1": "x"}, "id2label"),
        ("id2label", [1], "id2label"),
        ("dtype", "load", "dtype"),
        ("dtype", "float17", "dtype"),
        ("torch_dtype", "nn", "dtype"),
        ("eos_token_id", [10**12], "eos_token_id"),
        ("channel_mixer_depth", [1, 10**9], "channel_mixer_depth"),
        ("max_position_embeddings", 2**63, None),
        ("transformers_weights", "../../x.safetensors", "transformers_weights"),
        ("attn_implementation", "stranger/kernel", "attn_implementation"),
        ("_attn_implementation", "stranger/kernel:fn", "_attn_implementation"),
        ("attn_implementation", {"": "stranger/kernel"}, "attn_implementation"),
        ("fusion_config", {"a": 1}, "fusion_config"),
        ("model_type", "../../dsf", "model type"),
        ("per_layer_config", {"0": {"hidden_size": 10**9}}, "per_layer_config"),
    ):
        small_config(name, "default").save_pretrained(tmp_path)
        change(tmp_path, **{field: value})
        if named is None:
            assert getattr(AutoConfig.from_pretrained(tmp_path), field) == value
            continue
        with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=named):
            AutoConfig.from_pretrained(tmp_path)


def test_sizes_inside_of_other_fields_are_refused():
    for changes in (
        {"mixer_options": {"ssd": {"state_size": 10**9}}},
        {"mixer_options": {"ssd": {"n_groups": -1}}},
        {"mixers": ["ssd", "../ssd"]},
        {"mixers": ["ssd"] * (MAX_LAYERS + 1)},
    ):
        with pytest.raises(ValueError, match=r"mixer|state_size|n_groups|num_hidden_layers"):
            small_config("hybrid", "default", num_hidden_layers=None, **changes)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        small_config("ssd", "full", max_position_embeddings=2 * MAX_SIZE)


@pytest.mark.parametrize("text", ['{"vocab_size": 1, "vocab_size": 41}', '{"model_type": "dsf_ssd", "norm_eps": NaN}'])
def test_unusual_json(text, tmp_path):
    """Of two equal keys the last one holds, as in every Python program; NaN is a number, and then refused."""
    small_config("ssd", "default").save_pretrained(tmp_path)
    whole = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(whole.rstrip().removesuffix("}") + "," + text.removeprefix("{"))
    if "NaN" in text:
        with pytest.raises(ValueError, match="norm_eps=nan"):
            AutoConfig.from_pretrained(tmp_path)
    else:
        assert AutoConfig.from_pretrained(tmp_path).vocab_size == 41


# ---- files ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@every_architecture
@safetensors_only
def test_pickles_are_never_opened(name, tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    small_config(name, "default").save_pretrained(folder)
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb itself must work"
    trace.unlink()
    bomb = pickle.dumps(Bomb(trace))
    index = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}})
    for files in (
        {"pytorch_model.bin": bomb},
        {"pytorch_model.bin": bomb, "pytorch_model.bin.index.json": index.encode()},
        {"pytorch_model.bin": bomb, INDEX: index.encode()},
        {WEIGHTS: bomb},
        {"model.pt": bomb, "tf_model.h5": bomb, "flax_model.msgpack": bomb},
    ):
        for file, content in files.items():
            (folder / file).write_bytes(content)
        for keywords in ({}, {"use_safetensors": None}, {"weights_only": False}, {"trust_remote_code": True}):
            for loader in (AutoModelForCausalLM, get_architecture(name).causal_lm_class):
                keywords = {} if loader is not AutoModelForCausalLM and "trust_remote_code" in keywords else keywords
                with pytest.raises(OSError, match=r"safetensors"):
                    loader.from_pretrained(folder, **keywords)
        for file in files:
            (folder / file).unlink()
        assert not trace.exists(), f"{list(files)} was unpickled"


@every_architecture
@safetensors_only
def test_an_index_cannot_lead_elsewhere(name, tmp_path):
    folder, model = tmp_path / "model", fresh(name, "default")
    model.save_pretrained(folder, max_shard_size="4KB")
    index = json.loads((folder / INDEX).read_text())
    shard = next(iter(index["weight_map"].values()))
    (tmp_path / "outside.safetensors").write_bytes((folder / shard).read_bytes())
    (folder / "inner").mkdir()
    (folder / "inner" / shard).write_bytes((folder / shard).read_bytes())
    outside = str(tmp_path / "outside.safetensors")
    for wrong in ("../outside.safetensors", outside, f"inner/{shard}", "..\\outside.safetensors", "", None, 3, "x.bin"):
        weight_map = {key: wrong if file == shard else file for key, file in index["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises(OSError, match=r"weight_map"):
            AutoModelForCausalLM.from_pretrained(folder)
    (folder / INDEX).rename(folder / "model.safetensors.index.fp16.json")
    with pytest.raises(OSError, match=r"weight_map"):
        AutoModelForCausalLM.from_pretrained(folder, variant="fp16")
    (folder / "model.safetensors.index.fp16.json").unlink()
    for wrong in ("[]", "{}", '{"weight_map": 3}', "not json", "[" * 100_000):
        (folder / INDEX).write_text(wrong)
        with pytest.raises(OSError, match=r"index of a sharded checkpoint"):
            AutoModelForCausalLM.from_pretrained(folder)


@safetensors_only
def test_pickled_adapters_are_never_opened(tmp_path):
    trace, config = tmp_path / "trace", LoraConfig(target_modules=["in_proj"], r=2)
    fresh("ssd", "default").save_pretrained(tmp_path / "base")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(tmp_path / "lora")
    AutoModelForCausalLM.from_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    for load in (AutoModelForCausalLM.from_pretrained, fresh("ssd", "default").load_adapter):
        with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
            load(str(tmp_path / "lora"))
    assert not trace.exists()


def test_files_of_the_hub_are_checked_too():
    """There transformers hands over the index's content, once it has found the files."""
    for wrong in ("../x.safetensors", "x.bin"):
        with pytest.raises(OSError, match="weight_map"):
            check_files([], [], {"weight": wrong})
    with pytest.raises(OSError, match=r"x\.bin: only \.safetensors files are loaded"):
        check_files([], ["x.bin"])


@every_architecture
@torch.no_grad()
def test_links_are_followed_as_the_hubs_cache_is_made_of_them(name, tmp_path):
    model = fresh(name, "default")
    model.save_pretrained(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "snapshot")
    assert torch.equal(loaded(token_ids()).logits, model(token_ids()).logits)


def test_a_small_checkpoint_may_get_a_new_head_or_vocabulary(tmp_path):
    fresh("ssd", "default", "model").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, vocab_size=100_000, ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (100_000, 16)
    assert SPARE_ELEMENTS > 2 * 100_000 * 16


# ---- in a process of its own: no network, code that would be noticed, and how much memory was taken -----------------

STRANGER = """
import json, resource, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import PreTrainedTokenizerFast

from dsf_models import list_architectures
from dsf_models.backbone.configuration import MAX_SIZE
from tests.backbone.test_security import numbers
from tests.contract import fresh

folder = Path(sys.argv[1])
code = "raise AssertionError('code of the checkpoint was run')"
for path in ("configuration.py", "modeling.py", "custom_generate/generate.py", "__init__.py"):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(code)
auto_map = {
    "AutoConfig": "configuration.Config",
    "AutoModel": "stranger/repository--modeling.Model",
    "AutoModelForCausalLM": "../../modeling.Model",
    "AutoModelForSequenceClassification": "modeling.Model",
}
PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).save_pretrained(folder)
settings = json.loads((folder / "tokenizer_config.json").read_text())
for name in list_architectures():
    fresh(name, "default").save_pretrained(folder)
    for hostile in (
        {"auto_map": {"AutoTokenizer": ["modeling.Tokenizer", "stranger/repository--modeling.Tokenizer"]}},
        {"tokenizer_file": "/etc/passwd", "vocab_file": "../../etc/passwd"},
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | hostile))
        assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [0]
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    sizes, _ = numbers(fields)
    fields |= {
        "auto_map": auto_map,
        "_name_or_path": "stranger/repository",
        "custom_pipelines": {"x": {"impl": "modeling.X", "pt": ["AutoModel"]}},
    }
    path.write_text(json.dumps(fields))
    for loader in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):
        for keywords in ({}, {"trust_remote_code": False}):
            loader.from_pretrained(folder, **keywords)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    wide = {"hidden_size": MAX_SIZE // 4, "head_dim": None, "intermediate_size": None}
    deep = {"num_hidden_layers": 16, "channel_mixer": "swiglu", "intermediate_size": 2**20}
    if "mixers" in fields:
        deep["mixers"] = (fields["mixers"] * deep["num_hidden_layers"])[: deep["num_hidden_layers"]]
    for changes in (wide, deep, *({key: MAX_SIZE} for key in sizes)):
        before = peak()
        path.write_text(json.dumps(fields | changes))
        try:
            AutoModelForCausalLM.from_pretrained(folder)
        except (OSError, ValueError) as error:
            assert "config.json does not belong" in str(error) or "=" in str(error), error
        except RuntimeError as error:
            assert "size mismatch" in str(error) or "ismatch" in str(error), error
        else:
            raise AssertionError(f"{name} was loaded with {changes}")
        assert peak() - before < 200, f"{name} took {peak() - before} MB for {list(changes)}"
    print(name, "is unharmed")
"""


@pytest.fixture(scope="module")
def strangers_report(tmp_path_factory):
    """Return what the program says of each architecture: one process for all of them."""
    folder = tmp_path_factory.mktemp("stranger")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_HUB_OFFLINE")}
    paths = [str(ROOT), str(ROOT / "src")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(STRANGER), str(folder / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@every_architecture
@pytest.mark.feature("Loading a folder runs no code of it and asks no network")
@hostile
def test_a_strangers_folder(name, strangers_report):
    """Hostile auto_map, no network, sizes that the files do not have."""
    assert f"{name} is unharmed" in strangers_report


@safetensors_only
def test_weights_of_another_model_name_both_sizes(tmp_path):
    small_config("ssd", "default", vocab_size=MAX_SIZE, hidden_size=64).save_pretrained(tmp_path)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(OSError, match=r"of [\d,]+ parameters, but its files hold \d+ bytes: config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
