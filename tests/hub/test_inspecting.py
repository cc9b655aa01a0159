"""`dsf-models inspect`: numbers, figures and summary of a folder's model, and refusals that leave nothing behind."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from dsf_models.analysis import inspect_model, inspection
from dsf_models.analysis.figures import draw_inspection
from dsf_models.cli import main
from dsf_models.hub import inspecting
from dsf_models.hub.conversion import convert_checkpoint
from dsf_models.hub.inspecting import load_model
from tests.consumers.tokenizers_of_text import trained_tokenizer
from tests.contract import every, fresh, padding_mask, place, sequences, shared

LLAMA = {"vocab_size": 41, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def saved(model, path):
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes a second a figure."""
    monkeypatch.setattr(inspecting, "_drawing", lambda: lambda inspection, folder: [])


def inspected(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_summary_figures_and_numbers(capsys, tmp_path):
    model, out = fresh("hybrid", "default"), tmp_path / "deep" / "out"
    printed = inspected(capsys, saved(model, tmp_path / "model"), "--length", 12, "--output_dir", out)
    record = json.loads((out / "inspection.json").read_text())
    assert record["figures"] == ["spectrum.png", "phi_layer_0.png", "phi_layer_1.png", "effective_memory.png"]
    assert {path.name for path in out.iterdir()} == {"inspection.json", *record["figures"]}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in record["figures"])
    assert record["parameters"] == model.num_parameters()
    assert (record["rows"], record["tokens"], record["tokens_from"]) == (4, 12, "random, seed 0")
    assert [layer["architecture"] for layer in record["layers"]] == ["linear_attention", "ssd"]
    assert [layer["spectrum"]["now"]["realisation"] for layer in record["layers"]] == ["normalised", "native"]
    for layer in record["layers"]:
        for found in layer["spectrum"].values():
            assert all(sum(head) == pytest.approx(1) for head in found["fractions"])
    assert f"{model.num_parameters():,} parameters" in printed
    assert "normalised   " in printed


@pytest.mark.usefixtures("without_figures")
def test_an_earlier_inspection_is_replaced_whole(capsys, tmp_path):
    folder, out = saved(fresh("ssd"), tmp_path / "model"), tmp_path / "out"
    inspected(capsys, folder, "--length", 12, "--output_dir", out)
    (out / "phi_layer_7.png").touch()
    inspected(capsys, folder, "--length", 9, "--layers", "1,0", "--output_dir", out)
    record = json.loads((out / "inspection.json").read_text())
    assert record["tokens"] == 9
    assert [layer["layer"] for layer in record["layers"]] == [1, 0]
    assert [path.name for path in out.iterdir()] == ["inspection.json"]


@pytest.mark.usefixtures("without_figures")
def test_texts_of_a_tokenizer(capsys, tmp_path):
    model = fresh("ssd", "default", vocab_size=400)
    folder = saved(model, tmp_path / "model")
    assert "--text" in refused(capsys, folder, "--text", "hello", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tokenizer = trained_tokenizer()
    tokenizer.save_pretrained(folder)
    texts = ["The state is an argument and a result.", "Λ belongs to a realisation"]
    words = [word for text in texts for word in ("--text", text)]
    inspected(capsys, folder, *words, "--layers", "1", "--output_dir", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "inspection.json").read_text())
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert (record["rows"], record["tokens"]) == (2, max(lengths))
    (layer,) = record["layers"]
    alone = [inspect_model(model, torch.tensor([tokenizer(text)["input_ids"]])) for text in texts]
    means = torch.stack([one.spectra.now.mean_magnitude[1] for one in alone])
    weights = torch.tensor(lengths).double() - 1
    expected = (means * weights[:, None]).sum(0) / weights.sum()
    assert layer["spectrum"]["now"]["mean_magnitude"] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
        lambda: MambaForCausalLM(MambaConfig(vocab_size=41, hidden_size=8, state_size=4, num_hidden_layers=2)),
    ],
    ids=["llama", "mamba"],
)
def test_models_of_transformers_are_converted_in_memory(make, capsys, tmp_path):
    theirs = make().eval()
    folder = saved(theirs, tmp_path / "theirs")
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "theirs")(ids).logits, theirs(ids).logits)
    convert_checkpoint(folder, tmp_path / "ours")
    words = ["--tokens", "1,2,3,4,5,6", "--output_dir"]
    capsys.readouterr()
    out = inspected(capsys, folder, *words, tmp_path / "out")
    assert out.splitlines()[:-1] == inspected(capsys, tmp_path / "ours", *words, tmp_path / "out").splitlines()[:-1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--tokens", "1,2,77"], ["token 77", "vocabulary of 41"]),
        (["--tokens", "1"], ["a row has 1 tokens", "at least 2"]),
        (["--tokens", "one"], ["--tokens", "'one'"]),
        (["--length", "1"], ["--length=1", "at least 2 tokens"]),
        (["--length", "30"], ["--length=30", "at most 24"]),
        (["--rows", "0"], ["--rows=0"]),
        (["--tokens", "1,2", "--rows", "3"], ["--rows=3", "only random tokens"]),
        (["--layers", "5"], ["layer=5", "2 layers"]),
        (["--tokens", "1,2", "--length", "9"], ["not allowed with"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(arguments, parts, capsys, tmp_path):
    folder = saved(fresh("ssd", "full"), tmp_path / "model")
    found = refused(capsys, folder, *arguments, "--output_dir", tmp_path / "out")
    assert all(part in found for part in parts), found
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_left_alone(capsys, tmp_path):
    folder = saved(fresh("ssd"), tmp_path / "model")
    assert "holds no inspection.json" in refused(capsys, folder, "--output_dir", tmp_path)
    assert "source=" in refused(capsys, tmp_path / "absent", "--output_dir", tmp_path / "out")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type='gpt2'" in refused(capsys, folder, "--output_dir", tmp_path / "out")


@every("default", "windowed")
def test_every_architecture_can_be_inspected(name, case):
    model, mask = shared(name, case), padding_mask("left")
    found = inspect_model(model, place(sequences(), mask, 0), attention_mask=mask)
    json.dumps(found.to_dict(), allow_nan=False)
    assert not model.training
    for layer, system in zip(found.layers, model.dsf_systems(place(sequences(), mask, 0)), strict=True):
        assert (layer.weights is None) == (system is None)


def test_a_layer_without_a_system_and_one_with_phases(tmp_path):
    model = fresh("hybrid", "bare", mixers=["lru", "lstm"])
    found = inspect_model(model, sequences((6,))[0][None])
    assert draw_inspection(found, tmp_path) == ["spectrum.png", "phases.png", "phi_layer_0.png", "effective_memory.png"]
    assert "no |λ| of layer 1: its state is no linear function of the past state" in inspecting.summary(found)


@torch.no_grad()
def test_maps_are_of_what_passes_through_the_state():
    model, ids = shared("ssd", "default"), sequences((8,))[0][None]
    phi = model.transfer_matrix(0, ids)
    D = model.model.layers[0].token_mixer.D
    expected = (phi - D.view(1, -1, 1, 1) * torch.eye(8)).abs()
    torch.testing.assert_close(inspect_model(model, ids).layers[0].weights, expected)


@torch.no_grad()
def test_of_a_long_sequence_the_first_tokens_are_mapped(monkeypatch):
    model, ids = shared("ssd", "default"), sequences((30,))[0][None]
    whole = inspect_model(model, ids, layers=[0]).layers[0]
    monkeypatch.setattr(inspection, "MOST_PHI_BYTES", 8 * 4 * 10**2)
    part = inspect_model(model, ids, layers=[0]).layers[0]
    torch.testing.assert_close(part.weights, whole.weights[..., :10, :10])
    assert part.state.rank.shape == whole.state.rank.shape


def test_pads_are_no_rows_without_weight():
    rows = sequences((3, 9))
    mask = torch.tensor([[1] * 3 + [0] * 6, [1] * 9])
    ids = torch.stack([torch.cat([rows[0], torch.zeros(6, dtype=torch.long)]), rows[1]])
    found = inspect_model(shared("softmax_attention", "default"), ids, attention_mask=mask).to_dict()
    for layer in found["layers"]:
        assert layer["row_sums"] == pytest.approx([1.0] * len(layer["row_sums"]))


def test_a_model_of_real_numbers_is_refused(capsys, tmp_path):
    model = fresh("ssd", "default", "sequence_classification", num_labels=1, problem_type="regression", input_size=3)
    assert "input_size=3" in refused(capsys, saved(model, tmp_path / "model"), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
