"""Whole runs on text: this repository's own documents, at hand and streamed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import training.loop as loop
from dsf_models.hub.usage import UsageError
from tests.training.helpers import ROOT, assert_same_weights, metrics, train

TEXT = {
    "text__files": f"[{ROOT / 'README.md'}, {ROOT / 'docs'}/*.md]",
    "text__separator": "",
    "text__block_size": 32,
    "text__validation_fraction": 0.2,
    "text__test_fraction": 0.2,
    "text__evaluation_rows": 8,
    "model__dropout": 0.1,
    "optimizer__learning_rate": 0.02,
}
STREAM = {"text__streaming": True, "text__shuffle_window": 5}


def train_on_text(output_dir: Path, **changes: Any) -> Path:
    """Train a tiny model on this repository's pages, in this process; return the run's folder."""
    return train(output_dir, **TEXT | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = {"text__tokenizer": "train", "text__vocab_size": 300, "text__ngram_baseline": True}
    return train_on_text(tmp_path_factory.mktemp("text") / "run", text__name="pages", **trained)


def test_the_final_folder_reads_and_writes_text(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "final")
    tokenizer = AutoTokenizer.from_pretrained(finished / "final")
    assert (model.config.vocab_size, model.config.label_alignment) == (len(tokenizer), "next")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer("The equation of", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("The equation of")


def test_losses_are_those_of_the_model_on_packed_rows(finished: Path) -> None:
    first, *_, last = metrics(finished, "validation")
    assert last["loss"] < first["loss"] < 6.2, "log 300 is 5.7"
    assert last["perplexity"] == pytest.approx(torch.tensor(last["loss"]).exp().item())
    assert 0 < last["bits_per_byte"] < last["loss"] / 0.69


def test_the_card_is_one_of_text(finished: Path) -> None:
    card = (finished / "final" / "README.md").read_text()
    (test,) = metrics(finished, "test")
    assert "trained from scratch on text, `pages`" in card
    assert f"| perplexity | test | {test['perplexity']:.4g} |" in card
    assert "AutoTokenizer.from_pretrained" in card
    assert "task.json" not in card


def test_the_3_gram_stands_beside_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_on_text(tmp_path / "run", text__ngram_baseline=True, training__max_steps=2)
    printed = capsys.readouterr().out
    assert printed.count("(3-gram ") == 2
    (nats,) = {
        line.partition("(3-gram ")[2].partition(")")[0] for line in printed.splitlines() if " validation " in line
    }
    assert 1 < float(nats) < 5.5, "better than the uniform log 258, worse than perfect"


@pytest.mark.parametrize("kind", [{}, STREAM], ids=["at hand", "streamed"])
def test_an_interrupted_run_on_text_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict
) -> None:
    whole = train_on_text(tmp_path / "whole", **kind)
    whole_step = loop.training_step
    monkeypatch.setattr(
        loop, "training_step", lambda run, *more: whole_step(run, *more) if run.progress.step != 3 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train_on_text(tmp_path / "run", **kind)
    monkeypatch.undo()
    train_on_text(tmp_path / "run", run__resume=True, **kind)
    assert_same_weights(tmp_path / "run", whole)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_streams_and_text_at_hand_are_scored_on_the_same_rows(tmp_path: Path) -> None:
    few = {"training__max_steps": 2, "optimizer__learning_rate": 1e-9}
    at_hand, streamed = train_on_text(tmp_path / "a", **few), train_on_text(tmp_path / "b", **few, **STREAM)
    for split in ("validation", "test"):
        (one,), (other,) = metrics(at_hand, split), metrics(streamed, split)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text__files": "[none.txt]"}, r"No file at 'none\.txt'"),
        ({"text__files": "[{empty}]"}, r"empty\.txt holds no text"),
        ({"text__files": "[{table}]", "text__column": "txt"}, "column='txt': .* did you mean text"),
        ({"text__files": "[]", "text__dataset": "nobody/nothing"}, "nobody/nothing"),
        ({"text__tokenizer": "nobody/nothing"}, r"No tokenizer in 'nobody/nothing'"),
        ({"text__block_size": 10**6}, r"do not fill one row"),
        ({"model__vocab_size": 7}, "but the data decide it"),
        ({"model__architecture": "s4d", "model__num_heads": 1, "model__bidirectional": True}, "sees the next token"),
        ({"text__streaming": True, "text__evaluation_rows": 1000}, r"text\.evaluation_rows is 1000.*smaller"),
    ],
)
def test_text_that_cannot_be_read_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "table.jsonl").write_text(json.dumps({"text": "Φ = C Λ B"}) + "\n")
    places = {"empty": tmp_path / "empty.txt", "table": tmp_path / "table.jsonl"}
    given = {k: v.format(**places) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UsageError, match=named):
        train_on_text(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
