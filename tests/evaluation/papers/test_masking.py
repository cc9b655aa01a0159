"""The masking study: its data, its orders and intervals, and the whole of it on sequences that two positions decide."""

import json
import random
from pathlib import Path

import pytest
import torch

from dsf_models.hub.usage import UsageError
from evaluation.papers.token_selection import masking
from evaluation.papers.token_selection.masking_report import write_report
from evaluation.papers.token_selection.splice import CLASSES, MASK, NUCLEOTIDES, load, mask_at_random
from scripts.splice import write

MARKS = {"ei": (30, "GT"), "ie": (28, "AG")}


def made_up(count: int) -> list[tuple[str, str]]:
    """Random sequences with the marks of their classes, and sequences without any."""
    rng = random.Random(0)
    rows = []
    for i in range(count):
        label, letters = CLASSES[i % 3], rng.choices(NUCLEOTIDES, k=60)
        for name, (place, mark) in MARKS.items():
            letters[place : place + 2] = mark if name == label else "CC"
        rows.append(("".join(letters), label))
    return rows


def test_every_sequence_is_in_one_split_once(tmp_path: Path) -> None:
    rows = made_up(50)
    write(tmp_path / "splice.csv", [*rows, *rows[:7]])
    training, test = load(tmp_path / "splice.csv")
    assert (len(training), len(test)) == (40, 10)
    found = {
        ("".join(NUCLEOTIDES[i] for i in row["input_ids"]), CLASSES[row["labels"]])
        for split in (training, test)
        for row in (split[i] for i in range(len(split)))
    }
    assert found == set(rows)


def test_files_that_are_not_there_or_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,label\na,b\n")
    for name in ("none.csv", "other.csv"):
        with pytest.raises(UsageError, match=r"scripts/splice\.py"):
            load(tmp_path / name)
    with pytest.raises(UsageError, match="run the study first"):
        write_report(tmp_path)


def test_masks_are_random_and_at_most_three_tenths_on_average() -> None:
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(4, (60,)), "labels": torch.tensor(i % 3)} for i in range(500)]
    batch = mask_at_random(rows)
    ids = torch.stack([row["input_ids"] for row in rows])
    masked = batch["input_ids"] == MASK
    assert batch["input_ids"][~masked].equal(ids[~masked])
    # Rates are uniform on [0, 0.3]: mean 0.15, standard error of 500 of them 0.004.
    assert masked.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert masked.float().mean(1).std().item() > 0.08


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    curve = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    found = masking.summary([curve, curve + 1])
    (low, high), centre = found["interval"][0], found["mean"][0]
    assert centre == pytest.approx(curve.mean().item() + 0.5, abs=1e-6)
    assert found["seeds"] == [[pytest.approx(curve.mean().item())], [pytest.approx(curve.mean().item() + 1)]]
    assert (high - low) / 2 == pytest.approx(1.96 * curve.std().item() / 20, rel=0.1)


@pytest.mark.slow
def test_the_study_finds_the_positions_that_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "MODELS", {"s4d": masking.MODELS["s4d"]})
    write(tmp_path / "splice.csv", made_up(1500))
    size = masking.Size(steps=400, seeds=(0, 1), inputs=60, greedy=8)
    runs, results = tmp_path / "runs", tmp_path / "results"
    masking.carry_out(size, tmp_path / "splice.csv", runs, results)
    found = json.loads((results / "s4d.json").read_text())
    assert min(found["accuracies"]) > 0.95
    for name, (place, _) in MARKS.items():
        assert set(found["top_positions"][name][:2]) <= {28, 29, 30, 31}, place
    curves = {name: dict(zip(found["counts"], curve["mean"], strict=True)) for name, curve in found["curves"].items()}
    assert len({round(curve[0], 6) for curve in curves.values()}) == 1
    assert curves["own"][4] < curves["random"][4] - 0.2
    assert curves["own, least first"][4] >= curves["random"][4]
    assert found["gaps"]["random"]["mean"][3] == pytest.approx(curves["random"][4] - curves["own"][4], abs=1e-6)
    assert found["greedy"]["curves"]["greedy"]["mean"][0] == pytest.approx(
        found["greedy"]["curves"]["own"]["mean"][0], abs=1e-6
    )

    # Finished kinds are kept, and report and figure follow from the files alone.
    before = (results / "s4d.json").read_bytes()
    masking.carry_out(size, tmp_path / "splice.csv", tmp_path / "other", results)
    assert not (tmp_path / "other").exists()
    assert (results / "s4d.json").read_bytes() == before
    text = write_report(results)
    assert "| own, of another model |" in text
    assert (results / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_orders_of_a_model_and_of_another() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    orders = masking.orders_of(own, other, seed=0)
    assert tuple(orders) == masking.ORDERS
    assert orders["own"].equal(own.argsort(1, descending=True))
    assert orders["own, of another model"].equal(other.argsort(1, descending=True))
    assert orders["own, least first"].equal(own.argsort(1))
