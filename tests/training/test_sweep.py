"""Sweeps: what they may say, the runs they amount to, and whole sweeps of real processes, interrupted and taken up."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from dsf_models import list_architectures
from dsf_models.analysis import count_parameters
from dsf_models.hub.task_record import TaskRecord
from dsf_models.hub.usage import UsageError
from evaluation.state import state_bytes
from tests.training.helpers import ROOT, TINY, assert_same_weights, forget_accelerate, metrics
from tests.training.test_sweep_table import record
from training import sweep as script
from training.config import config_to_dict
from training.sweep_check import check_runs
from training.sweep_config import LEARNING_RATE, Seeds, SweepConfig, parse_sweep
from training.sweep_launch import RayLauncher, fitting, run_environment, visible_gpus
from training.sweep_plan import axis_choices, flat, plan, random_choices, record_of
from training.train import main as train_main

SWEEPS = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if "base" in yaml.safe_load(file.read_text())]
LOG_RANGE = {"from": 1e-4, "to": 1e-1, "points": 9, "scale": "log"}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """Write a tiny base and the file of a sweep over it, and return the latter."""
    sections: dict[str, Any] = {"run": {"output_dir": "unused"}}
    for key, value in TINY.items():
        *parents, name = key.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    (folder / "base.yaml").write_text(yaml.safe_dump(sections))
    content = {
        "base": "base.yaml",
        "output_dir": str(folder / "sweep"),
        "axes": {"model.architecture": ["ssd", "linear_attention"], LEARNING_RATE: [0.01, 0.1]},
        "seeds": {"run": [3]},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def read(folder: Path, *words: str, **changes: Any) -> SweepConfig:
    """The sweep that a file says."""
    return parse_sweep(["--config", str(write_sweep(folder, **changes)), *words])[0]


def names(sweep: SweepConfig) -> list[str]:
    return [run.name for run in plan(sweep)]


# ---- what a sweep says ----------------------------------------------------------------------------------------------


def test_a_log_range_is_the_same_factor_everywhere_and_hits_its_ends() -> None:
    values = [choice.value for choice in axis_choices(LEARNING_RATE, LOG_RANGE)]
    assert (len(values), values[0], values[-1]) == (9, 1e-4, 1e-1)
    assert [b / a for a, b in pairwise(values)] == pytest.approx([10 ** (3 / 8)] * 8, rel=1e-5)


def test_a_linear_range_is_the_same_step_everywhere() -> None:
    content = {"from": 0.0, "to": 1.0, "points": 5, "scale": "linear"}
    assert [choice.value for choice in axis_choices("schedule.final_ratio", content)] == [0, 0.25, 0.5, 0.75, 1]


def test_more_samples_keep_the_earlier_ones_and_fields_have_streams_of_their_own(tmp_path: Path) -> None:
    fields = {
        LEARNING_RATE: {"from": 1e-4, "to": 1e-1, "scale": "log"},
        "optimizer.weight_decay": {"from": 0, "to": 1, "scale": "linear"},
        "model.hidden_size": [8, 16],
    }
    search = read(tmp_path, random={"samples": 200, "fields": fields}, axes={}).random
    samples = [{name: choice.value for name, choice in sample.items()} for sample in random_choices(search)]
    fewer = replace(search, samples=3, fields={k: fields[k] for k in reversed(fields)})
    assert [{name: choice.value for name, choice in sample.items()} for sample in random_choices(fewer)] == samples[:3]
    rates = [sample[LEARNING_RATE] for sample in samples]
    # A third of a log-uniform variable over three decades lies in each of them: 5 standard deviations of 200 draws.
    for decade in (1e-4, 1e-3, 1e-2):
        assert sum(decade <= rate < 10 * decade for rate in rates) == pytest.approx(200 / 3, abs=34)
    assert {sample["model.hidden_size"] for sample in samples} == {8, 16}
    assert random_choices(replace(search, seed=1)) != random_choices(search)


def test_runs_are_the_product_of_axes_samples_and_seeds(tmp_path: Path) -> None:
    small, large = {"model": {"hidden_size": 8}, "model.state_size": 2}, {"model.hidden_size": 16}
    sweep = read(
        tmp_path,
        axes={"size": {"small": small, "large": large}},
        random={"samples": 9, "fields": {"optimizer.weight_decay": [0.0, 0.1]}, "seed": 5},
        seeds={"run": [0, 1], "data": [7]},
        overrides={"training.max_steps": 9},
    )
    runs = {(run.axes["size"], run.axes["optimizer.weight_decay"], run.config.run.seed) for run in plan(sweep)}
    assert len(plan(sweep)) == 2 * 2 * 2
    assert {(size, seed) for size, _, seed in runs} == {(size, seed) for size in ("small", "large") for seed in (0, 1)}
    for run in plan(sweep):
        config = run.config
        assert (config.model["hidden_size"], config.model["state_size"]) == ((8, 2) if "small" in run.name else (16, 4))
        assert (config.task.seed, config.training.max_steps, config.run.threads) == (7, 9, 1)
        assert config.optimizer.weight_decay == run.axes["optimizer.weight_decay"]
        assert Path(config.run.output_dir) == tmp_path / "sweep" / "runs" / run.name


def test_a_value_reaches_the_run_as_it_is(tmp_path: Path) -> None:
    axes = {"training.mixed_precision": ["no", "bf16"], "training.patience": [None, 2], "optimizer.betas": [[0.5, 0.9]]}
    configs = [run.config for run in plan(read(tmp_path, axes=axes, seeds={}))]
    assert [(c.training.mixed_precision, c.training.patience, c.optimizer.betas) for c in configs] == [
        (precision, patience, (0.5, 0.9)) for precision in ("no", "bf16") for patience in (None, 2)
    ]


def test_flat_takes_both_ways_to_write_a_key() -> None:
    assert flat({"model": {"hidden_size": 8}, "task.sizes": {"num_pairs": 2}, "training.max_steps": 3}) == {
        "model.hidden_size": 8,
        "task.sizes.num_pairs": 2,
        "training.max_steps": 3,
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"axs": 3}, "Unknown key 'axs'. Did you mean 'axes'?"),
        ({"base": "none.yaml"}, "base"),
        ({"axes": {LEARNING_RATE: 0.1}}, "axes.optimizer.learning_rate is 0.1: give a list of values, or a range"),
        ({"axes": {LEARNING_RATE: []}}, "axes.optimizer.learning_rate is []"),
        ({"axes": {LEARNING_RATE: LOG_RANGE | {"from": 0}}}, "axes.optimizer.learning_rate.from is 0: a log scale"),
        ({"axes": {LEARNING_RATE: LOG_RANGE | {"from": 1}}}, "from is 1: use less than to (0.1)"),
        ({"axes": {LEARNING_RATE: LOG_RANGE | {"points": 1}}}, "points is 1: use an integer of at least 2"),
        ({"axes": {LEARNING_RATE: LOG_RANGE | {"scale": "ln"}}}, 'scale is \'ln\': use "log" or "linear"'),
        ({"axes": {LEARNING_RATE: LOG_RANGE | {"point": 3}}}, "Did you mean 'points'?"),
        ({"axes": {LEARNING_RATE: {"from": 1, "to": 2}}}, "axes.optimizer.learning_rate.points is missing"),
        ({"axes": {"optimizer.learning_rat": [1]}}, "Did you mean 'optimizer.learning_rate'?"),
        ({"axes": {LEARNING_RATE: [0.1, -1]}}, "'learning_rate_-1' is refused: optimizer.learning_rate is -1"),
        ({"axes": {LEARNING_RATE: [0.1, 0.1]}}, "would be named 'learning_rate_0.1-seed_3'"),
        ({"axes": {"hidden_size": [8]}}, "axes.hidden_size is [8]: a name without a dot stands for several fields"),
        ({"axes": {"size": {644: {"task.seed": 1}}}}, "is 644: put it in quotes"),
        ({"axes": {"run.seed": [1]}}, "'run.seed': list its values in seeds.run"),
        ({"axes": {"run.output_dir": ["x"]}}, "'run.output_dir': the sweep sets it"),
        ({"overrides": {"seed": 1}}, "'seed': write section.field"),
        ({"overrides": {"training.max_step": 1}}, "Did you mean 'training.max_steps'?"),
        ({"seeds": {"run": []}}, "seeds.run is []"),
        ({"seeds": {"run": [1, 1]}}, "seeds.run is [1, 1]: give each seed once"),
        ({"random": {"samples": -1, "fields": {LEARNING_RATE: [1]}}}, "random.samples is -1"),
        ({"random": {"samples": 3}}, "random.fields is {}: name at least one field"),
        ({"random": {"fields": {LEARNING_RATE: [1]}}}, "random.samples is 0: use at least 1"),
        ({"random": {"samples": 1, "fields": {LEARNING_RATE: [1]}}}, "is in axes and in random.fields"),
        (
            {"random": {"samples": 1, "fields": {"model.state_size": LOG_RANGE}}},
            "random.fields.model.state_size.points",
        ),
        ({"launcher": "slurm"}, "launcher"),
        ({"parallel": 0}, "parallel is 0"),
        ({"hours": 0}, "hours is 0"),
        ({"output_dir": ""}, "output_dir is ''"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(read(tmp_path, **changes))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"overrides": {"model.hiden_size": 8}}, "hiden_size"),
        ({"axes": {"model.architecture": ["ssd", "sdd"]}}, "Run 'sdd-seed_3' is refused: model.architecture is 'sdd'"),
        ({"axes": {"task.sizes.num_pairs": [2, 5]}}, "Run 'num_pairs_5-seed_3' is refused"),
        ({"axes": {"model.num_heads": [2, 5]}}, "Run 'num_heads_5-seed_3' is refused"),
    ],
)
def test_a_run_that_cannot_be_built_is_found_before_any_starts(tmp_path: Path, changes: dict, named: str) -> None:
    sweep = read(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        script.main(sweep, "run")
    assert named in str(error.value)
    assert not sweep.folder.exists()


def test_a_dry_run_prints_every_configuration_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read(tmp_path)
    assert script.main(sweep, "dry-run") == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == [config_to_dict(run.config) for run in plan(sweep)]
    assert not sweep.folder.exists()


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_both_ends_of_every_sweep_can_be_built(file: Path) -> None:
    sweep, _ = parse_sweep(["--config", str(file)])
    one_seed = replace(sweep, seeds=Seeds())
    for end in (0, -1):
        axes = {name: one_value(name, content, end) for name, content in sweep.axes.items()}
        check_runs(plan(replace(one_seed, axes=axes)))


def one_value(name: str, content: Any, end: int) -> Any:
    """The axis with its first or last value alone; but all models."""
    if name in ("model", "model.architecture"):
        return content
    choice = axis_choices(name, content)[end]
    return [choice.value] if "." in name else {choice.value: dict(choice.settings)}


NUMBERS_OF_RUNS = {
    "130m_all": 16,
    "370m_all": 16,
    "lr_64_4": 90,
    "mqar_small": 18,
    "listops_small": 18,
    "text_small": 18,
    "pixels_small": 18,
    "mqar_full": 24,
    "listops_full": 24,
    "text_full": 24,
    "pixels_full": 24,
    "dsf_grid": 1280,
    "dsf_grid_qlstm": 96,
    "dsf_corrected": 14_400,
    "heat_maps_small": 90,
    "heat_maps_full": 3600,
    "state_expansion_small": 60,
    "state_expansion_full": 720,
    "normalisation_small": 60,
    "normalisation_full": 900,
    "normalisation_as_released_small": 60,
    "normalisation_as_released_full": 400,
    "reversed_sigmoid_small": 60,
    "reversed_sigmoid_full": 720,
    "normaliser_small": 48,
    "normaliser_full": 360,
    "copying_small": 48,
    "copying_full": 1680,
    "recall_small": 36,
    "recall_full": 1260,
    "regression_small": 64,
    "regression_full": 1440,
}


@pytest.mark.slow
@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_every_sweep_can_be_built(file: Path) -> None:
    sweep, _ = parse_sweep(["--config", str(file)])
    runs = plan(sweep)
    assert len(runs) == NUMBERS_OF_RUNS[file.stem]
    check_runs(runs)


# ---- sharing out the machine ----------------------------------------------------------------------------------------


def test_threads_never_exceed_the_cores() -> None:
    assert [fitting(None, threads, 8, 0) for threads in (1, 3, 8, 16)] == [8, 2, 1, 1]
    assert fitting(2, 4, 8, 0) == 2
    with pytest.raises(UsageError, match=r"parallel is 3 and run\.threads 4, which need 12 cores of 8: use parallel 2"):
        fitting(3, 4, 8, 0)


def test_each_run_has_a_gpu_of_its_own() -> None:
    assert fitting(None, 1, 8, 4) == 4
    with pytest.raises(UsageError, match="parallel is 5, but there are 4 GPUs"):
        fitting(5, 1, 8, 4)
    assert run_environment(2, "3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert set(run_environment(2, None).values()) == {"2"}
    assert visible_gpus({}) == [str(i) for i in range(len(visible_gpus({})))]


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="launcher is 'ray', which is not installed: pip install ray"):
        RayLauncher(None, 1)


# ---- whole sweeps ---------------------------------------------------------------------------------------------------


def start(file: Path, *words: str) -> subprocess.Popen:
    """Start a sweep as a process of its own."""
    command = [sys.executable, str(ROOT / "training" / "sweep.py"), "--config", str(file), *words]
    return subprocess.Popen(
        command, cwd=file.parent, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The results of a sweep without what no two launches share: times, folders, and where they ran."""
    runs = json.loads((folder / "results.json").read_text())["runs"]
    for run in runs:
        for key in ("seconds", "environment"):
            run["result"].pop(key)
        run["result"]["config"].pop("run")
    return runs


def test_the_runs_of_a_killed_sweep_keep_its_folder_until_they_end(tmp_path: Path) -> None:
    with script.only_one_sweep(tmp_path) as lock:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    with pytest.raises(UsageError, match="another sweep is at work"), script.only_one_sweep(tmp_path):
        pass
    orphan.kill()
    orphan.wait()
    with script.only_one_sweep(tmp_path):
        pass


LONG = {"training.max_steps": 200, "training.checkpoint_every": 20, "training.log_every": 20, "training.eval_every": 20}


def test_kept_results_finish_runs_whose_folders_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read(tmp_path)
    runs = plan(sweep)
    result = record("ssd", 0.01, seed=3, validation=0.9).result
    sweep.folder.mkdir()
    (sweep.folder / "sweep.json").write_text(json.dumps(record_of(sweep, runs)))
    kept = [{"name": run.name, "axes": dict(run.axes), "seeds": {}, "result": result} for run in runs]
    (sweep.folder / "results.json").write_text(json.dumps({"tuned": sweep.tuned, "runs": kept}))
    assert script.main(sweep, "run") == 0
    assert "4 finished, 0 failed, 0 left of 4 runs." in capsys.readouterr().out
    assert not any((sweep.folder / "runs").iterdir())
    assert [row["best"]["finished"] for row in json.loads((sweep.folder / "table.json").read_text())] == [1, 1]

    # An emptied folder changes nothing; but a run that was begun again is not finished until its folder says so.
    checkpoints = sweep.folder / "runs" / runs[0].name / "checkpoints"
    checkpoints.mkdir(parents=True)
    assert script.unfinished(sweep.folder, [run.name for run in runs]) == []
    (checkpoints / "step_00000002").mkdir()
    assert script.unfinished(sweep.folder, [run.name for run in runs]) == [runs[0].name]


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ({"accuracy": 0.5, "loss": 1.0}, "50.00 %"),
        ({"mse": 0.25, "loss": 0.25}, "loss 0.25"),
        ({"mse": None, "loss": None}, "no finite loss"),
    ],
)
def test_a_finished_run_in_a_few_words(tmp_path: Path, test: dict[str, float | None], told: str) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"test": test, "steps": 9, "seconds": 3.2}))
    assert script.outcome(tmp_path, "a") == f"{told} after 9 steps, 3 s"


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_to_the_end_of_an_uninterrupted_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read(tmp_path, axes={LEARNING_RATE: [0.01]}, overrides=LONG)
    (run,) = plan(sweep)
    folder = Path(run.config.run.output_dir)
    stopper = Thread(target=terminate_after, args=(folder / "checkpoints", "step_000000[2-9]?"))
    stopper.start()
    assert script.main(sweep, "run") == 3
    stopper.join()
    before = metrics(folder)
    assert 0 < len(before) < 20
    assert "0 finished, 0 failed, 1 left of 1 runs." in capsys.readouterr().out

    assert script.main(sweep, "run") == 0
    whole = tmp_path / "whole"
    forget_accelerate()
    train_main(replace(run.config, run=replace(run.config.run, output_dir=str(whole))))
    assert_same_weights(folder, whole)
    assert metrics(folder) == metrics(whole)
    result, other = (json.loads((path / "result.json").read_text()) for path in (folder, whole))
    for key in ("output_dir", "resume"):
        assert result["config"]["run"].pop(key) != other["config"]["run"].pop(key)
    for key in ("seconds", "environment"):
        assert result.pop(key)
        assert other.pop(key)
    assert result == other
    check_result(result, folder)

    # Finished: nothing is started again, and the table needs the files alone.
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert script.main(sweep, "run") == 0
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    table = (tmp_path / "sweep" / "table.md").read_text()
    (tmp_path / "sweep" / "table.md").unlink()
    assert script.main(sweep, "table") == 0
    assert (tmp_path / "sweep" / "table.md").read_text() == table
    assert (tmp_path / "sweep" / "learning_rates.png").read_bytes().startswith(b"\x89PNG")

    # It may grow, and may not change.
    script.main(read(tmp_path, axes={LEARNING_RATE: [0.01, 0.02]}, overrides=LONG), "dry-run")
    for changes, named in (
        ({"overrides": LONG | {"training.batch_size": 4}}, r"training\.batch_size: 8 -> 4"),
        ({"axes": {LEARNING_RATE: [0.02]}}, "learning_rate_0.01-seed_3 is gone"),
    ):
        with pytest.raises(UsageError, match=named):
            script.main(read(tmp_path, **{"axes": {LEARNING_RATE: [0.01]}, "overrides": LONG} | changes), "run")


def terminate_after(folder: Path, pattern: str) -> None:
    """Send this process SIGTERM once a file is there."""
    while not list(folder.glob(pattern)):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def check_result(result: dict[str, Any], folder: Path) -> None:
    """The result says what the other files of the run say."""
    (test,) = metrics(folder, "test")
    assert result["best_step"] == test.pop("selected_step")
    (best,) = [record for record in metrics(folder, "validation") if record["step"] == result["best_step"]]
    assert result["test"].items() <= test.items()
    assert result["validation"].items() <= best.items()
    record = TaskRecord.load(folder / "final")
    assert result["data"] == {"name": "mqar", "sizes": record.sizes, "test_hash": record.data_hash["test"]}
    assert result["baselines"].items() >= {key: record.description[key] for key in ("chance", "best_trivial")}.items()
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert result["parameters"] == model.num_parameters()
    assert result["state_bytes"] == state_bytes(model, torch.zeros(1, 16, dtype=torch.long))
    assert (result["seeds"], result["examples_seen"]) == ({"run": 3, "data": 0}, 8 * result["steps"])


@pytest.mark.slow
def test_a_sweep_that_is_killed_in_the_middle_equals_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    process = start(write_sweep(tmp_path / "whole", overrides=LONG))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "4 finished, 0 failed, 0 left of 4 runs." in printed

    (tmp_path / "killed").mkdir()
    file = write_sweep(tmp_path / "killed", overrides=LONG)
    runs = tmp_path / "killed" / "sweep" / "runs"
    process = start(file, "--parallel", "2")
    wait_for(lambda: list(runs.glob("*/checkpoints/step_000000[4-9]?")), process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 3, printed
    begun = {path.name for path in runs.iterdir()}
    assert 0 < len(begun) <= 2

    # Then without a chance to tell its runs, which hold the lock until they end.
    process = start(file, "--parallel", "2")
    wait_for(lambda: len(list(runs.glob("*/checkpoints/step_000000[4-9]?"))) > 1, process)
    process.kill()
    process.communicate()
    while (process := start(file)) and (printed := process.communicate(timeout=300)[0]) and process.returncode:
        assert "another sweep is at work" in printed, printed
        time.sleep(1)
    assert numbers(tmp_path / "killed" / "sweep") == numbers(tmp_path / "whole" / "sweep")
    tables = [json.loads((tmp_path / name / "sweep" / "table.json").read_text()) for name in ("killed", "whole")]
    for row in (row for table in tables for row in table):
        for point in [*row["points"], row["best"]]:
            point.pop("seconds")
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_failure_is_recorded_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    overrides = {"training.max_grad_norm": None, "training.max_steps": 20}
    sweep = read(tmp_path, axes={LEARNING_RATE: [1.0e30, 0.01]}, overrides=overrides)
    assert script.main(sweep, "run") == 1
    bad, good = plan(sweep)
    failures = json.loads((tmp_path / "sweep" / "failures.json").read_text())
    assert failures.keys() == {bad.name}
    assert failures[bad.name]["exit_code"] == 1
    assert "lower optimizer.learning_rate" in failures[bad.name]["log_tail"][-1]
    assert (Path(good.config.run.output_dir) / "final").is_dir()
    assert "1 runs have no result" in (tmp_path / "sweep" / "table.md").read_text()


@pytest.mark.slow
def test_a_budget_of_time_stops_what_runs_so_that_it_goes_on(tmp_path: Path) -> None:
    overrides = LONG | {"training.max_steps": 100_000}
    sweep = read(tmp_path, axes={LEARNING_RATE: [0.01, 0.02]}, overrides=overrides, hours=12 / 3600, parallel=1)
    started = time.monotonic()
    assert script.main(sweep, "run") == 3
    assert time.monotonic() - started >= 12
    first, second = (script.log_of(sweep.folder, run.name) for run in plan(sweep))
    assert first.exists()
    assert not second.exists()


@pytest.mark.slow
def test_ray_runs_the_same_sweep(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process = start(write_sweep(tmp_path, axes={LEARNING_RATE: [0.01, 0.02]}, launcher="ray"))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "2 finished, 0 failed, 0 left of 2 runs." in printed


@pytest.mark.parametrize("size", ["130m", "370m"])
def test_recipes_of_all_architectures_have_the_same_number_of_parameters(size: str) -> None:
    runs = plan(parse_sweep(["--config", str(ROOT / "configs" / "language_modeling" / f"{size}_all.yaml")])[0])
    assert {run.config.model["architecture"] for run in runs} == set(list_architectures())
    for run in runs:
        fields = {name: value for name, value in run.config.model.items() if name != "architecture"}
        config = AutoConfig.for_model(f"dsf_{run.config.model['architecture']}", vocab_size=50257, **fields)
        assert count_parameters(config).total == pytest.approx(1e6 * int(size.removesuffix("m")), rel=0.005)
