"""Whole runs in this process: what they leave behind, what they refuse, and that an interruption changes nothing."""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

import training.checkpoint as checkpoints
import training.loop as loop
from dsf_models.analysis import training_flops
from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from tests.training.helpers import assert_same_weights, final_weights, forget_accelerate, metrics, tiny_config, train
from training.checkpoint import newest_checkpoint
from training.data import Batch, Delivery, TaskExamples
from training.launch import build_accelerator
from training.metrics import MetricsLog
from training.run_folder import prepare_run_folder
from training.score import Score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through without an interruption; dropout makes it depend on the random generators."""
    return train(tmp_path_factory.mktemp("finished") / "run", model__dropout=0.1, tracker__name="tensorboard")


def test_a_run_records_what_it_was(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "result.json"}
    assert names == files | {"checkpoints", "final", "tracker"}
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
    steps = sorted((finished / "checkpoints").glob("step_*"))
    assert [path.name for path in steps] == ["step_00000004", "step_00000006"]
    best = {json.loads((path / "manifest.json").read_text())["progress"]["best_step"] for path in steps}
    assert {int(path.name[-8:]) for path in (finished / "checkpoints").glob("best_*")} == best


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole_step = loop.training_step

    def interrupted(run: loop.Run, delivery: Delivery) -> tuple:
        if run.progress.step == step:
            raise KeyboardInterrupt
        return whole_step(run, delivery)

    monkeypatch.setattr(loop, "training_step", interrupted)
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
    rows = TaskExamples.rows

    def uneven(examples: TaskExamples, indices: np.ndarray) -> Batch:
        batch = rows(examples, indices)
        # Every third example keeps one answer, the others all of them.
        few = batch["labels"][indices % 3 == 0]
        few[:, few.shape[1] // 2 :] = -100
        few[:, 0] = 9
        batch["labels"][indices % 3 == 0] = few
        return batch

    monkeypatch.setattr(TaskExamples, "rows", uneven)
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
    monkeypatch.setattr(loop, "score_split", lambda *_: next(scores))


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


# ---- what a run survives, and what it does not ----------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the gradient of these steps (from 0) infinite."""
    forward = loop.forward

    def poison(steps: set[int]) -> None:
        monkeypatch.setattr(
            loop, "forward", lambda run, *more: forward(run, *more) * (torch.inf if run.progress.step in steps else 1)
        )

    return poison


def test_a_step_without_a_finite_gradient_changes_no_weight(
    tmp_path: Path, poisoned: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned({1, 2, 4})
    seen, update = [], loop.update

    def watched(run: loop.Run, finite: bool) -> None:
        before = run.plain_model.lm_head.weight.clone()
        update(run, finite)
        seen.append(torch.equal(before, run.plain_model.lm_head.weight))

    monkeypatch.setattr(loop, "update", watched)
    train(tmp_path / "run", training__max_skipped_steps=2)
    assert seen == [False, True, True, False, True, False]
    assert [record["skipped_steps"] for record in metrics(tmp_path / "run", "train")] == [0, 1, 2, 2, 3, 3]


def test_too_many_of_them_in_a_row_stop_the_run_with_advice(
    tmp_path: Path, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({1, 2, 3})
    with pytest.raises(
        UsageError, match=r"in 3 steps in a row, up to step 4: lower optimizer\.learning_rate \(0\.001\)"
    ):
        train(tmp_path / "run", training__max_skipped_steps=2)


def test_a_diverged_run_stops(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in 3 steps in a row"):
        train(
            tmp_path / "run",
            optimizer__learning_rate=1e30,
            training__max_grad_norm="null",
            training__max_steps=20,
            training__max_skipped_steps=2,
        )


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep, soft_and_hard = loop.keep, resource.getrlimit(resource.RLIMIT_FSIZE)

    def keep_on_a_full_disk(run: loop.Run) -> None:
        full = run.progress.step < 5
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if full else soft_and_hard[0], soft_and_hard[1]))
        try:
            keep(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)
        assert [path.name for path in run.checkpoints.glob("step_*")] == ([] if full else ["step_00000006"])

    monkeypatch.setattr(loop, "keep", keep_on_a_full_disk)
    train(tmp_path / "run", model__dropout=0.1)
    assert capsys.readouterr().out.count("warning: the checkpoint of step 2 could not be saved") == 1
    assert_same_weights(finished, tmp_path / "run")


def test_checkpoints_that_cannot_be_removed_are_told_apart_from_one_that_cannot_be_saved(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_folder = checkpoints.remove_folder

    def fails_for_checkpoints(path: Path) -> None:
        if path.exists() and path.name.startswith("step_"):
            raise PermissionError(f"{path.name} is held")
        remove_folder(path)

    monkeypatch.setattr(checkpoints, "remove_folder", fails_for_checkpoints)
    train(tmp_path / "run", model__dropout=0.1, training__keep_checkpoints=1)
    told = "checkpoints older than that of step 4 could not be removed (PermissionError: step_00000002 is held)."
    assert told in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 3
    assert_same_weights(finished, tmp_path / "run")


def test_the_best_weights_that_could_be_saved_stay_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_scores(monkeypatch, [0.2, 0.9, 0.3, 0.8])
    save_best = loop.save_best
    monkeypatch.setattr(loop, "save_best", lambda *more: "no room" if more[-1] == 4 else save_best(*more))
    train(tmp_path / "run")
    assert metrics(tmp_path / "run", "test")[0]["selected_step"] == 6


def test_metrics_on_a_full_disk_lose_whole_lines_only(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, "train", {"loss": 1.0})
    size = log.path.stat().st_size
    soft_and_hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, soft_and_hard[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append(2, "train", {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_and_hard)
    assert log.path.stat().st_size == size


def test_a_lost_tracker_does_not_lose_the_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("the tracker's server is gone")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", lost)
    train(tmp_path / "run", model__dropout=0.1, tracker__name="tensorboard")
    assert capsys.readouterr().out.count("the tracker's server is gone") == 1
    assert_same_weights(finished, tmp_path / "run")


def test_speed_is_recorded_beside_the_losses(finished: Path) -> None:
    records = metrics(finished, "speed")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["tokens_per_second"] > 0 and 0 <= record["waiting"] < 1 for record in records)
    assert records[-1]["seconds_left"] == 0
    assert records[-1]["peak_memory"] > 1e6
    assert "mfu" not in records[-1], "the peak of this CPU is not known"


def test_the_share_of_a_known_peak_is_recorded(tmp_path: Path) -> None:
    train(tmp_path / "run", training__peak_flops=1e12, training__max_steps=2)
    record = metrics(tmp_path / "run", "speed")[-1]
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").config
    flops = training_flops(config, 16).total / 16
    assert record["mfu"] == pytest.approx(record["tokens_per_second"] * flops / 1e12)


def test_activation_checkpointing_changes_no_result(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", training__max_steps=2)
    switched = train(tmp_path / "switched", training__max_steps=2, training__activation_checkpointing=True)
    assert_same_weights(plain, switched)


def test_compile_compiles_the_model_that_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    train(tmp_path / "run", training__max_steps=2, training__compile=True)
    assert compiled == ["SSDForCausalLM"]


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", training__max_steps=2)
    compiled = train(tmp_path / "compiled", training__max_steps=2, training__compile=True)
    for name, weight in final_weights(plain).items():
        torch.testing.assert_close(final_weights(compiled)[name], weight, rtol=1e-4, atol=1e-6)


def test_a_model_that_looks_ahead_is_trained_as_a_classifier_of_tokens(tmp_path: Path) -> None:
    two_sided = {"model__architecture": "s4d", "model__bidirectional": True, "model__num_heads": 1}
    run = train(tmp_path / "run", optimizer__learning_rate=0.03, training__max_steps=40, **two_sided)
    first, *_, last = metrics(run, "validation")
    assert last["loss"] < first["loss"]
    model = AutoModelForTokenClassification.from_pretrained(run / "final")
    assert model.config.num_labels == 16
    assert "AutoModelForTokenClassification" in (run / "final" / "README.md").read_text()


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
        ({"model__vocab_size": 99}, "model.vocab_size is 99, but the data decide it"),
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
    """A run that was interrupted behind its checkpoints at steps 2 and 4."""
    whole_step = loop.training_step
    monkeypatch.setattr(
        loop, "training_step", lambda run, *more: whole_step(run, *more) if run.progress.step < 5 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", model__dropout=0.1)
    monkeypatch.undo()
    return tmp_path / "run"


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_takes_its_place(
    finished: Path, unfinished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(unfinished / "checkpoints" / "step_00000004" / name)
    train(unfinished, model__dropout=0.1, run__resume=True)
    assert re.search(
        rf"warning: Checkpoint file \S+step_00000004/{name} .* from step 2,", capsys.readouterr().out, re.DOTALL
    )
    assert_same_weights(finished, unfinished)
    assert metrics(finished) == metrics(unfinished)


def test_damaged_selected_weights_count_as_a_damaged_checkpoint(finished: Path, unfinished: Path) -> None:
    newest = unfinished / "checkpoints" / "step_00000004"
    best = json.loads((newest / "manifest.json").read_text())["progress"]["best_step"]
    (unfinished / "checkpoints" / f"best_{best:08d}" / "model.safetensors").unlink()
    progress = newest_checkpoint(unfinished / "checkpoints", 1)[1] if best == 4 else None
    assert progress is None or progress.step == 2


def test_without_a_good_checkpoint_a_run_is_not_resumed(unfinished: Path) -> None:
    for checkpoint in (unfinished / "checkpoints").glob("step_*"):
        damage(checkpoint / "optimizer.bin")
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with pytest.raises(
        UsageError, match=r"step_00000004/optimizer\.bin .*step_00000002/optimizer\.bin .*--run\.overwrite"
    ):
        train(unfinished, model__dropout=0.1, run__resume=True)
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_other_processes_is_not_resumed(unfinished: Path) -> None:
    manifest = unfinished / "checkpoints" / "step_00000004" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["progress"]["num_processes"] = 2
    manifest.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"saved by 2 processes.*resume with 2"):
        train(unfinished, model__dropout=0.1, run__resume=True)


def test_the_leftovers_of_a_killed_save_are_ignored(unfinished: Path) -> None:
    leftover = unfinished / "checkpoints" / "step_00000006.unfinished"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train(unfinished, model__dropout=0.1, run__resume=True)
    assert not leftover.exists()


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    forget_accelerate()
    config = tiny_config(tmp_path / "run")
    prepare_run_folder(config, 1)
    train(tmp_path / "run", run__resume=True)
    train(tmp_path / "fresh")
    assert_same_weights(tmp_path / "run", tmp_path / "fresh")


def test_accelerator_follows_the_configuration(tmp_path: Path) -> None:
    forget_accelerate()
    accelerator = build_accelerator(tiny_config(tmp_path / "run", training__mixed_precision="bf16"))
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.gradient_accumulation_steps == 1
