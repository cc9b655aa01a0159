"""Runs on labelled sequences: rows and pads, losses, what is published, and the evaluation that asks the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from dsf_models.tasks.images import CLASSES, fashion_mnist
from dsf_models.tasks.text import byte_tokenizer
from dsf_models.tasks.text.labelled import labelled_documents
from tests.evaluation.helpers import evaluate
from tests.idx import write_random_images
from tests.training.helpers import command, metrics, train, write_documents
from training.config import LabelledConfig
from training.labelled_data import LabelledData, LabelledExamples, load_labelled_data, shape_of
from training.readout import ClassReadout
from training.score import Score


class Outputs(nn.Module):
    """A model with given outputs."""

    config = None

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.found = logits

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.found)


# ---- rows and answers -----------------------------------------------------------------------------------------------


def test_shorter_documents_have_pads_behind_them(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "documents.csv", 40)
    data = load_labelled_data(LabelledConfig(data="text", files=[str(file)], length=20, test_examples=4))
    documents = labelled_documents(str(file), "test")
    assert len(data.test) == 4
    rows = data.test.rows(np.arange(4))
    tokenizer = byte_tokenizer()
    for text, ids, mask in zip(documents.texts, rows["input_ids"], rows["attention_mask"], strict=False):
        assert ids[mask.bool()].tolist() == tokenizer(text).input_ids[:20]
        assert set(ids[~mask.bool()].tolist()) <= {tokenizer.pad_token_id}
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
    assert rows["labels"].tolist() == documents.labels[:4]
    assert data.classes == ("bad", "good")


def test_the_shape_is_known_before_anything_is_read(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "documents.csv", 40)
    write_random_images(tmp_path / "images", 12, 4)
    for config in (
        LabelledConfig(data="text", files=[str(file)], length=9),
        LabelledConfig(data="pixels", folder=str(tmp_path / "images"), pooling=4),
    ):
        data, (readout, length) = load_labelled_data(config), shape_of(config)
        assert length == data.sequence_length == data.train.rows(np.zeros(1, int))["input_ids"].shape[1]
        assert readout.decided.keys() == data.readout.decided.keys()
        assert readout.vocab_size == data.readout.vocab_size


def test_a_class_costs_its_negative_log_probability() -> None:
    readout = ClassReadout(vocab_size=5, classes=("a", "b", "c"))
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [9.0, 9.0, 9.0]])
    targets = readout.targets({"labels": torch.tensor([0, 1, -100])})
    inputs = {"input_ids": torch.zeros(3, 2, dtype=torch.long)}
    expected = -torch.log_softmax(logits.double(), -1)[[0, 1], [0, 1]].sum().item()
    assert readout.count(targets) == 2
    loss = readout.loss(Outputs(logits), None, inputs, targets, torch.tensor(8))
    assert loss.item() == pytest.approx(expected / 8)
    score = readout.score(readout.sums(Outputs(logits), inputs, targets, 2))
    assert (score.loss, score.accuracy, score.row_accuracy) == (pytest.approx(expected / 2), 0.5, 0.5)


def test_the_most_frequent_class_is_the_rule_to_beat() -> None:
    rows = LabelledExamples([[1, 2], [3]], [0, 1], 2, pad=9)
    assert rows.rows(np.array([1]))["input_ids"].tolist() == [[3, 9]]
    labels = LabelledExamples([[1]] * 4, [0, 1, 1, 1], 1, None)
    data = LabelledData(
        name="x",
        kind="text",
        sequence_length=1,
        readout=ClassReadout(vocab_size=3, classes=("a", "b")),
        train=rows,
        validation=rows,
        test=labels,
        selected_by="accuracy",
        classes=("a", "b"),
        sizes={"length": 1},
        tokenizer=None,
    )
    assert data.best_trivial("test") == 0.75
    assert "most frequent class 75.00 %" in data.summary(Score(loss=0.5, accuracy=0.5, row_accuracy=0.5), "test")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "text"}, r"labelled\.files is \[\]: give CSV files"),
        ({"data": "pixels", "files": ["a.csv"]}, r"labelled\.files .*'pixels' has none: leave it out"),
        ({"data": "text", "files": ["a.csv"], "pooling": 2}, r"labelled\.pooling is 2: .*'text' has none"),
        ({"data": "pixels", "pooling": 5}, r"labelled\.pooling is 5: use a divisor of 32"),
        ({"data": "text", "files": ["a.csv"], "length": 0}, r"labelled\.length is 0: use at least 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(given: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LabelledConfig(**given)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"section `labelled` is refused: .*scripts/fashion_mnist\.py"):
        load_labelled_data(LabelledConfig(data="pixels", folder=str(tmp_path)))
    file = write_documents(tmp_path / "documents.csv", 40)
    with pytest.raises(UsageError, match=r"section `labelled` is refused: .*has no column 'class'"):
        load_labelled_data(LabelledConfig(data="text", files=[str(file)], label="class"))


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_classifier_of_documents_scores_in_the_suite_what_it_scored_here(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "documents.csv", 60)
    words = {"labelled__data": "text", "labelled__files": f"[{file}]", "labelled__length": 20}
    run = train(tmp_path / "run", **words, labelled__name="notes")
    result, final = json.loads((run / "result.json").read_text()), run / "final"
    record = TaskRecord.load(final)
    assert (record.name, record.sizes, record.seed) == ("text", {"length": 20}, None)
    assert record.data_hash["test"] == result["data"]["test_hash"]
    assert result["seeds"] == {"run": 0, "data": None}
    model = AutoModelForSequenceClassification.from_pretrained(final)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert AutoTokenizer.from_pretrained(final)("a").input_ids == [97]
    card = (final / "README.md").read_text()
    assert "trained from scratch on labelled sequences, `notes`" in card
    assert "config.id2label" in card
    assert "pipeline_tag: text-classification" in card
    assert "data seed" not in card
    found = evaluate(tmp_path / "out", final, text__files=file)  # without --suite: the record says which
    assert found["suite"]["sizes"]["length"] == 20
    assert found["models"][0]["metrics"][0]["value"] == pytest.approx(result["test"]["accuracy"])


def test_a_classifier_of_images_scores_in_the_suite_what_it_scored_here(tmp_path: Path) -> None:
    write_random_images(tmp_path / "images", 40, 10)
    words = {"labelled__data": "pixels", "labelled__folder": str(tmp_path / "images"), "labelled__pooling": 8}
    run = train(tmp_path / "run", **words, labelled__train_examples=16)
    result, final = json.loads((run / "result.json").read_text()), run / "final"
    assert "pipeline_tag" not in (final / "README.md").read_text()
    assert TaskRecord.load(final).num_examples == {"train": 16, "validation": 20, "test": 10}
    assert AutoModelForSequenceClassification.from_pretrained(final).config.id2label[9] == CLASSES[9]
    found = evaluate(tmp_path / "out", final, suite="lra", lra__folder=tmp_path / "images")
    assert found["suite"]["sizes"] == {"pooling": 8}
    assert found["models"][0]["metrics"][0]["value"] == pytest.approx(result["test"]["accuracy"])
    assert len(fashion_mnist("test", tmp_path / "images", pooling=8)[0]["input_ids"]) == 16


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "documents.csv", 60)
    words = {"labelled__data": "text", "labelled__files": f"[{file}]", "labelled__length": 12}
    one = train(tmp_path / "one", **words)
    process = command(["torchrun", "--standalone", "--nproc_per_node", "2"], tmp_path / "two", **words)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    for record, other in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert record.pop("split") == other.pop("split")
        assert record == pytest.approx(other, rel=1e-4)
