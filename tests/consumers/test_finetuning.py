"""The fine-tuning examples run as they are, on real text: they learn, save, load again and use what they saved."""

import argparse
import csv
import importlib
import inspect
import random
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from dsf_models import list_architectures
from dsf_models.backbone import DSFMixer
from scripts.reviews import movie_reviews
from tests.consumers.tokenizers_of_text import ROOT, english_text
from tests.contract import fresh

STEPS = 8
TINY = ["--width", "32", "--vocab_size", "300", "--max_length", "64", "--learning_rate", "0.01", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def example():
    """Import an example by its name, as Python does when it runs one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield importlib.import_module


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text file: this repository's documents."""
    file = tmp_path_factory.mktemp("text") / "documents.txt"
    file.write_text(english_text()[:30_000])
    return file


@pytest.fixture(scope="module")
def other_text(tmp_path_factory) -> Path:
    """A text file of another kind: source code."""
    file = tmp_path_factory.mktemp("other_text") / "argparse.txt"
    file.write_text(inspect.getsource(argparse)[:30_000])
    return file


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A CSV file: lines of Python's own manual, and of its own source."""
    prose = [line for text in topics.values() for line in text.split("\n") if len(line) > 60 and line[0].isalpha()]
    code = [line for line in inspect.getsource(argparse).split("\n") if len(line) > 40 and line.startswith("        ")]
    rows = [(line, kind) for kind, lines in (("prose", prose), ("code", code)) for line in lines[:300]]
    return write_csv(tmp_path_factory.mktemp("labelled") / "labelled.csv", rows)


@pytest.fixture(scope="module")
def checkpoint(example, text, tmp_path_factory) -> tuple[dict, Path]:
    """What the causal language model's example returns, and the folder that it saves."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return causal_lm(example, text, folder, "--model", "ssd"), folder


def write_csv(file: Path, rows: list[tuple[str, str]]) -> Path:
    """Write texts and their labels."""
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    return file


def causal_lm(example, text: Path, folder: Path, *options: str) -> dict:
    """Run the causal language model's example for a few steps."""
    options = ("--layers", "2", "--max_steps", str(STEPS), *options)
    arguments = ["--data", str(text), "--output_dir", str(folder), *TINY, *options]
    return example("finetune_causal_lm").main(arguments)


def lora(example, text: Path, base: Path, folder: Path, *options: str) -> dict:
    """Run the adapter's example for a few steps."""
    options = ("--model", str(base), "--max_steps", str(STEPS), "--learning_rate", "0.002", *options)
    return example("finetune_lora").main(["--data", str(text), "--output_dir", str(folder), *TINY, *options])


def classification(example, data: Path, folder: Path, *options: str) -> dict:
    """Run the classifier's example."""
    return example("finetune_classification").main(["--data", str(data), "--output_dir", str(folder), *options])


class Watch:
    """Counts the calls of mixers and of projections, those by the dtype of what they return."""

    def __enter__(self) -> "Watch":
        self.mixers, self.dtypes = 0, Counter()
        # Recomputation stops at the last activation that is needed, so that not every call returns.
        self.handles = [
            nn.modules.module.register_module_forward_pre_hook(self.called),
            nn.modules.module.register_module_forward_hook(self.returned),
        ]
        return self

    def called(self, module: nn.Module, inputs: tuple) -> None:
        self.mixers += isinstance(module, DSFMixer)

    def returned(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(module, nn.Linear):
            self.dtypes[output.dtype] += 1

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def test_a_language_model_learns_and_writes(checkpoint):
    result, folder = checkpoint
    assert result["after"] < result["before"] - 0.5
    assert len(result["text"]) > len("I saw this")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size == 300


def test_rows_of_added_tokens_are_added_and_trained(example, text, checkpoint, tmp_path):
    _, folder = checkpoint
    marked = tmp_path / "marked.txt"
    marked.write_text("\n\n".join(f"<part>{part}" for part in text.read_text().split("\n\n")))
    options = ["--model", str(folder), "--add_tokens", "<part>"]
    causal_lm(example, marked, tmp_path / "larger", *options)
    assert AutoTokenizer.from_pretrained(tmp_path / "larger").tokenize("<part>a") == ["<part>", "a"]
    finetuning = example("finetuning")
    parsed, _ = finetuning.parse("", finetuning.Options, ["--data", str(marked), *options])
    before, _ = finetuning.load(AutoModelForCausalLM, parsed, [])
    small, large = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "larger"))
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old, start, end = (getattr(model, table)().weight.detach() for model in (small, before, large))
        assert torch.equal(start[:-1], old)
        torch.testing.assert_close(start[-1], old.mean(0), rtol=0, atol=1e-3)
        assert (end[-1] - start[-1]).norm() > 0.1 * start[:-1].norm(dim=1).mean()


def test_checkpointing_and_bf16_act(example, text, checkpoint, tmp_path):
    _, folder = checkpoint
    found, given = [], ("--model", str(folder), "--new_tokens", "4")
    for options in ([], ["--activation_checkpointing"], ["--bf16"]):
        with Watch() as watch:
            result = causal_lm(example, text, tmp_path / "switch", *given, *options)
        found.append((result, watch))
    (plain, watched), (recomputed, twice), (rounded, halved) = found
    assert (recomputed["before"], recomputed["after"]) == (plain["before"], plain["after"])
    assert twice.mixers == watched.mixers + 2 * STEPS
    assert watched.dtypes.keys() == twice.dtypes.keys() == {torch.float32}
    assert halved.dtypes[torch.bfloat16] > halved.dtypes[torch.float32]
    assert rounded["after"] != plain["after"]
    assert rounded["after"] == pytest.approx(plain["after"], rel=0.01)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "switch").dtype == torch.float32


def test_an_adapter_is_all_that_is_trained_and_saved(example, other_text, checkpoint, tmp_path):
    """Equal logits over the untouched checkpoint show that nothing else was trained."""
    _, folder = checkpoint
    result = lora(example, other_text, folder, tmp_path / "adapter", "--add_tokens", "<part>")
    assert result["equal"]
    assert result["after"] < result["before"]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "token_adapter"}
    assert {tuple(value.shape) for name, value in saved.items() if "token_adapter" in name} == {(1, 32)}
    assert not list((tmp_path / "adapter").glob("model*"))


def test_a_classifier_learns_and_names_its_classes(example, labelled, tmp_path):
    result = classification(example, labelled, tmp_path / "out", "--layers", "1", "--max_steps", "40", *TINY)
    assert result["after"] > result["majority"] + 0.1
    assert result["answer"] in AutoConfig.from_pretrained(tmp_path / "out").label2id == {"code": 0, "prose": 1}


def test_weight_decay_leaves_what_the_model_names(example, tmp_path):
    """transformers' own Trainer decays Λ."""
    spared = {}
    for kind in (Trainer, example("finetuning").DecayTrainer):
        model = fresh("ssd", head="causal_lm")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = kind(model, TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True)).create_optimizer()
        free = [group for group in groups.param_groups if group["weight_decay"] == 0]
        spared[kind] = {names[id(parameter)] for group in free for parameter in group["params"]}
    assert spared[example("finetuning").DecayTrainer] == model.no_weight_decay()
    assert "model.layers.0.mixer.A_log" not in spared[Trainer]


@pytest.mark.parametrize(
    ("script", "content", "options", "message"),
    [
        ("finetune_causal_lm", None, [], "is no file"),
        ("finetune_causal_lm", "one text only", [], "holds 1 texts"),
        ("finetune_causal_lm", "review,label\ngood,1\n", [], "no column 'text'"),
        ("finetune_classification", "text\ngood\n", [], "no column 'label'"),
        ("finetune_classification", "good", [], "has no columns"),
        ("finetune_lora", "a\n\nb", ["--model", "ssd"], "belongs to a saved model"),
    ],
)
def test_bad_input_is_refused_in_words(example, script, content, options, message, tmp_path):
    file = tmp_path / ("data.csv" if content and "\n" in content else "data.txt")
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=message):
        example(script).main(["--data", str(file), "--output_dir", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", list_architectures())
def test_every_architecture(name, example, text, other_text, labelled, tmp_path):
    depth = [] if name == "hybrid" else ["--layers", "2"]
    arguments = ["--data", str(text), "--output_dir", str(tmp_path / "lm"), "--max_steps", "20", *depth, *TINY]
    result = example("finetune_causal_lm").main([*arguments, "--model", name])
    assert result["after"] < result["before"] - 0.5
    for option in (["--add_tokens", "<part>"], ["--train_mixers"]):
        # Mixers that are trained whole, that of an exponential normaliser above all, need some steps to settle.
        options = (*option, "--max_steps", "40")
        result = lora(example, other_text, tmp_path / "lm", tmp_path / "adapter", *options)
        assert result["equal"]
        assert result["after"] < result["before"]
    options = ["--model", str(tmp_path / "lm"), "--num_train_epochs", "5", "--activation_checkpointing", "--bf16"]
    result = classification(example, labelled, tmp_path / "classifier", *options, *TINY)
    assert result["after"] > result["majority"] + 0.1


@pytest.mark.slow
def test_the_sentiment_of_real_reviews_is_learnt(example, tmp_path):
    sentences = {row["text"]: row["label"] for row in movie_reviews() if row["source"] == "rotten_tomatoes"}
    data = write_csv(tmp_path / "reviews.csv", random.Random(0).sample(list(sentences.items()), 5000))
    options = ["--width", "64", "--layers", "1", "--num_train_epochs", "4", "--per_device_train_batch_size", "32"]
    result = classification(example, data, tmp_path / "out", "--model", "ssd", "--learning_rate", "3e-3", *options)
    assert result["after"] > result["majority"] + 0.1
