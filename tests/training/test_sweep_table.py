"""What a sweep's results amount to: points, rows, windows, warnings, the table and the figure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dsf_models.hub.usage import UsageError
from training import sweep_figure
from training.sweep_config import LEARNING_RATE
from training.sweep_figure import draw_learning_rates
from training.sweep_report import markdown, warnings
from training.sweep_table import ARCHITECTURE, RunRecord, read_runs, table_rows, window_width

RATES = [0.001, 0.01, 0.1]


def record(architecture: str, rate: float, seed: int, validation: float | None, test: float = 0.0) -> RunRecord:
    """A run with the parts of its result that the table reads; without a validation accuracy it has none."""
    result = {
        "parameters": 1234,
        "state_bytes": 56,
        "steps": 100,
        "seconds": 7.0,
        "validation": {"accuracy": validation, "loss": 1.0 - (validation or 0)},
        "test": {"accuracy": test},
        "selected_by": "accuracy",
        "baselines": {"of": "accuracy", "chance": 0.1, "best_trivial": 0.25},
    }
    return RunRecord(
        name=f"{architecture}-{rate}-{seed}",
        axes={ARCHITECTURE: architecture, LEARNING_RATE: rate},
        seeds={"run": seed, "data": 0},
        result=None if validation is None else result,
    )


def sweep_of(architecture: str, validation: list[list[float | None]], test: list[list[float]]) -> list[RunRecord]:
    """A run for each learning rate and seed."""
    return [
        record(architecture, rate, seed, validation[i][seed], test[i][seed])
        for i, rate in enumerate(RATES)
        for seed in range(len(validation[i]))
    ]


def rows_of(runs: list[RunRecord]) -> list[Any]:
    return table_rows(runs, [LEARNING_RATE])


@pytest.mark.parametrize(
    ("scores", "width"),
    [
        ([0.5, 0.99, 1.0, 0.98, 0.979], 3 / 5),
        ([1.0], 1.0),
        ([0.3, 0.3], 1.0),
        ([1.0, None, None, None], 1 / 4),
        ([0.2, 0.25], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_window_is_the_share_of_rates_within_two_points_of_the_best(
    scores: list[float | None], width: float | None
) -> None:
    assert window_width(scores, trivial=0.25) == width
    assert window_width(scores[::-1], trivial=0.25) == width


def test_validation_chooses_and_test_reports() -> None:
    (row,) = rows_of(sweep_of("ssd", [[0.5, 0.5], [0.9, 0.7], [0.6, 0.6]], [[1.0, 1.0], [0.995, 0.5], [1.0, 1.0]]))
    assert row.best.axes[LEARNING_RATE] == 0.01
    assert row.best.validation == pytest.approx(0.8)
    assert row.best.test == {"mean": pytest.approx(0.7475), "min": 0.5, "max": 0.995, "success_rate": 0.5}
    assert (row.window, row.at_edge) == (pytest.approx(1 / 3), False)


def test_of_equal_accuracies_the_lower_loss_is_better() -> None:
    runs = [record("ssd", rate, 0, 0.9, 0.9) for rate in RATES]
    runs[1].result["validation"]["loss"] = 0.01
    runs[2].result["validation"]["loss"] = None
    (row,) = rows_of(runs)
    assert row.best.axes[LEARNING_RATE] == 0.01


def test_where_runs_select_by_loss_so_does_the_table() -> None:
    runs = [record("ssd", rate, 0, accuracy, 0.5) for rate, accuracy in zip(RATES, (0.5, 0.4, 0.6), strict=True)]
    for run, loss in zip(runs, (2.0, 1.0, 1.5), strict=True):
        run.result["validation"]["loss"] = loss
        run.result.update(selected_by="loss", baselines={"of": "loss", "chance": None, "best_trivial": 3.0})
    (row,) = rows_of(runs)
    assert (row.best.axes[LEARNING_RATE], row.baselines) == (0.01, None)
    assert markdown([row], runs)


def test_a_rate_at_which_a_run_is_missing_is_no_candidate_and_not_in_the_window() -> None:
    runs = sweep_of("ssd", [[0.5, 0.5], [1.0, None], [0.9, 0.9]], [[0.5, 0.5], [1.0, 0.0], [0.9, 0.9]])
    (row,) = rows_of(runs)
    assert (row.best.axes[LEARNING_RATE], row.window, row.at_edge) == (0.1, pytest.approx(1 / 3), True)
    assert warnings([row]) == [
        "ssd: the best optimizer.learning_rate, 0.1, is at the edge of the range: widen the range.",
        "ssd: 1 runs have no result; their points count as not solved.",
    ]


def test_before_anything_has_finished_the_table_has_its_rows() -> None:
    runs = [record(name, rate, 0, None) for name in ("ssd", "s6") for rate in RATES]
    rows = rows_of(runs)
    assert [(row.axes[ARCHITECTURE], row.best, row.window, row.at_edge) for row in rows] == [
        ("ssd", None, None, False),
        ("s6", None, None, False),
    ]
    assert "0 of 6 runs have finished." in markdown(rows, runs)


def test_the_table_in_markdown() -> None:
    runs = sweep_of("ssd", [[0.5, 0.5], [1.0, 0.7], [0.6, 0.6]], [[0.5, 0.5], [1.0, 0.5], [0.6, 0.6]])
    runs += sweep_of("s6", [[0.2], [0.1], [0.1]], [[0.2], [0.1], [0.1]])
    text = markdown(rows_of(runs), runs)
    lines = text.splitlines()
    assert lines[0] == "9 of 9 runs have finished."
    assert "| ssd | 1,234 | 56 | 0.01 | 85.00 | 75.00 | 50.00–100.00 | 50 % | 2/2 | 100 | 33 % | 25.00 |" in lines
    # Where nothing beats the trivial rule there is no window.
    assert "| s6 | 1,234 | 56 | 0.001 | 20.00 | 20.00 | 20.00–20.00 | 0 % | 1/1 | 100 | – | 25.00 |" in lines
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {13, 10}
    assert json.loads(json.dumps([row.to_dict() for row in rows_of(runs)]))[0]["best"]["test"]["success_rate"] == 0.5


def test_other_axes_make_rows_and_a_random_search_makes_points() -> None:
    runs = []
    for width in (8, 16):
        for i, decay in enumerate([0.3, 0.1, 0.2]):
            run = record("ssd", 0.01, 0, 0.5 + 0.1 * i, 0.5)
            axes = {ARCHITECTURE: "ssd", "model.hidden_size": width, "optimizer.weight_decay": decay}
            runs.append(replace(run, axes=axes))
    rows = table_rows(runs, ["optimizer.weight_decay"])
    assert [row.axes["model.hidden_size"] for row in rows] == [8, 16]
    assert all(row.best.axes["optimizer.weight_decay"] == 0.2 for row in rows)
    assert all((row.window, row.at_edge) == (None, False) for row in rows)


def test_the_figure_shows_the_points_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = sweep_figure.save
    monkeypatch.setattr(sweep_figure, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    runs = sweep_of("ssd", [[0.5, 0.5], [1.0, 0.7], [0.9, None]], [[0.5, 0.5], [1.0, 0.5], [0.6, 0.6]])
    runs += [record("s6", rate, 0, None) for rate in RATES]
    draw_learning_rates(rows_of(runs), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
    ssd, s6 = drawn[0].axes
    (line,) = [line for line in ssd.lines if len(line.get_xdata()) == 3]
    assert list(line.get_xdata()) == RATES
    assert list(line.get_ydata()) == pytest.approx([50, 85, 90])
    assert len(ssd.collections[0].get_offsets()) == 5
    assert (ssd.get_title(), s6.get_title()) == ("ssd (window 33 %)", "s6 (window none)")


def errors_of(losses: list[list[float]]) -> list[RunRecord]:
    """Runs of a task of real numbers: a learning rate for each list, a seed for each test loss in it."""
    runs = [record("ssd", rate, seed, 0.5) for rate, row in zip(RATES, losses, strict=True) for seed in range(len(row))]
    for run, loss in zip(runs, (loss for row in losses for loss in row), strict=True):
        numbers = {"loss": loss, "mse": loss, "r2": 1 - loss}
        run.result.update(validation=numbers, test=dict(numbers), selected_by="loss", state_bytes=None)
        run.result["baselines"] = {"of": "mse", "chance": None, "best_trivial": 1.0}
    return runs


def test_real_numbers_are_told_in_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = errors_of([[0.9, 0.7], [0.25, 0.15], [0.4, 0.6]])
    (row,) = rows_of(runs)
    assert (row.best.axes[LEARNING_RATE], row.window, row.at_edge) == (0.01, None, False)
    assert row.best.test == {"mean": pytest.approx(0.2), "min": 0.15, "max": 0.25, "success_rate": None}
    text = markdown([row], runs)
    assert "| ssd | 1,234 | – | 0.01 | 0.2 | 0.2 | 0.15–0.25 | – | 2/2 | 100 | – | 1 |" in text.splitlines()
    assert "Losses (squared errors), on the test split" in text
    drawn: list[Figure] = []
    monkeypatch.setattr(sweep_figure, "save", lambda figure, path: drawn.append(figure))
    draw_learning_rates([row], tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.8, 0.2, 0.5])
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "loss")


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sweep\.json cannot be read .*give the output_dir of a sweep that has begun"):
        read_runs(tmp_path)
