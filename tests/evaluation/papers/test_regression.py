"""The regression-rate study: slopes, ratios, both sieves, what is read from a sweep, report and command line."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from dsf_models.hub.usage import UsageError
from dsf_models.tasks.smooth import log_log_slope
from evaluation.papers.token_selection import regression, regression_report
from evaluation.papers.token_selection.networks import EXAMPLES, MIXER, SSM, TOKENS, TRANSFORMER, network_outcome
from evaluation.papers.token_selection.oracle import OracleStudy, run_oracle
from evaluation.papers.token_selection.rates import ratio, slope
from evaluation.reporting.blocks import to_markdown
from training.sweep_config import parse_sweep

RATE = "optimizer.learning_rate"
ENVIRONMENT = {
    "commit": "abc",
    "uncommitted_changes": False,
    "hardware": {"cpu": "a processor", "logical_cores": 2, "accelerators": []},
    "versions": {"torch": "2"},
}
TINY = OracleStudy(exponents=((1.0, 2.0),), sizes=(64, 256, 1024), tokens=6, replicates=3, validation=400, levels=7.0)


# ---- slopes and ratios ----------------------------------------------------------------------------------------------


def test_the_slope_of_a_power_is_the_power() -> None:
    sizes = [100, 400, 1600]
    errors = [[factor * n**-0.75 for n in sizes] for factor in (1.0, 3.0, 0.2)]
    found = slope(sizes, errors)
    assert (found.value, *found.interval) == pytest.approx((-0.75,) * 3)
    errors = np.random.default_rng(0).random((5, 3))
    assert slope(sizes, errors).value == pytest.approx(log_log_slope(np.array(sizes), errors.mean(axis=0)))


def test_the_interval_covers_the_slope_about_as_often_as_it_says() -> None:
    """Twelve replicates with noise of their own: 95 % of 60 intervals is 57; a bootstrap of twelve is rather short."""
    rng, sizes = np.random.default_rng(0), np.array([128, 512, 2048])
    covered = 0
    for _ in range(60):
        low, high = slope(sizes.tolist(), sizes**-0.5 * np.exp(0.2 * rng.standard_normal((12, 3)))).interval
        covered += low <= -0.5 <= high
    assert 48 <= covered <= 60


def test_the_ratio_is_taken_replicate_by_replicate() -> None:
    found = ratio([0.2, 4.0, 0.06], [0.1, 2.0, 0.03])
    assert (found.value, *found.interval) == pytest.approx((2,) * 3)
    assert ratio([1.0, 4.0], [1.0, 1.0]).value == pytest.approx(2)
    low, high = ttest_1samp(np.log([1.0, 4.0]), 0).confidence_interval(0.95)
    assert ratio([1.0, 4.0], [1.0, 1.0]).interval == pytest.approx((np.exp(low), np.exp(high)))


def test_a_single_replicate_has_no_interval() -> None:
    assert slope([1, 2], [[1.0, 0.5]]).to_dict() == {"value": pytest.approx(-1), "interval": None}


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: slope([1, 2], [[1.0, 0.0]]), "positive"),
        (lambda: slope([1, 2], [[1.0]]), "at least two"),
        (lambda: slope([1], [[1.0]]), "at least two"),
        (lambda: ratio([], []), "positive"),
    ],
)
def test_what_has_no_logarithm_is_refused(compute: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute()


# ---- the oracle -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return json.loads(json.dumps({**run_oracle(TINY), "environment": ENVIRONMENT}))


def test_the_sorting_sieve_learns_at_the_rate_and_the_position_wise_one_does_not(oracle: dict[str, Any]) -> None:
    (case,) = oracle["cases"]
    assert case["theory"] == pytest.approx(-2 / 3)
    assert case["slopes"]["sorting"]["value"] == pytest.approx(case["theory"], abs=0.2)
    sorting, position_wise = (np.mean(case["errors"][name], axis=0) for name in ("sorting", "position_wise"))
    assert (sorting[1:] < sorting[:-1]).all()
    assert sorting[-1] < 0.02
    assert ((position_wise > 0.9) & (position_wise < 1.2)).all()
    assert len(set(oracle["data_hashes"])) == TINY.replicates


def test_the_oracle_is_a_function_of_its_study() -> None:
    study = replace(TINY, sizes=(32, 64), replicates=2, validation=50)
    assert run_oracle(study) == run_oracle(study)


# ---- networks -------------------------------------------------------------------------------------------------------


def run(mixer: str, tokens: int, examples: int, seed: int, rate: float, error: float | None) -> dict[str, Any]:
    """A run as `results.json` has it; its validation error is the worse the lower the rate."""
    worse = 1.0 if rate > 0.001 else 2.0
    result = {
        "parameters": 10,
        "seconds": 36.0,
        "validation": {"mse": error and error * worse},
        "test": {"mse": error},
        "baselines": {"of": "mse", "best_trivial": 1.0},
        "data": {"test_hash": f"hash {seed}"},
        "environment": ENVIRONMENT,
    }
    axes = {MIXER: mixer, TOKENS: tokens, EXAMPLES: examples, RATE: rate}
    return {"name": str(axes), "axes": axes, "seeds": {"run": 0, "data": seed}, "result": result if error else None}


@pytest.fixture
def results() -> dict[str, Any]:
    """Errors are n^-1/2 at the higher rate, twice as large for the SSM, and three times at 64 tokens."""
    runs = [
        run(mixer, tokens, n, seed, rate, factor * (3 if tokens == 64 else 1) * (1 + seed) * n**-0.5 / (rate * 100))
        for mixer, factor in (("ssm", 2), ("transformer", 1))
        for tokens in (16, 64)
        for n in (100, 400)
        for rate in (0.01, 0.001)
        for seed in (1, 0)
    ]
    return {"tuned": [RATE], "runs": runs}


def test_what_the_networks_reach_follows_from_the_results(results: dict[str, Any]) -> None:
    found = network_outcome(results)
    assert found["runs"] == {"finished": 32, "planned": 32}
    cells = {(cell["mixer"], cell["tokens"], cell["examples"]): cell for cell in found["cells"]}
    assert cells["ssm", 16, 100]["mse"] == pytest.approx([0.2, 0.4])
    assert cells["ssm", 16, 100]["tuned"] == {RATE: 0.01}
    assert [entry["value"] for entry in found["slopes"]] == pytest.approx([-0.5] * 4)
    assert [entry["value"] for entry in found["ratios"]] == pytest.approx([2.0] * 4)
    assert [entry["value"] for entry in found["by_tokens"]] == pytest.approx([3.0] * 4)
    assert (found["seeds"], found["data_hashes"]) == ([0, 1], ["hash 0", "hash 1"])


def test_a_point_without_all_its_runs_is_left_out(results: dict[str, Any]) -> None:
    for entry in results["runs"]:
        if entry["axes"] == {MIXER: "ssm", TOKENS: 16, EXAMPLES: 100, RATE: 0.01} and entry["seeds"]["data"] == 1:
            entry["result"] = None
        if entry["axes"][MIXER] == "transformer" and entry["axes"][TOKENS] == 64:
            entry["result"] = None
    found = network_outcome(results)
    cells = {(cell["mixer"], cell["tokens"], cell["examples"]): cell for cell in found["cells"]}
    assert cells["ssm", 16, 100]["tuned"] == {RATE: 0.001}
    assert ("transformer", 64, 100) not in cells
    assert {entry["tokens"] for entry in found["ratios"]} == {16}


@pytest.mark.parametrize(("size", "seeds"), [("small", 4), ("full", 5)])
def test_the_sweep_has_the_axes_that_are_read(size: str, seeds: int) -> None:
    sweep, _ = parse_sweep(["--config", str(regression.config_of(size))])
    assert set(sweep.axes) == {MIXER, TOKENS, EXAMPLES}
    assert set(sweep.axes[MIXER]) == {SSM, TRANSFORMER}
    assert len(sweep.seeds.data) == seeds


def test_before_any_run_there_is_nothing() -> None:
    found = network_outcome({"tuned": [], "runs": []})
    assert (found["cells"], found["slopes"], found["ratios"], found["by_tokens"]) == ([], [], [], [])


# ---- report and command line ----------------------------------------------------------------------------------------


def test_the_report_says_whose_is_what(
    oracle: dict[str, Any], results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = regression_report.save
    monkeypatch.setattr(regression_report, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    (tmp_path / "small").mkdir()
    (tmp_path / "oracle.json").write_text(json.dumps(oracle))
    (tmp_path / "small" / "results.json").write_text(json.dumps(results))
    options = Namespace(part="all", size="small", hours=None, parallel=None, report=True)
    assert regression.main(options, tmp_path) == "finished"
    text = (tmp_path / "small" / "report.md").read_text()
    assert "**The paper:**" in text
    assert "No regression experiment of theirs is known" in text
    assert "32 of 32 runs have finished (seeds of the data 0, 1, 0.3 hours of training in all)." in text
    assert "The interval of the SSM's ratio lies above 1 at 4 of 4 places; without any difference one in forty" in text
    assert "| ssm | 16 | -0.500 [-0.500, -0.500] |" in text
    assert [axes.get_title() for axes in drawn[0].axes][1:] == ["networks, 16 tokens", "networks, 64 tokens"]
    assert (tmp_path / "small" / "figure.png").is_file()
    assert json.loads((tmp_path / "small" / "networks.json").read_text())["runs"]["planned"] == 32


def test_from_a_single_function_nothing_is_concluded(
    oracle: dict[str, Any], results: dict[str, Any], tmp_path: Path
) -> None:
    results["runs"] = [entry for entry in results["runs"] if entry["seeds"]["data"] == 0]
    text = to_markdown("", list(regression_report.report(oracle, network_outcome(results), "small", tmp_path)))
    assert "| ssm | 16 | -0.500 (a single function) |" in text
    assert "lies above 1" not in text


def test_the_oracle_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = OracleStudy(exponents=((1.0,),), sizes=(16, 64), tokens=4, replicates=2, validation=50, levels=4.0)
    monkeypatch.setattr(regression, "environment_facts", lambda: ENVIRONMENT)
    regression.carry_out_oracle(small, tmp_path / "kept" / "oracle.json")
    monkeypatch.setattr(regression, "run_oracle", lambda study: pytest.fail("computed again"))
    regression.carry_out_oracle(small, tmp_path / "kept" / "oracle.json")
    found = json.loads((tmp_path / "kept" / "oracle.json").read_text())
    assert (found["config"]["sizes"], found["seeds"], found["environment"]) == ([16, 64], [0, 1], ENVIRONMENT)


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"oracle\.json cannot be read .*run the study first"):
        regression.main(Namespace(part="all", size="small", report=True), tmp_path)
    with pytest.raises(SystemExit, match=r"regression\.py: error: argument part: invalid choice: 'oracel'"):
        regression.setup(["oracel"])
