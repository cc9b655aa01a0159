"""The study of the recall network that is written down: what it counts, and what the report says."""

import json
from pathlib import Path

import pytest
import torch

from dsf_models.hub.usage import UsageError
from evaluation.papers.token_selection import construction
from evaluation.papers.token_selection.construction import by_words, recall_rows, write_report


def test_rows_ask_for_one_of_their_keys() -> None:
    ids, answers = recall_rows(50, 7, 20)
    keys, values, query = ids[:, :-1:2], ids[:, 1::2] - 50, ids[:, -1:] - 100
    asked = keys == query
    assert (asked.sum(1) == 1).all()
    assert torch.equal(values[asked], answers)
    assert torch.equal(recall_rows(50, 7, 20)[0], ids)
    assert not torch.equal(recall_rows(50, 7, 20, seed=1)[0], ids)


def test_the_network_is_exact_and_grows_with_the_bits_of_a_word() -> None:
    small, large = by_words((4, 8))
    for found in (small, large):
        assert set(found["right"].values()) == {found["rows"]}
    assert (small["networks"], large["networks"]) == (44 * 4 + 1, 44 * 8 + 1)
    assert large["mixers"] == 2 * small["mixers"]
    assert large["codes"] == 3 * 256 * (8 + 1) + 256 * 8


def test_the_report_is_made_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construction, "RESULTS", tmp_path)
    monkeypatch.setattr(construction, "BITS", (4, 5))
    monkeypatch.setattr(construction, "BROKEN_ROWS", 64)
    construction.main([])
    text = (tmp_path / "report.md").read_text()
    assert "| 16 | 64 of 64 | 64 of 64 | 64 of 64 | – | 177 |" in text
    assert "| whole | 100.0 |" in text
    assert "| one-sided mixers, query first | 100.0 |" in text
    found = json.loads((tmp_path / "construction.json").read_text())
    shares = {one["variant"]: one["right"] / one["rows"] for one in found["broken"]}
    for variant in construction.VARIANTS.keys() - {"whole"}:
        assert shares[variant] < 0.3  # one of eight values is guessed
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    (tmp_path / "construction.json").unlink()
    with pytest.raises(UsageError, match="run the study first"):
        write_report(tmp_path)
