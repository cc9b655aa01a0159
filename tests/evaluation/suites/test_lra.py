"""ListOps, texts and pixels: models of tokens and of sequences, on both sides, and what is missing."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from dsf_models.tasks import get_task
from dsf_models.tasks.text import byte_tokenizer
from dsf_models.tasks.text.labelled import labelled_documents
from evaluation.suites.lra import predicted_classes
from tests.contract import fresh
from tests.evaluation.helpers import evaluate, refused, save_trained_on
from tests.idx import write_random_images

LISTOPS = {"max_depth": 4, "max_args": 3, "min_size": 8, "max_size": 30, "sequence_length": 32}


def test_a_model_that_looks_ahead_is_scored_without_its_pads(tmp_path: Path) -> None:
    folder = save_trained_on(
        tmp_path / "s4d", "s4d", "listops", examples=12, **LISTOPS, model_bidirectional=True, model_state_size=4
    )
    results = evaluate(tmp_path / "out", folder, suite="lra")
    columns = get_task("listops", **LISTOPS).generate("test", 7, 0, 12)
    model = AutoModelForTokenClassification.from_pretrained(folder)
    right = []
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        length = int((ids != 15).sum())
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids[None, :length]).long()).logits[0]
        right.append(int(logits[length - 1].argmax()) == labels[length - 1])
    assert results["models"][0]["accuracy"]["accuracy"] == np.mean(right)
    assert results["models"][0]["state"]["bytes_per_sequence"] is None
    assert results["suite"]["sizes"]["max_depth"] == 4


def test_the_small_listops_needs_no_record(tmp_path: Path) -> None:
    fresh("ssd", "default", vocab_size=16, label_alignment="same").save_pretrained(tmp_path / "ssd")
    results = evaluate(tmp_path / "out", tmp_path / "ssd", suite="lra", lra__data="listops_small", num_examples=5)
    assert (results["suite"]["sizes"]["max_size"], results["suite"]["num_examples"]) == (128, 5)
    assert "--lra.data is missing" in refused(tmp_path / "none", tmp_path / "ssd", suite="lra")


def test_images_are_rows_of_pixels(tmp_path: Path) -> None:
    write_random_images(tmp_path / "images", 40, 10)
    model = fresh("ssd", "default", head="sequence_classification", vocab_size=256, num_labels=10)
    model.save_pretrained(tmp_path / "ssd")
    words = {"suite": "lra", "lra__data": "pixels", "lra__folder": tmp_path / "images"}
    results = evaluate(tmp_path / "out", tmp_path / "ssd", **words, num_examples=4, batch_size=3)
    assert results["suite"]["name"] == "fashion_mnist"
    (metric,) = results["models"][0]["metrics"]
    assert (metric["counts"]["examples"], metric["chance"]) == (4, 0.1)
    missing = refused(tmp_path / "none", tmp_path / "ssd", suite="lra", lra__data="pixels", lra__folder=tmp_path)
    assert "does not exist: fetch the images with scripts/fashion_mnist.py" in missing
    causal = fresh("ssd", "default", vocab_size=256)
    causal.save_pretrained(tmp_path / "causal")
    assert "such as 'score.weight', which would be random" in refused(tmp_path / "none", tmp_path / "causal", **words)


def test_texts_are_those_of_the_test_split_byte_by_byte(tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["text", "label"])
        writer.writerows([f"text number {i}", "good" if i % 3 else "bad"] for i in range(40))
    model = fresh("ssd", "default", head="sequence_classification", vocab_size=258, num_labels=2, pad_token_id=257)
    model.save_pretrained(tmp_path / "ssd")
    results = evaluate(tmp_path / "out", tmp_path / "ssd", suite="lra", lra__data="text", text__files=file)
    documents = labelled_documents(str(file), "test")
    texts = documents.texts
    assert not set(texts) & set(labelled_documents(str(file), "train").texts)
    assert len(texts) == results["suite"]["num_examples"]
    encoded = [byte_tokenizer()(text).input_ids for text in texts]
    with torch.no_grad():
        classes = [int(model.eval()(input_ids=torch.tensor([ids])).logits.argmax()) for ids in encoded]
    assert predicted_classes(model, encoded, 3).tolist() == classes
    assert documents.classes == ("bad", "good")
    assert results["models"][0]["metrics"][0]["value"] == pytest.approx(np.mean(np.equal(classes, documents.labels)))
    # A model that has names for its classes is asked by name.
    model.config.id2label, model.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    model.save_pretrained(tmp_path / "named")
    named = evaluate(tmp_path / "by_name", tmp_path / "named", suite="lra", lra__data="text", text__files=file)
    other_way = np.mean(np.equal(classes, 1 - np.array(documents.labels)))
    assert named["models"][0]["metrics"][0]["value"] == pytest.approx(other_way)
    model.config.id2label, model.config.label2id = {0: "good", 1: "fine"}, {"good": 0, "fine": 1}
    model.save_pretrained(tmp_path / "other")
    unknown = refused(tmp_path / "no", tmp_path / "other", suite="lra", lra__data="text", text__files=file)
    assert "knows the classes good, fine, but not bad" in unknown
    unread = refused(tmp_path / "no", tmp_path / "ssd", suite="lra", lra__data="text", text__files=file, text__window=5)
    assert "--text.window is 5, which the suite lra does not read" in unread
    assert "--text.files is missing" in refused(tmp_path / "no", tmp_path / "ssd", suite="lra", lra__data="text")
