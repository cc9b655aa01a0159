"""Documents with classes: splits by their own text, duplicates once."""

import csv
from pathlib import Path

import pytest

from dsf_models.tasks.text import TextError, split_of
from dsf_models.tasks.text.labelled import labelled_documents

FRACTIONS = {"validation": 0.2, "test": 0.3}


def write(file: Path, rows: list[list[str]]) -> Path:
    with file.open("w", newline="") as target:
        csv.writer(target).writerows(rows)
    return file


def test_every_document_is_in_one_split(tmp_path: Path) -> None:
    rows = [[f"document {i}", str(i % 2)] for i in range(50)]
    file = write(tmp_path / "a.csv", [["text", "label"], *rows, rows[3], ["  ", "1"]])
    found = {split: labelled_documents(file, split, FRACTIONS, seed=1) for split in ("train", "validation", "test")}
    assert sum(len(documents.texts) for documents in found.values()) == 50
    for split, documents in found.items():
        assert all(split_of(text, FRACTIONS, 1) == split for text in documents.texts)
        assert documents.labels == [int(text.split()[1]) % 2 for text in documents.texts]


def test_a_class_has_the_same_number_in_every_split(tmp_path: Path) -> None:
    """Also where a split lacks a class."""
    texts = [f"document {i}" for i in range(60)]
    rows = [
        [text, "c" if i % 2 else "a" if split_of(text, FRACTIONS, 0) == "train" else "b"]
        for i, text in enumerate(texts)
    ]
    file = write(tmp_path / "a.csv", [["text", "label"], *rows])
    for split in ("train", "test"):
        documents = labelled_documents(file, split, FRACTIONS)
        assert documents.classes == ("a", "b", "c")
        names = dict(rows)
        assert [documents.classes[label] for label in documents.labels] == [names[text] for text in documents.texts]


def test_the_order_of_the_file_is_left(tmp_path: Path) -> None:
    """Files are sorted by class; the first documents of a split are of both."""
    rows = [[f"document {i}", str(i // 100)] for i in range(200)]
    file = write(tmp_path / "a.csv", [["text", "label"], *rows])
    labels = labelled_documents(file, "train", FRACTIONS).labels
    assert 2 <= labels[:16].count(0) <= 14
    assert labelled_documents(file, "train", FRACTIONS).labels == labels


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", [["text", "class"], ["x", "1"]])
    with pytest.raises(TextError, match="has no column 'label'; its columns: text, class"):
        labelled_documents(file, "test", FRACTIONS)
    short = write(tmp_path / "b.csv", [["text", "label"], ["x", "1"], ["y"]])
    with pytest.raises(TextError, match=r"b\.csv, line 3: no class in column 'label'"):
        labelled_documents(short, "test", FRACTIONS)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TextError, match="is no CSV file"):
        labelled_documents(tmp_path / "a.txt", "test", FRACTIONS)
    with pytest.raises(TextError, match="is empty: give more documents"):
        labelled_documents(file, "validation", FRACTIONS, label="class", seed=2)
