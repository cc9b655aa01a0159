"""The command: what it prints is what the library says, and wrong input is one line and exit code 2."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dsf_models import list_architectures
from dsf_models.analysis import BINS, count_parameters, decoding_flops, initial_spectrum, state_bytes
from dsf_models.backbone import get_architecture
from dsf_models.cli import main
from tests.contract import small_config, variants

TINY = ["--set", "vocab_size=41", "--set", "hidden_size=16", "--set", "num_hidden_layers=2", "--length", "10"]


def printed(capsys, *arguments) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *arguments) -> str:
    """What a refused command says: one line on stderr, and nothing on stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dsf-models: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_list_has_a_row_for_every_architecture(capsys):
    lines = printed(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list_architectures()
    columns = [lines[0].index(title) for title in re.split(r"\s{2,}", lines[0])]
    for line, name in zip(lines[1:], list_architectures(), strict=True):
        architecture = get_architecture(name)
        cells = [line[start:stop].strip() for start, stop in zip(columns, [*columns[1:], None], strict=True)]
        assert cells[1:4] == [architecture.transition, architecture.input_matrix, architecture.output_matrix]
        if architecture.mixer_class is None:
            continue
        assert cells[4:6] == [architecture.feed_through, architecture.state_size]
        assert cells[6] == ("yes" if architecture.time_invariant else "no")
        keeps_tokens = set(architecture.config_class().layer_types) & {"full_attention", "dsf_attention"}
        assert cells[7] == ("quadratic" if keeps_tokens else "linear")


@pytest.mark.parametrize("name", list_architectures())
def test_info_says_what_the_library_says(name, capsys, tmp_path):
    small = variants(name)["default"]
    small_config(name, "default").save_pretrained(tmp_path)
    out = printed(capsys, "info", name, "--config", str(tmp_path / "config.json"), "--length", "10")
    assigned = [word for key, value in small.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert printed(capsys, "info", name, *assigned, "--length", "10") == out
    config = small_config(name, "default")
    parameters = count_parameters(config)
    numbers = dict(re.findall(r"^ *(\S.*?) {2,}(\S.*)$", out, re.MULTILINE))
    assert numbers["parameters"] == f"{parameters.total:,}"
    assert [numbers[key] for key in ("body", "embedding", "head")] == [
        f"{value:,}" for value in (parameters.body, parameters.embedding, parameters.head)
    ]
    assert numbers["state bytes per sequence, at 10 tokens"] == f"{state_bytes(config, 10):,}"
    assert numbers["state bytes per sequence, at 20 tokens"] == f"{state_bytes(config, 20):,}"
    assert numbers["FLOPs per token, decoding behind 10 tokens"] == f"{decoding_flops(config, 10).total:,}"
    mean = initial_spectrum(config).mean
    if not bool(mean.isnan().any()):
        assert [numbers[name] for name in BINS] == [f"{100 * float(share):.1f} %" for share in mean]
    assert "step 0" not in printed(capsys, "info", name, *assigned, "--no-spectrum")


def test_info_says_why_a_layer_has_no_eigenvalues(capsys):
    mixers = '["s4", "lstm", "ssd", "lstm"]'
    out = printed(capsys, "info", "hybrid", *TINY[:4], "--length", "10", "--set", f"mixers={mixers}")
    assert "no |λ| of layer 0: the eigenvalues of a DPLR Λ of 64 states mean nothing" in out
    assert "no |λ| of layers 1, 3: its state is no linear function of the past state" in out
    assert "share (native realisation)" in out


def test_fields(capsys):
    lines = printed(capsys, "fields", "s4d").splitlines()
    own = printed(capsys, "fields", "s4d", "--own").splitlines()
    assert len(own) < len(lines)
    assert {line.split()[0] for line in own} >= {"field", "a_init", "bidirectional", "num_heads"}
    assert "vocab_size" in {line.split()[0] for line in lines} - {line.split()[0] for line in own}


def test_info_of_tied_embeddings(capsys):
    assert "shared with the embedding" in printed(capsys, "info", "ssd", *TINY, "--set", "tie_word_embeddings=true")


def test_info_takes_bare_words_and_json(capsys):
    options = ["--set", "gate=none", "--set", "a_init_range=[2, 3]", "--set", "pad_token_id=null"]
    assert printed(capsys, "info", "ssd", *TINY, *options) != printed(capsys, "info", "ssd", *TINY)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["required: COMMAND"]),
        (["lst"], ["'lst'", "'list'"]),
        (["list", "--markdow"], ["--markdow"]),
        (["info"], ["required: ARCH"]),
        (["info", "sdd"], ["architecture='sdd'", "did you mean ssd"]),
        (["fields", "sdd"], ["architecture='sdd'", "did you mean ssd"]),
        (["info", "ssd", "--set", "bidirectional=true"], ["bidirectional=True", "dsf-models fields ssd"]),
        (["info", "hybrid", "--set", "mixers=[]"], ["mixers=[]", '["ssd", "softmax_attention"]']),
        (["info", "ssd", "--set", "hidden_size"], ["--set='hidden_size'", "FIELD=VALUE"]),
        (["info", "ssd", "--set", "=3"], ["--set='=3'", "FIELD=VALUE"]),
        (["info", "ssd", "--set", "hidden_siz=3"], ["hidden_siz=3", "hidden_size"]),
        (["info", "ssd", "--set", "hidden_size=x"], ["hidden_size", "'x'", "int"]),
        (["info", "ssd", "--set", "num_heads=7"], ["num_heads=7", "does not divide"]),
        (["info", "ssd", "--length", "1"], ["--length=1", "at least 2"]),
        (["info", "ssd", "--length", "many"], ["--length", "'many'"]),
        (["info", "ssd", "--config", "absent.json"], ["--config=absent.json", "No such file"]),
        (["convert", "here"], ["TARGET_FOLDER"]),
        (["convert", "here", "there", "--to", "jax"], ["'jax'", "'transformers'"]),
        (["convert", "/absent/model/", "there"], ["source='/absent/model/'", "no name of a repository"]),
        (["convert", "absent/model", "there"], ["source='absent/model'", "no such folder"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_one_line(arguments, parts, capsys):
    found = refused(capsys, *arguments)
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("text", "part"), [("{", "readable JSON"), ("[]", "an object"), ('{"model_type": "llama"}', "model_type='llama'")]
)
def test_a_bad_config_file_is_one_line(text, part, capsys, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert part in refused(capsys, "info", "ssd", "--config", str(tmp_path / "config.json"))


def test_convert_there_and_back(capsys, tmp_path):
    sizes = {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    source, ours, back = (str(tmp_path / name) for name in ("source", "ours", "deep/back"))
    model.save_pretrained(source)
    capsys.readouterr()
    assert printed(capsys, "convert", source, ours) == f"Llama -> softmax_attention: {ours}\n"
    assert printed(capsys, "convert", ours, back, "--to", "transformers") == f"softmax_attention -> Llama: {back}\n"
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(back)(ids).logits, model(ids).logits)
    capsys.readouterr()
    assert "exists" in refused(capsys, "convert", source, ours)


def test_the_command_is_installed_under_its_name():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["dsf-models"].split(":")
    assert getattr(importlib.import_module(module), function) is main


def test_card_is_shown_or_written(capsys, tmp_path):
    small_config("ssd").save_pretrained(tmp_path)
    card = printed(capsys, "card", str(tmp_path))
    assert not (tmp_path / "README.md").exists()
    assert printed(capsys, "card", str(tmp_path), "--write") == ""
    assert (tmp_path / "README.md").read_text() == card
    assert "README.md exists" in refused(capsys, "card", str(tmp_path), "--write")


def test_push_refuses_what_is_no_checkpoint(capsys, tmp_path):
    assert "config.json does not exist" in refused(capsys, "push", str(tmp_path), "alice/model")
