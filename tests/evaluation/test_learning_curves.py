"""Learning curves: numbers, figure and samples of real runs on text, from their folders."""

import json
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evaluation import learning_curves
from tests.training.helpers import metrics, train
from tests.training.test_text_runs import train_on_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    options = {"text__tokenizer": "train", "text__vocab_size": 300, "text__ngram_baseline": True}
    names = ("ssd", "softmax_attention")
    return [train_on_text(folder / name, model__architecture=name, **options) for name in names]


def test_numbers_curves_and_samples_are_those_of_the_runs(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = learning_curves.save
    monkeypatch.setattr(learning_curves, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    words = ["--runs", *map(str, runs), "--output_dir", str(tmp_path / "out"), "--prompts", "The equation"]
    learning_curves.main(words)
    found = json.loads((tmp_path / "out" / "curves.json").read_text())["runs"]
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert [run["result"] for run in found] == results
    assert [run["validation"] for run in found] == [metrics(run, "validation") for run in runs]
    assert all(len(run["samples"]) == 1 and run["samples"][0].startswith("The equation") for run in found)

    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    level = results[0]["baselines"]["best_trivial_on_validation"]
    assert lines[f"3-gram, validation ({level:.3f})"][0][1] == level
    for run, name in zip(runs, ("ssd", "softmax_attention"), strict=True):
        # 8 rows of 32 tokens a step.
        expected = [[256 * record["step"] / 1e6, record["loss"]] for record in metrics(run, "validation")]
        assert lines[f"{name}, validation"] == [pytest.approx(point) for point in expected]

    report = (tmp_path / "out" / "report.md").read_text()
    for result in results:
        loss, ngram = result["test"]["loss"], result["baselines"]["best_trivial"]
        assert f"| {result['validation']['loss']:.3f} | {loss:.3f} | {ngram:.3f} |" in report
        assert found[0]["samples"][0].split()[0] in report


def test_the_share_of_waiting_is_that_of_the_whole_time(runs: list[Path]) -> None:
    run = learning_curves.read_run(runs[0])
    # Two reports over as many tokens: 10 s of which none is waited, and 30 s of which a tenth is.
    run["speed"] = [{"tokens_per_second": 300.0, "waiting": 0.0}, {"tokens_per_second": 100.0, "waiting": 0.1}]
    assert learning_curves.row(run)[-2:] == ("200", "7.50 %")


def test_what_is_no_run_on_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = train(tmp_path / "task", training__max_steps=2)
    for folder, named in ((tmp_path / "none", "is no finished run"), (task, "has learned a task, not text")):
        with pytest.raises(SystemExit, match=named):
            learning_curves.main(["--runs", str(folder), "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something that is no comparison"):
        learning_curves.main(["--runs", str(task), "--output_dir", str(kept)])
    assert (kept / "mine.txt").read_text() == "mine"
    with pytest.raises(SystemExit, match="the following arguments are required: --output_dir"):
        learning_curves.main(["--runs", str(task)])


def test_runs_of_another_budget_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    longer = shutil.copytree(runs[1], tmp_path / "longer")
    result = json.loads((longer / "result.json").read_text())
    (longer / "result.json").write_text(json.dumps(result | {"steps": result["steps"] + 1}))
    with pytest.raises(SystemExit, match="differ in their number of steps"):
        learning_curves.main(["--runs", str(runs[0]), str(longer), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
