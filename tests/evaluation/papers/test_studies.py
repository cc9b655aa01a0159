"""The papers' studies: what they sweep, what is read from a sweep's files, the report, and a study of real runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from scipy import stats

from dsf_models import QLSTMConfig, QLSTMForCausalLM
from dsf_models.hub.usage import UsageError
from evaluation.papers import command, dsf, figure, sweeps
from evaluation.papers.eigenvalues import spectra
from evaluation.papers.eigenvalues.report import TASKS
from evaluation.papers.exponents import learned_exponents
from evaluation.papers.outcome import outcome
from evaluation.papers.seeds import paired_difference, summary
from evaluation.papers.study import Axis, Study
from evaluation.papers.token_selection import regression, shapes
from tests.training.test_sweep import write_sweep
from training.sweep_config import LEARNING_RATE, parse_sweep
from training.sweep_plan import axis_choices
from training.sweep_table import ARCHITECTURE, RunRecord, table_rows

STUDIES = [*dsf.STUDIES.values(), *shapes.STUDIES.values()]
STUDY = Study(
    name="tiny",
    paper="tests",
    title="A tiny study",
    question="Which?",
    stated="Nothing.",
    ours="Everything.",
    unknown="All numbers.",
    series=Axis(key=ARCHITECTURE, label="architecture"),
    x=Axis(key="model.state_size", label="states", log=True),
    contrasts=(("ssd", "s6"),),
)
ENVIRONMENT = {
    "commit": "abc",
    "uncommitted_changes": False,
    "hardware": {"cpu": "a processor", "logical_cores": 2, "accelerators": []},
    "versions": {"torch": "2"},
}


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    values = [0.2, 0.5, 0.4, 0.9]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = summary(values)
    assert found.mean == pytest.approx(0.5)
    assert found.interval == pytest.approx((low, high))
    assert summary([0.3]).interval is None
    with pytest.raises(ValueError, match="at least one"):
        summary([])


def test_a_paired_difference_is_that_of_a_paired_test() -> None:
    first, second = [0.9, 0.5, 0.7], [0.8, 0.3, 0.65]
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert paired_difference(first, second).interval == pytest.approx((low, high))


# ---- from a sweep's files to a report -------------------------------------------------------------------------------


def run(architecture: str, states: int, rate: float, seed: int, accuracy: float) -> RunRecord:
    """A finished run with the parts of its result that are read."""
    result = {
        "parameters": 1234,
        "state_bytes": 56,
        "steps": 100,
        "seconds": 36.0,
        "validation": {"accuracy": accuracy, "loss": 1 - accuracy},
        "test": {"accuracy": accuracy},
        "selected_by": "accuracy",
        "baselines": {"of": "accuracy", "chance": 0.1, "best_trivial": 0.25},
        "seeds": {"run": seed, "data": 0},
        "data": {"test_hash": "0123"},
        "environment": ENVIRONMENT,
    }
    axes = {ARCHITECTURE: architecture, "model.state_size": states, LEARNING_RATE: rate}
    name = "-".join(map(str, (architecture, states, rate, seed)))
    return RunRecord(name=name, axes=axes, seeds={"run": seed, "data": 0}, result=result)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kept files of a sweep in which the higher rate is the better one, and accuracy grows with the states."""
    accuracies = {("ssd", 4): [0.5, 0.6], ("ssd", 8): [0.9, 1.0], ("s6", 4): [0.4, 0.6], ("s6", 8): [0.7, 0.75]}
    runs = [
        run(architecture, states, rate, seed, value - (0.1 if rate < 0.01 else 0))
        for (architecture, states), values in accuracies.items()
        for rate in (0.001, 0.01)
        for seed, value in enumerate(values)
    ]
    rows = table_rows(runs, [LEARNING_RATE])
    results = [{"name": r.name, "axes": dict(r.axes), "seeds": r.seeds, "result": r.result} for r in runs]
    (tmp_path / "table.json").write_text(json.dumps([row.to_dict() for row in rows]))
    (tmp_path / "results.json").write_text(json.dumps({"tuned": [LEARNING_RATE], "runs": results}))
    monkeypatch.setattr(Study, "results", lambda *_: tmp_path)
    return tmp_path


def test_what_a_study_found_follows_from_the_kept_files(kept: Path) -> None:
    found = outcome(STUDY, "small")
    cells = {(cell["series"], cell["x"]): cell for cell in found["cells"]}
    assert cells["ssd", 8]["accuracy"]["values"] == (0.9, 1.0)
    assert cells["ssd", 8]["tuned"] == {LEARNING_RATE: 0.01}
    assert cells["ssd", 8]["success_rate"] == 0.5
    assert all(cell["panel"] is None and cell["at_edge"] for cell in cells.values())
    differences = {entry["x"]: entry["values"] for entry in found["contrasts"]}
    assert differences == {4: pytest.approx((0.1, 0.0)), 8: pytest.approx((0.2, 0.25))}
    assert found["runs"] == {"finished": 16, "planned": 16}
    assert (found["seeds"], found["test_hashes"], found["environments"]) == ([0, 1], ["0123"], [ENVIRONMENT])
    assert found["hours_of_training"] == pytest.approx(0.16)


def test_the_report_shows_what_was_found_and_what_was_concluded(kept: Path) -> None:
    chosen = run("ssd", 8, 0.01, 0, 0.0).name
    (kept / "observations.json").write_text(json.dumps({chosen: {"exponents": [0.5, 1.25]}}))
    (kept / "findings.md").write_text("It grows.")
    command.write_report(STUDY, "small")
    text = (kept / "report.md").read_text()
    assert text.startswith("# A tiny study\n\n![A tiny study](figure.png)")
    assert "| ssd | 8 | 1,234 | 56 | 0.01 | 95.0 | 31.5 to 158.5 | 90.0 to 100.0 | 2 | 50 % |" in text
    assert "| ssd minus s6 | 8 | 22.5 | -9.3 to 54.3 | 20.0 to 25.0 | 2 |" in text
    assert "| ssd | 8 | 0.5 1.25 |" in text
    assert "**The paper:** Nothing." in text
    assert "**Note:** All numbers." in text
    assert "The best learning rate is at the edge of the range for:" in text
    assert "It grows." in text
    assert "Seeds 0, 1. 0.2 hours of training. Commit `abc`; a processor (2 cores); torch 2." in text
    (kept / "findings.md").unlink()
    command.write_report(STUDY, "small")
    assert "What follows" not in (kept / "report.md").read_text()


def test_the_figure_has_a_line_for_each_series_and_a_dot_for_each_seed(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figure, "save", lambda made, path: drawn.append(made))
    figure.draw(STUDY, outcome(STUDY, "small"), tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"ssd": [[4, pytest.approx(55)], [8, pytest.approx(95)]], "s6": [[4, 50], [8, pytest.approx(72.5)]]}
    dots = [point for dots in axes.collections for point in dots.get_offsets().tolist()]
    assert sorted(dots) == [
        pytest.approx(p) for p in ([4, 40], [4, 50], [4, 60], [4, 60], [8, 70], [8, 75], [8, 90], [8, 100])
    ]


def test_a_heat_map_has_the_mean_of_every_cell(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figure, "save", lambda made, path: drawn.append(made))
    cells = outcome(STUDY, "small")["cells"]
    found = {"cells": [cell for cell in cells if (cell["series"], cell["x"]) != ("s6", 4)]}
    figure.draw(replace(STUDY, heat_map=True), found, tmp_path / "figure.png")
    (axes,) = drawn[0].axes
    expected = {"ssd": {"4": "55", "8": "95"}, "s6": {"4": "–", "8": "72"}}
    columns = [label.get_text() for label in axes.get_xticklabels()]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    shown = {columns[int(text.get_position()[0])]: {} for text in axes.texts}
    for text in axes.texts:
        column, row = map(int, text.get_position())
        shown[columns[column]][rows[row]] = text.get_text()
    assert shown == expected


def test_a_study_that_has_not_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "results", lambda *_: tmp_path)
    with pytest.raises(UsageError, match="run the study first"):
        command.main({"tiny": STUDY}, None, ["tiny", "--report"])


# ---- every study ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_and_its_sweep_fit(study: Study, size: str) -> None:
    sweep, _ = parse_sweep(["--config", str(study.config(size))])
    assert Path(sweep.output_dir).parts[-2:] == (study.paper, f"{study.name}_{size}")
    values = {name: [choice.value for choice in axis_choices(name, content)] for name, content in sweep.axes.items()}
    for axis in (study.series, study.x):
        assert len(values[axis.key]) > 1
    for contrast in study.contrasts:
        assert set(contrast) <= set(values[study.series.key])
    panels = set() if study.panels is None else {study.panels.key}
    assert values.keys() - {study.series.key, study.x.key, LEARNING_RATE} <= panels
    assert len(sweep.seeds.run) >= (3 if size == "small" else 5)


def test_every_configuration_of_a_study_belongs_to_one() -> None:
    files = set((sweeps.ROOT / "configs" / "papers").rglob("*.yaml"))
    sizes = ("small", "full")
    expected = {study.config(size) for study in STUDIES for size in sizes} | set(map(regression.config_of, sizes))
    assert files == expected | {spectra.config_of(task, size) for task in TASKS for size in sizes}


def test_learned_exponents_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2}
    model = QLSTMForCausalLM(QLSTMConfig(**sizes, reversed_sigmoid=True))
    with torch.no_grad():
        for i, layer in enumerate(model.base_model.layers):
            layer.token_mixer.alpha.fill_(0.5 + i)
    model.save_pretrained(tmp_path / "learned")
    assert learned_exponents(tmp_path / "learned") == {"exponents": [0.5, 1.5]}
    QLSTMForCausalLM(QLSTMConfig(**sizes)).save_pretrained(tmp_path / "plain")
    assert learned_exponents(tmp_path / "plain") == {}


def test_what_two_machines_have_run_comes_together(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    for path, done in ((kept, {"a": 1, "b": 2, "c": None}), (folder, {"b": 3, "c": 4, "d": None})):
        path.mkdir()
        runs = [{"name": name, "result": result} for name, result in done.items()]
        (path / "results.json").write_text(json.dumps({"tuned": [], "runs": runs}))
    (kept / "sweep.json").write_text("{}")
    sweeps.restore(kept, folder)
    assert (folder / "sweep.json").is_file()
    expected = {"a": 1, "b": 3, "c": 4, "d": None}

    def results(path: Path) -> dict[str, int | None]:
        return {run["name"]: run["result"] for run in json.loads((path / "results.json").read_text())["runs"]}

    assert results(folder) == expected
    (folder / "results.json").write_text(json.dumps({"tuned": [], "runs": [{"name": "a", "result": None}]}))
    sweeps.keep(folder, kept)
    assert results(kept) == {"a": 1, "b": 2, "c": None}


def test_before_any_point_is_complete_nothing_is_written(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((kept / "table.json").read_text())
    (kept / "table.json").write_text(json.dumps([row | {"best": None} for row in rows]))
    assert command.main({"tiny": STUDY}, None, ["tiny", "--report"]) == "finished"
    assert "go on later" in capsys.readouterr().out
    assert not (kept / "outcome.json").exists()


@pytest.mark.slow
def test_a_study_of_real_runs_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {ARCHITECTURE: ["ssd", "s6"], "model.state_size": [2, 4]}
    file = write_sweep(tmp_path, axes=axes, overrides={"model.num_heads": 1}, seeds={"run": [0, 1]})
    kept = tmp_path / "kept"
    monkeypatch.setattr(Study, "config", lambda *_: file)
    monkeypatch.setattr(Study, "results", lambda *_: kept)
    study = replace(STUDY, observe=lambda checkpoint: {"files": len(list(checkpoint.iterdir()))})
    assert command.main({"tiny": study}, None, ["tiny", "--parallel", "2"]) == "finished"
    found = json.loads((kept / "outcome.json").read_text())
    assert len(found["cells"]) == 4
    assert all(len(cell["observations"]) == 2 for cell in found["cells"])

    # Another machine: the folders of the runs are not there, and one more seed is wanted.
    shutil.rmtree(tmp_path / "sweep")
    content = yaml.safe_load(file.read_text()) | {"seeds": {"run": [0, 1, 2]}}
    file.write_text(yaml.safe_dump(content))
    assert command.main({"tiny": study}, None, ["tiny"]) == "finished"
    again = json.loads((kept / "outcome.json").read_text())
    assert len(list((tmp_path / "sweep" / "runs").iterdir())) == 4
    assert [cell["accuracy"]["values"][:2] for cell in again["cells"]] == [
        cell["accuracy"]["values"] for cell in found["cells"]
    ]


def test_a_sweep_that_is_refused_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, base="none.yaml")
    with pytest.raises(UsageError, match="exit code"):
        sweeps.carry_out(file, tmp_path / "kept", None, None)
    assert "base" in capfd.readouterr().err
