"""Launches: the three that work give one result, and those that would run something else are refused."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dsf_models.hub.usage import UsageError
from tests.training.helpers import assert_same_weights, command, final_weights, metrics, tiny_config, train
from training.launch import check_batch_size, check_launcher_settings, check_tracker, processes_asked_for

ACCELERATE = ["accelerate", "launch"]
TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node", "2"]


def test_every_launcher_gives_one_result(tmp_path: Path) -> None:
    here, one, two = (train(tmp_path / "here"), tmp_path / "one", tmp_path / "two")
    for process in [command(ACCELERATE, one), command(TORCHRUN, two)]:
        printed, _ = process.communicate(timeout=180)
        assert process.returncode == 0, printed
    assert "2 process(es) on" in printed
    assert_same_weights(here, one)
    assert metrics(here) == metrics(one)
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


def test_a_run_that_is_killed_resumes_to_the_same_end(tmp_path: Path) -> None:
    changes = {"training__max_steps": 200, "training__checkpoint_every": 20, "model__dropout": 0.1}
    process = command(["python"], tmp_path / "killed", **changes)
    wait_for(tmp_path / "killed" / "checkpoints", "step_000000[2-9]?", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = metrics(tmp_path / "killed")
    assert not (tmp_path / "killed" / "final").exists()
    train(tmp_path / "killed", run__resume=True, **changes)
    train(tmp_path / "whole", **changes)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert before == metrics(tmp_path / "whole")[: len(before)]


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


def test_settings_that_would_do_nothing_are_refused() -> None:
    check_launcher_settings({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "false"}, "bf16")
    with pytest.raises(UsageError, match=r"'bf16' and training\.mixed_precision is 'no'"):
        check_launcher_settings({"ACCELERATE_MIXED_PRECISION": "bf16"}, "no")
    with pytest.raises(UsageError, match="ACCELERATE_USE_FSDP"):
        check_launcher_settings({"ACCELERATE_USE_FSDP": "true"}, "no")


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
