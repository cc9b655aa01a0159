"""Whole evaluations in this process: checkpoints in, results and figure out, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import get_task
from evaluation.config import parse_config
from evaluation.evaluate import main, setup, table

ROOT = Path(__file__).parents[2]
SIZES = {"sequence_length": 16, "num_pairs": 2, "vocab_size": 16}


def save_checkpoint(folder: Path, architecture: str, **sizes: int) -> Path:
    """An untrained checkpoint with the record of a task."""
    config = AutoConfig.for_model(
        f"dsf_{architecture}", vocab_size=16, hidden_size=16, num_hidden_layers=1, conv_kernel=4, label_alignment="same"
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    task = get_task("mqar", **SIZES | sizes)
    description = task.describe()
    record = TaskRecord(
        name="mqar",
        sizes=description["sizes"],
        seed=7,
        num_examples={"test": 20},
        data_hash={"test": task.data_hash("test", 7, 20)},
        description=description,
    )
    record.save(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint per kind: two of this package, and a plain transformer without a task record."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ours = {name: save_checkpoint(folder / name, name) for name in ("ssd", "softmax_attention")}
    llama = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    return ours | {"llama": folder / "llama"}


def evaluate(output_dir: Path, *models: Path | str, **changes: Any) -> dict[str, Any]:
    """Run an evaluation; the names of `changes` have `__` for the dot of a key."""
    words = ["--model", *map(str, models), "--output_dir", str(output_dir)]
    for name, value in changes.items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    return main(parse_config(words))


def test_the_task_is_that_of_the_checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    results = evaluate(tmp_path / "out", checkpoints["ssd"])
    record, suite = TaskRecord.load(checkpoints["ssd"]), results["suite"]
    assert (suite["name"], suite["seed"], suite["num_examples"], suite["split"]) == ("mqar", 7, 20, "test")
    assert suite["data_hash"] == record.data_hash["test"]
    assert suite["sizes"] == record.sizes


def test_results_hold_what_a_reader_needs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    results = evaluate(tmp_path / "out", checkpoints["ssd"])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    task, (model,) = get_task("mqar", **SIZES), results["models"]
    assert (results["suite"]["chance"], results["suite"]["best_trivial"]) == (task.chance, task.best_trivial)
    assert {"versions", "commit", "hardware", "threads"} <= results["environment"].keys()
    assert (model["architecture"], model["config"]["hidden_size"], model["dtype"]) == ("dsf_ssd", 16, "float32")
    assert model["parameters"] == AutoModelForCausalLM.from_pretrained(checkpoints["ssd"]).num_parameters()
    assert (model["accuracy"]["answers"], model["accuracy"]["examples"]) == (40, 20)
    low, high = model["accuracy"]["interval"]
    assert low <= model["accuracy"]["accuracy"] <= high
    assert model["row_accuracy"]["accuracy"] <= model["accuracy"]["accuracy"]
    assert sum(entry["answers"] for entry in model["by"]["gap"]) == 40
    assert model["state"]["bytes_per_sequence"] > 0


def test_several_models_share_one_table_and_one_figure(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    results = evaluate(tmp_path / "out", *checkpoints.values())
    assert [model["label"] for model in results["models"]] == ["ssd", "softmax_attention", "llama"]
    assert [line.split(" | ")[0] for line in table(results).splitlines()[4:]] == [
        "| ssd",
        "| softmax_attention",
        "| llama",
    ]
    image = imread(tmp_path / "out" / "accuracy_by_gap.png")
    assert min(image.shape[:2]) > 500
    # One colour of the palette per model.
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (np.abs(image[..., :3] * 255 - colour).max(axis=-1) < 1).sum() > 50


def test_models_of_one_architecture_are_told_apart_by_their_names(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoints["ssd"], tmp_path / "copy")
    results = evaluate(tmp_path / "out", checkpoints["ssd"], copy)
    assert [model["label"] for model in results["models"]] == [str(checkpoints["ssd"]), str(copy)]
    scores = [{key: model[key] for key in ("accuracy", "row_accuracy", "by", "state")} for model in results["models"]]
    assert scores[0] == scores[1]


def test_the_command_line_comes_before_the_record(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    changes = {"sizes__sequence_length": 32, "seed": 1, "num_examples": 5, "split": "validation", "batch_size": 2}
    suite = evaluate(tmp_path / "out", checkpoints["ssd"], **changes)["suite"]
    assert suite["sizes"] == get_task("mqar", **SIZES | {"sequence_length": 32}).describe()["sizes"]
    assert (suite["seed"], suite["num_examples"], suite["split"]) == (1, 5, "validation")


def test_a_plain_transformer_is_scored_on_the_same_positions(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    sizes = {f"sizes__{name}": value for name, value in SIZES.items()}
    results = evaluate(tmp_path / "out", checkpoints["llama"], suite="mqar", num_examples=20, **sizes)
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval()
    data = get_task("mqar", **SIZES).generate("test", 0, 0, 20)
    answers = model(torch.as_tensor(data["input_ids"], dtype=torch.long)).logits.argmax(-1).numpy()
    scored = data["labels"] != -100
    assert results["models"][0]["accuracy"]["accuracy"] == (answers == data["labels"])[scored].mean()


def test_results_are_replaced_only_when_asked_for(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    evaluate(tmp_path / "out", checkpoints["ssd"])
    with pytest.raises(UsageError, match="already holds results: give --overwrite true"):
        evaluate(tmp_path / "out", checkpoints["ssd"])
    results = evaluate(tmp_path / "out", checkpoints["ssd"], overwrite="true", num_examples=5)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no evaluation: give a new folder"):
        evaluate(tmp_path / "other", checkpoints["ssd"], overwrite="true")


# ---- what cannot be evaluated ---------------------------------------------------------------------------------------


def refused(output_dir: Path, *models: Path | str, **changes: Any) -> str:
    """The message of an evaluation that is refused, and writes nothing."""
    with pytest.raises(UsageError) as error:
        evaluate(output_dir, *models, **changes)
    assert not output_dir.exists()
    return str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert f"--model {missing} is no folder here" in refused(tmp_path / "out", missing, suite="mqar")
    unknown = refused(tmp_path / "out", "nobody/nothing", suite="mqar")
    assert "--model nobody/nothing (no folder here, so taken as an id on the Hub) cannot be loaded" in unknown


def test_a_folder_without_a_checkpoint_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert "is no checkpoint: it has no config.json" in refused(tmp_path / "out", tmp_path, suite="mqar")
    run = tmp_path / "run"
    shutil.copytree(checkpoints["ssd"], run / "final")
    assert f"Did you mean {run / 'final'}?" in refused(tmp_path / "out", run, suite="mqar")


def test_damaged_weights_are_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoints["ssd"], tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert f"The weights in {weights} are damaged" in refused(tmp_path / "out", copy)
    weights.unlink()
    assert f"--model {copy} cannot be loaded" in refused(tmp_path / "out", copy)


def test_missing_weights_are_not_drawn_at_random(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoints["ssd"], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert re.search(r"lacks \d+ weights, such as 'model\.layers\.1", refused(tmp_path / "out", copy))


def test_an_unknown_architecture_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoints["ssd"], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "nothing_known"}))
    assert "nothing_known" in refused(tmp_path / "out", copy)


def test_a_vocabulary_that_is_too_small_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    message = refused(tmp_path / "out", checkpoints["ssd"], sizes__vocab_size=64)
    assert "has a vocabulary of 16 tokens, but mqar has 64: give --sizes.vocab_size 16 or less" in message


def test_misspelt_names_offer_the_closest(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out, model = tmp_path / "out", checkpoints["ssd"]
    assert "did you mean mqar?" in refused(out, model, suite="mqra")
    assert "did you mean num_pairs" in refused(out, model, sizes__num_pair=1)
    assert "did you mean test?" in refused(out, model, split="tset")
    assert "Unknown key 'num_example'. Did you mean 'num_examples'?" in refused(out, model, num_example=1)
    assert "num_examples is 0: use at least 1" in refused(out, model, num_examples=0)


def test_a_task_of_real_numbers_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    message = refused(tmp_path / "out", checkpoints["llama"], suite="smooth_regression")
    assert "--suite smooth_regression is refused" in message
    assert "real numbers" in message


def test_a_task_must_be_named_or_recorded(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert "--suite is missing" in refused(tmp_path / "out", checkpoints["llama"])
    copy = shutil.copytree(checkpoints["ssd"], tmp_path / "copy")
    (copy / "task.json").write_text("{")
    assert f"{copy / 'task.json'} is no task record" in refused(tmp_path / "out", copy)


def test_checkpoints_of_different_tasks_need_the_sizes_that_differ(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    longer = save_checkpoint(tmp_path / "longer", "ssd", sequence_length=32)
    message = refused(tmp_path / "out", checkpoints["ssd"], longer)
    assert "sizes.sequence_length [16, 32]" in message
    results = evaluate(tmp_path / "out", checkpoints["ssd"], longer, sizes__sequence_length=16)
    assert results["suite"]["sizes"]["sequence_length"] == 16


def test_the_command_prints_a_table_or_one_line_of_complaint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    words = ["--model", str(checkpoints["ssd"]), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "evaluation" / "evaluate.py"), *words]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    # Where torchao is installed, its import says on a CPU which of its GPU libraries do not load.
    said = [line for line in process.stderr.splitlines() if not re.search(r"torchao|_pytree\.py", line)]
    assert (process.returncode, said) == (0, [])
    assert "| ssd | " in process.stdout
    with pytest.raises(SystemExit, match=r"^evaluate\.py: error: --output_dir .* already holds results"):
        setup(words)
