"""Launches: the three that work give one result, and those that would run something else are refused."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from dsf_models.hub.usage import UsageError
from tests.training.helpers import ROOT, assert_same_weights, command, final_weights, metrics, tiny_config, train
from training.config import TrainingConfig
from training.launch import check_batch_size, check_devices, check_launcher_settings, check_tracker, processes_asked_for

ACCELERATE = ["accelerate", "launch"]
TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node", "2"]


def test_every_launcher_gives_one_result(tmp_path: Path) -> None:
    here, one, two = (train(tmp_path / "here"), tmp_path / "one", tmp_path / "two")
    two_by_file = [*ACCELERATE, "--config_file", str(ROOT / "configs" / "accelerate" / "cpu_2.yaml")]
    for process in [command(ACCELERATE, one), command(TORCHRUN, two), command(two_by_file, tmp_path / "again")]:
        printed, _ = process.communicate(timeout=180)
        assert process.returncode == 0, printed
    assert "2 process(es) on" in printed
    assert_same_weights(here, one)
    assert metrics(here) == metrics(one)
    assert_same_weights(two, tmp_path / "again")
    for record, other in zip(metrics(here), metrics(two), strict=True):
        assert (record.pop("split"), record.pop("step")) == (other.pop("split"), other.pop("step"))
        assert record == pytest.approx(other, rel=1e-5)
    for name, weight in final_weights(here).items():
        torch.testing.assert_close(final_weights(two)[name], weight, rtol=1e-4, atol=1e-6)


def test_a_launch_that_gets_one_process_instead_of_two_is_refused(tmp_path: Path) -> None:
    process = command([*ACCELERATE, "--cpu", "--num_processes", "2"], tmp_path / "run")
    printed, _ = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "asked for 2 processes and got 1" in printed
    assert "torchrun --nproc_per_node 2 training/train.py" in printed
    assert list(tmp_path.iterdir()) == []


LONG = {"training__max_steps": 200, "training__checkpoint_every": 20, "model__dropout": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed."""
    return train(tmp_path_factory.mktemp("whole") / "run", **LONG)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=lambda by: by.name)
def test_a_run_that_is_killed_resumes_to_the_same_end(whole: Path, tmp_path: Path, by: signal.Signals) -> None:
    process = command(["python"], tmp_path / "run", **LONG)
    wait_for(tmp_path / "run" / "checkpoints", "step_000000[2-9]?", process)
    os.kill(process.pid, by)
    printed, _ = process.communicate()
    before = metrics(tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()
    if by == signal.SIGTERM:
        assert process.returncode == 143, printed
        step = before[-1]["step"]
        assert f"Asked to end behind step {step}" in printed
        assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").is_dir()
    train(tmp_path / "run", run__resume=True, **LONG)
    assert_same_weights(tmp_path / "run", whole)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert before == metrics(whole)[: len(before)]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait until a file appears that a process is to write."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


# ---- what the parent's command line says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parent", "asked"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 2 training/train.py", 2),
        ("python /bin/accelerate launch --num-processes=3 train.py --config x.yaml", 3),
        ("/bin/accelerate-launch --num_processes 2 train.py", 2),
        ("python -m accelerate.commands.launch --num_processes 2 train.py", 2),
        ("python accelerate launch --num_machines 2 train.py", 2),
        ("python accelerate launch train.py --num_processes 2", 1),
        ("python accelerate launch train.py", 1),
        ("python accelerate test --num_processes 2", 1),
        ("bash -c accelerate launch --num_processes 2 train.py", 1),
        ("", 1),
    ],
)
def test_accelerates_command_line_is_understood(parent: str, asked: int) -> None:
    words = parent.split() if not parent.startswith("bash") else ["bash", "-c", parent.removeprefix("bash -c ")]
    assert processes_asked_for({}, words) == asked


def test_accelerates_configuration_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 4\nuse_cpu: true\n"
    )
    launch = ["accelerate", "launch", "--config_file", str(file)]
    assert processes_asked_for({}, [*launch, "train.py"]) == 4
    assert processes_asked_for({}, [*launch, "--num_processes", "1", "train.py"]) == 1


def test_a_real_launcher_tells_its_processes_their_number() -> None:
    assert processes_asked_for({"WORLD_SIZE": "2"}, ["torchrun", "train.py"]) == 2
    assert processes_asked_for({"OMPI_COMM_WORLD_SIZE": "8"}, ["mpirun", "train.py"]) == 8


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MIXED_PRECISION": "bf16"}, r"'bf16' and training\.mixed_precision is 'no'"),
        ({"USE_FSDP": "true"}, "FSDP, which does nothing on a CPU"),
        ({"USE_DEEPSPEED": "true"}, "DEEPSPEED, which this script does not use"),
        ({"DYNAMO_BACKEND": "INDUCTOR"}, r"give --training\.compile true"),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, r"steps 4 and training\.gradient_accumulation_steps is 2"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(variables: dict[str, str], message: str) -> None:
    environment = {f"ACCELERATE_{name}": value for name, value in variables.items()}
    with pytest.raises(UsageError, match=message):
        check_launcher_settings(environment, TrainingConfig(gradient_accumulation_steps=2), on_cpu=True)


def test_fsdp_of_the_second_version_is_taken_on_gpus() -> None:
    training = TrainingConfig(mixed_precision="bf16")
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}
    check_launcher_settings(fsdp, training, on_cpu=False)
    with pytest.raises(UsageError, match="fsdp_version: 2"):
        check_launcher_settings(fsdp | {"FSDP_VERSION": "1"}, training, on_cpu=False)
    with pytest.raises(UsageError, match=r"--training\.activation_checkpointing true"):
        check_launcher_settings(fsdp | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, training, on_cpu=False)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerates_configuration_files_are_ones_that_this_script_follows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as can be seen without the GPUs: through Accelerate's own parser, to what it tells its processes."""
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    )
    settings = load_config_from_file(str(file))
    told = (
        prepare_multi_gpu_env(arguments)
        if settings.num_processes > 1
        else prepare_simple_launcher_cmd_env(arguments)[1]
    )
    training = TrainingConfig(mixed_precision=settings.mixed_precision)
    check_launcher_settings(told, training, on_cpu=False)
    assert (
        processes_asked_for({}, ["accelerate", "launch", "--config_file", str(file), "train.py"])
        == settings.num_processes
    )
    assert ("fsdp" in file.stem) == (told.get("ACCELERATE_USE_FSDP") == "true")
    assert told.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "DSFBlock") == "DSFBlock"


def test_more_processes_than_accelerators_are_refused() -> None:
    check_devices({"LOCAL_WORLD_SIZE": "2"}, devices=2)
    check_devices({"LOCAL_WORLD_SIZE": "2"}, devices=0)
    check_devices({}, devices=1)
    with pytest.raises(UsageError, match=r"4 processes on a machine with 2 accelerator\(s\): start at most 2"):
        check_devices({"LOCAL_WORLD_SIZE": "4"}, devices=2)


def test_a_batch_must_divide(tmp_path: Path) -> None:
    check_batch_size(tiny_config(tmp_path), 4)
    with pytest.raises(UsageError, match=r"training\.batch_size is 8.*gradient_accumulation_steps 2.*multiple of 6"):
        check_batch_size(tiny_config(tmp_path, training__gradient_accumulation_steps=2), 3)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("tensorboard")
    check_tracker("none")
    monkeypatch.setattr("training.launch.get_available_trackers", list)
    with pytest.raises(UsageError, match="'tensorboard', whose package is not installed"):
        check_tracker("tensorboard")
