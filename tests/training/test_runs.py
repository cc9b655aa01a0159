"""Whole runs in this process: what they leave behind, what they refuse, and that an interruption changes nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import training.train as script
from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from tests.training.helpers import assert_same_weights, final_weights, forget_accelerate, metrics, tiny_config, train
from training.launch import build_accelerator
from training.metrics import Score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through without an interruption; dropout makes it depend on the random generators."""
    return train(tmp_path_factory.mktemp("finished") / "run", model__dropout=0.1, tracker__name="tensorboard")


def test_a_run_records_what_it_was(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "final", "tracker"}
    assert yaml.safe_load((finished / "config.yaml").read_text())["training"]["batch_size"] == 8
    launches = json.loads((finished / "environment.json").read_text())["launches"]
    assert [launch["num_processes"] for launch in launches] == [1]
    assert list((finished / "tracker").rglob("events.out.tfevents*"))


def test_metrics_hold_training_validation_and_one_test(finished: Path) -> None:
    assert [record["step"] for record in metrics(finished, "train")] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in metrics(finished, "validation")] == [2, 4, 6]
    (test,) = metrics(finished, "test")
    best = max(metrics(finished, "validation"), key=lambda record: (record["accuracy"], -record["loss"]))
    assert test["selected_step"] == best["step"]
    rates = [record["learning_rate"] for record in metrics(finished, "train")]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (pytest.approx(1e-3), pytest.approx(1e-4))
    assert all(record["loss"] > 0 and record["gradient_norm"] > 0 for record in metrics(finished, "train"))


def test_the_final_folder_is_a_published_model(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "final")
    assert (model.config.vocab_size, model.config.label_alignment) == (16, "same")
    record = TaskRecord.load(finished / "final")
    assert (record.name, record.seed, record.num_examples["test"]) == ("mqar", 0, 10)


def test_the_model_card_tells_the_truth(finished: Path) -> None:
    card = ModelCard.load(finished / "final" / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", "apache-2.0")
    assert TaskRecord.load(finished / "final").data_hash["test"] in card.text
    (test,) = metrics(finished, "test")
    assert f"| accuracy | test | {100 * test['accuracy']:.2f} % | 12.50 % |" in card.text
    (accuracy, _) = yaml.safe_load((finished / "final" / ".eval_results" / "mqar.yaml").read_text())
    assert accuracy["value"] == test["accuracy"]
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(finished / "final")), names)
    assert names["model"].num_parameters() > 0


def test_old_checkpoints_are_removed(finished: Path) -> None:
    steps = sorted(path.name for path in (finished / "checkpoints").iterdir() if path.name.startswith("step"))
    assert steps == ["step_00000004", "step_00000006"]
    assert len(list((finished / "checkpoints").glob("best_*"))) == 1


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole_step = script.training_step

    def interrupted(run: script.Run) -> dict:
        if run.progress.step == step:
            raise KeyboardInterrupt
        return whole_step(run)

    monkeypatch.setattr(script, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", model__dropout=0.1)
    monkeypatch.undo()
    torch.randn(3)
    train(tmp_path / "run", model__dropout=0.1, run__resume=True)
    assert_same_weights(finished, tmp_path / "run")
    assert metrics(finished) == metrics(tmp_path / "run")
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())["launches"]) == 2


def test_resuming_a_complete_run_changes_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    train(finished, model__dropout=0.1, run__resume=True, tracker__name="tensorboard")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_parts_with_unequal_numbers_of_answers_add_up_to_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_batch = script.TaskData.training_batch

    def uneven(data: script.TaskData, step: int, batch_size: int, seed: int) -> dict:
        batch = take_batch(data, step, batch_size, seed)
        # The first half of the batch keeps one answer each, the second half all of them.
        half = batch["labels"][: batch_size // 2]
        half[:, half.shape[1] // 2 :] = -100
        half[:, 0] = 9
        return batch

    monkeypatch.setattr(script.TaskData, "training_batch", uneven)
    whole = train(tmp_path / "whole", training__max_grad_norm="null")
    parts = train(tmp_path / "parts", training__max_grad_norm="null", training__gradient_accumulation_steps=4)
    for one, other in zip(metrics(whole, "train"), metrics(parts, "train"), strict=True):
        assert [one["loss"], one["gradient_norm"]] == pytest.approx([other["loss"], other["gradient_norm"]], rel=1e-5)
    for name, weight in final_weights(whole).items():
        torch.testing.assert_close(final_weights(parts)[name], weight, rtol=1e-4, atol=1e-6)


def test_clipping_limits_what_the_norm_only_measures(tmp_path: Path) -> None:
    free = train(tmp_path / "free", training__max_grad_norm="null", training__max_steps=2)
    clipped = train(tmp_path / "clipped", training__max_grad_norm=1e-12, training__max_steps=2)
    assert metrics(free, "train")[0] == metrics(clipped, "train")[0]
    # Steps of Adam do not depend on the size of the gradient, except where epsilon drowns it.
    assert not torch.equal(final_weights(free)["lm_head.weight"], final_weights(clipped)["lm_head.weight"])


def scripted_scores(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let the evaluations find these accuracies, in this order."""
    scores = iter([Score(loss=1.0, accuracy=accuracy, row_accuracy=0.0) for accuracy in accuracies])
    monkeypatch.setattr(script, "score_split", lambda *_: next(scores))


def test_the_best_weights_are_published_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_scores(monkeypatch, [0.2, 0.9, 0.3, 0.8])
    train(tmp_path / "all_steps", schedule__final_ratio=1.0)
    assert metrics(tmp_path / "all_steps", "test")[0]["selected_step"] == 4
    scripted_scores(monkeypatch, [0.2, 0.9, 0.8])
    train(tmp_path / "until_best", schedule__final_ratio=1.0, training__max_steps=4)
    assert_same_weights(tmp_path / "all_steps", tmp_path / "until_best")


def test_training_stops_when_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_scores(monkeypatch, [0.5, 0.6, 0.4, 0.6, 0.6])
    train(tmp_path / "run", training__patience=2, training__max_steps=20)
    assert [record["step"] for record in metrics(tmp_path / "run", "validation")] == [2, 4, 6, 8]
    assert metrics(tmp_path / "run", "test")[0]["selected_step"] == 4


def test_training_stops_at_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_scores(monkeypatch, [0.5, 0.95, 0.9])
    train(tmp_path / "run", training__target_accuracy=0.95, training__max_steps=20)
    assert [record["step"] for record in metrics(tmp_path / "run", "validation")] == [2, 4]


def test_bf16_trains(tmp_path: Path) -> None:
    train(tmp_path / "run", training__mixed_precision="bf16", training__max_steps=2)
    assert all(weight.dtype == torch.float32 for weight in final_weights(tmp_path / "run").values())


def test_a_diverged_run_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss is (nan|inf) at step \d+: lower optimizer\.learning_rate"):
        train(tmp_path / "run", optimizer__learning_rate=1e30, training__max_grad_norm="null", training__max_steps=20)


# ---- output folders -------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_with_the_ways_out(finished: Path) -> None:
    with pytest.raises(UsageError, match=r"already holds a run.*--run\.resume true.*--run\.overwrite true"):
        train(finished, model__dropout=0.1)
    assert (finished / "final").exists()


def test_a_folder_that_holds_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for changes in ({}, {"run__overwrite": True}, {"run__resume": True}):
        with pytest.raises(UsageError, match="not a run: give a new folder"):
            train(tmp_path, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_starts_from_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run", run__seed=1)
    train(tmp_path / "run", run__overwrite=True, training__max_steps=2)
    assert [record["step"] for record in metrics(tmp_path / "run", "train")] == [1, 2]
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())["launches"]) == 1


def test_a_changed_configuration_is_not_resumed(finished: Path) -> None:
    with pytest.raises(UsageError, match=r"fields differ: training\.batch_size: 8 -> 16\."):
        train(finished, model__dropout=0.1, run__resume=True, training__batch_size=16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__architecture": "sdd"}, "model.architecture is 'sdd', which is none. Did you mean 'ssd'?"),
        ({"model__hiden_size": 8}, "hidden_size"),
        ({"model__num_heads": 5}, "num_heads"),
        ({"model__hidden_size": "wide"}, "hidden_size"),
        ({"model__vocab_size": 99}, "model.vocab_size is 99, but the task decides it"),
        ({"model__position_embedding": "learned", "model__max_position_embeddings": 4}, "does not fit"),
        ({"task__name": "mqra"}, "did you mean mqar?"),
        ({"task__sizes__num_pair": 1}, "did you mean num_pairs"),
        ({"task__sizes__sequence_length": 3}, "sequence_length"),
        ({"tracker__name": "tensorbord"}, "Did you mean 'tensorboard'?"),
        ({"training__gradient_accumulation_steps": 3}, "training.batch_size is 8"),
        ({"training__mixed_precision": "fp16"}, 'training.mixed_precision is "fp16"'),
    ],
)
def test_a_run_that_cannot_be_writes_nothing(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UsageError) as error:
        train(tmp_path / "run", **changes)
    assert named in str(error.value)
    assert list(tmp_path.iterdir()) == []


# ---- damaged checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after its checkpoint at step 2."""
    whole_step = script.training_step
    monkeypatch.setattr(script, "training_step", lambda run: whole_step(run) if run.progress.step < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    monkeypatch.undo()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name",
    [
        "step_00000002/model.safetensors",
        "step_00000002/optimizer.bin",
        "step_00000002/random_states_0.pkl",
        "step_00000002/manifest.json",
        "best_00000002/model.safetensors",
    ],
)
def test_a_damaged_checkpoint_names_the_file(unfinished: Path, name: str) -> None:
    file = unfinished / "checkpoints" / name
    file.write_bytes(file.read_bytes()[:-7])
    before = (unfinished / "environment.json").read_text()
    for _ in range(2):
        with pytest.raises(UsageError, match=rf"{name} .*Remove the folder .*step_00000002 "):
            train(unfinished, run__resume=True)
        file.unlink(missing_ok=True)
    assert (unfinished / "environment.json").read_text() == before


def test_a_checkpoint_of_other_processes_is_not_resumed(unfinished: Path) -> None:
    manifest = unfinished / "checkpoints" / "step_00000002" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["progress"]["num_processes"] = 2
    manifest.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"saved by 2 processes.*resume with 2"):
        train(unfinished, run__resume=True)


def test_the_leftovers_of_a_killed_save_are_ignored(unfinished: Path) -> None:
    leftover = unfinished / "checkpoints" / "step_00000004.unfinished"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train(unfinished, run__resume=True)
    assert not leftover.exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    forget_accelerate()
    config = tiny_config(tmp_path / "run")
    script.prepare_run_folder(config, 1)
    train(tmp_path / "run", run__resume=True)
    train(tmp_path / "fresh")
    assert_same_weights(tmp_path / "run", tmp_path / "fresh")


def test_accelerator_follows_the_configuration(tmp_path: Path) -> None:
    forget_accelerate()
    accelerator = build_accelerator(tiny_config(tmp_path / "run", training__mixed_precision="bf16"))
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.gradient_accumulation_steps == 1
