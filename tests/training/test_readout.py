"""Tasks whose answers are real numbers, or stand all in the last output: losses, scores, runs, resuming, publishing."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForSequenceClassification

from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks import get_task
from tests.training.helpers import assert_same_weights, command, final_weights, metrics, train
from training import loop
from training.config import TaskConfig
from training.data import Delivery, load_task_data
from training.metrics import score_split
from training.readout import LastReadout, ValueReadout

REGRESSION = {"task__name": "smooth_regression"}
TWO_SIDED = {"model__architecture": "s4d", "model__bidirectional": True, "model__num_heads": 1, "model__conv_kernel": 0}


class Said(nn.Module):
    """A model that answers each row with its first number."""

    config = SimpleNamespace(looks_ahead=False)

    def forward(self, inputs_values: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=inputs_values[:, 0, :1])


class Outputs(nn.Module):
    """A model with given outputs."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


# ---- losses and scores ----------------------------------------------------------------------------------------------


def test_shares_of_a_batch_add_up_to_its_mean_squared_error() -> None:
    values, labels = torch.rand(6, 3, 2), torch.randn(6)
    readout, answers = ValueReadout(num_inputs=2), torch.tensor(6)
    parts = [(values[:2], labels[:2]), (values[2:], labels[2:])]
    losses = [readout.loss(Said(), None, {"inputs_values": x}, y, answers) for x, y in parts]
    assert float(sum(losses)) == pytest.approx(float(((values[:, 0, 0] - labels) ** 2).mean()))
    assert sum(readout.count(y) for _, y in parts) == 6


def test_each_row_is_scored_once_on_two_processes() -> None:
    """With 5 rows one process fills up its last batch, which counts nothing; labels are those without noise."""
    data = load_task_data(TaskConfig(name="smooth_regression", train_examples=1, test_examples=5, sizes={"sigma": 2.0}))
    columns = get_task("smooth_regression", sigma=0.0).generate("test", 0, 0, 5)
    errors = (columns["inputs_values"][:, 0, 0].astype(float) - columns["labels"]) ** 2
    for process, rows in ((0, [0, 2, 4]), (1, [1, 3])):
        accelerator = SimpleNamespace(
            process_index=process, num_processes=2, device=torch.device("cpu"), autocast=nullcontext
        )
        score = score_split(Said(), data, "test", accelerator, rows_per_batch=2)
        assert score.loss == pytest.approx(errors[rows].mean())
        assert (score.accuracy, score.row_accuracy) == (None, None)


def test_all_answers_are_read_from_one_output() -> None:
    """Against the definition, answer by answer in float64."""
    readout = LastReadout(vocab_size=4, sequence_length=3)
    model, labels = Outputs(torch.randn(2, 12)), torch.tensor([[0, 3, -100], [2, 1, -100]])
    logits, expected, right = model.logits.detach().double().numpy(), 0.0, 0
    for row in range(2):
        for t in range(2):
            scores = logits[row, 4 * t : 4 * t + 4]
            expected += np.log(np.exp(scores).sum()) - scores[labels[row, t]]
            right += int(scores.argmax() == labels[row, t])
    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    loss = readout.loss(model, None, inputs, readout.targets({"labels": labels}), torch.tensor(4))
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    model.config = None
    score = readout.score(readout.sums(model, inputs, labels, 2))
    assert (score.loss, score.accuracy) == (pytest.approx(expected / 4, rel=1e-5), right / 4)


def test_data_without_noise_have_the_inputs_of_those_with_it() -> None:
    task = get_task("smooth_regression", sigma=0.5)
    noisy, clean = (one.generate("validation", 3, 0, 20) for one in (task, task.without_noise()))
    np.testing.assert_array_equal(noisy["inputs_values"], clean["inputs_values"])
    assert (noisy["labels"] != clean["labels"]).all()
    assert (task.without_noise().oracle_mse, task.without_noise().constant_mse) == (0, 1)


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a two-sided model."""
    return train(tmp_path_factory.mktemp("regression") / "run", **REGRESSION, **TWO_SIDED)


def test_the_published_regressor_has_the_error_that_was_reported(regressor: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(regressor / "final").eval()
    record, result = TaskRecord.load(regressor / "final"), json.loads((regressor / "result.json").read_text())
    clean = get_task("smooth_regression", **record.description["evaluated_sizes"])
    columns = clean.generate("test", 0, 0, 10)
    with torch.no_grad():
        found = model(inputs_values=torch.from_numpy(columns["inputs_values"])).logits[:, 0].double().numpy()
    error = float(((found - columns["labels"]) ** 2).mean())
    assert result["test"] == pytest.approx({"loss": error, "mse": error, "r2": 1 - error})
    assert (result["selected_by"], result["baselines"]["of"]) == ("loss", "mse")
    assert result["baselines"]["best_trivial"] == 1
    assert result["data"]["test_hash"] == clean.data_hash("test", 0, 10) == record.data_hash["test"]
    best = min(metrics(regressor, "validation"), key=lambda record: record["mse"])
    assert result["best_step"] == best["step"]


def test_the_card_of_a_regressor_tells_the_truth(regressor: Path) -> None:
    text = ModelCard.load(regressor / "final" / "README.md").text
    error = json.loads((regressor / "result.json").read_text())["test"]["mse"]
    assert f"| mse | test | {error:.4g} | – | 1 |" in text
    assert "`inputs_values` (b, t, 2)" in text
    assert "token ids" not in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text


def test_an_interrupted_regression_ends_like_an_uninterrupted_one(
    regressor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_step = loop.training_step

    def interrupted(run: loop.Run, delivery: Delivery) -> tuple:
        if run.progress.step == 3:
            raise KeyboardInterrupt
        return whole_step(run, delivery)

    monkeypatch.setattr(loop, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", **REGRESSION, **TWO_SIDED)
    monkeypatch.undo()
    train(tmp_path / "run", **REGRESSION, **TWO_SIDED, run__resume=True)
    assert_same_weights(regressor, tmp_path / "run")
    assert metrics(regressor) == metrics(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["smooth_regression", "compression"])
def test_two_processes_learn_the_same_as_one(tmp_path: Path, task: str) -> None:
    one = train(tmp_path / "one", task__name=task)
    process = command(["torchrun", "--standalone", "--nproc_per_node", "2"], tmp_path / "two", task__name=task)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    for record, other in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert record.pop("split") == other.pop("split")
        assert record == pytest.approx(other, rel=1e-4)
    for name, weight in final_weights(one).items():
        torch.testing.assert_close(final_weights(tmp_path / "two")[name], weight, rtol=1e-4, atol=1e-5)


def test_a_model_of_all_answers_at_the_end_is_published_with_how_to_read_it(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", task__name="compression")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "final").eval()
    columns = get_task("compression", sequence_length=8, vocab_size=5).generate("test", 0, 0, 10)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(columns["input_ids"]).long()).logits
    answers = logits.view(-1, 8, 5).argmax(-1).numpy()
    accuracy = (answers == columns["labels"])[:, :7].mean()
    assert json.loads((folder / "result.json").read_text())["test"]["accuracy"] == pytest.approx(accuracy)
    assert "`logits.view(-1, 8, 5)[:, i]`" in ModelCard.load(folder / "final" / "README.md").text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (REGRESSION | {"training__target_accuracy": 0.9}, "answers of smooth_regression are real numbers: use null"),
        (REGRESSION | {"model__input_size": 3}, "model.input_size is 3, but the data decide it"),
        (REGRESSION | {"task__sizes__sigma": -1.0}, "smooth_regression.sigma=-1.0"),
        ({"task__name": "compression", "model__num_labels": 3}, "model.num_labels is 3, but the data decide it"),
    ],
)
def test_what_does_not_fit_the_answers_is_refused(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UsageError) as error:
        train(tmp_path / "run", **changes)
    assert named in str(error.value)
    assert list(tmp_path.iterdir()) == []
