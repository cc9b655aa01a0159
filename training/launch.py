"""Starting Accelerate so that the run is the one that was asked for, or none.

Several launches run something else without a word: `accelerate launch --cpu --num_processes 2` runs one process, FSDP
and fp16 do nothing on a CPU, precision and compiler of the launcher are overruled by the script. Each is refused here.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from dsf_models.hub.usage import UsageError, closest
from training.config import TrainConfig, TrainingConfig

_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_SIZE_VARIABLES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
_KEPT_WORK: list[torch.distributed.Work] = []


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Start Accelerate on this process's device, with the precision and tracker of the configuration.

    Raises:
        UsageError: where the launch asked for something that this run would not be, and where the precision, the
            tracker or the batch size does not fit.
    """
    check_tracker(config.tracker.name)
    on_cpu = not torch.accelerator.is_available()
    check_launcher_settings(os.environ, config.training, on_cpu)
    check_devices(os.environ, 0 if on_cpu else torch.accelerator.device_count())
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=config.training.mixed_precision,
        log_with=None if config.tracker.name == "none" else config.tracker.name,
        project_config=ProjectConfiguration(config.run.output_dir, str(Path(config.run.output_dir) / "tracker")),
    )
    check_process_count(accelerator.num_processes, processes_asked_for(os.environ, _command_line_of_parent()))
    if config.training.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError('training.mixed_precision is "fp16", which a CPU does not run: use "bf16" or "no".')
    check_batch_size(config, accelerator.num_processes)
    return accelerator


def end(accelerator: Accelerator) -> None:
    """Wait for all processes, then close the trackers and the process group.

    A Gloo thread needs the interpreter's lock to free the last work that it did. The group's destructor holds that lock
    while it waits for the thread: unless the work is kept, as here, the two can wait for each other for ever.
    """
    if torch.distributed.is_initialized():
        barrier = torch.distributed.barrier(async_op=True)
        barrier.wait()
        _KEPT_WORK.append(barrier)
    accelerator.end_training()


def check_tracker(name: str) -> None:
    """Refuse a tracker that Accelerate does not know, or would drop in silence because its package is missing."""
    if name != "none" and name not in LOGGER_TYPE_TO_CLASS:
        raise UsageError(
            f"tracker.name is {name!r}, which is no tracker. {closest(name, ['none', *LOGGER_TYPE_TO_CLASS])}"
        )
    if name != "none" and name not in map(str, get_available_trackers()):
        raise UsageError(f'tracker.name is {name!r}, whose package is not installed: install it, or use "none".')


def check_launcher_settings(environment: Mapping[str, str], training: TrainingConfig, on_cpu: bool) -> None:
    """Refuse settings of `accelerate launch` that this script would not follow.

    Args:
        environment: the environment variables, through which the launcher passes its settings on.
        training: the run's own settings.
        on_cpu: whether there is no accelerator.
    """
    found = {name: value.lower() for name, value in environment.items()}
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if found.get(f"ACCELERATE_USE_{name}", "false") == "true":
            raise UsageError(f"The launcher asks for {name}, which this script does not use: launch with DDP or FSDP2.")
    if found.get("ACCELERATE_USE_FSDP", "false") == "true":
        _check_fsdp(found, on_cpu)
    launched = found.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", training.mixed_precision):
        raise UsageError(
            f"The launcher asks for mixed precision {launched!r} and training.mixed_precision is "
            f"{training.mixed_precision!r}: give --training.mixed_precision {launched}, or launch without "
            "--mixed_precision."
        )
    if found.get("ACCELERATE_DYNAMO_BACKEND", "no") != "no":
        raise UsageError("The launcher asks for a compiler (dynamo_backend): give --training.compile true instead.")
    parts, own = found.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"), training.gradient_accumulation_steps
    if parts not in ("1", str(own)):
        raise UsageError(
            f"The launcher asks for gradient_accumulation_steps {parts} and training.gradient_accumulation_steps is "
            f"{own}: give it there alone."
        )


def _check_fsdp(found: Mapping[str, str], on_cpu: bool) -> None:
    if on_cpu:
        raise UsageError(
            "The launcher asks for FSDP, which does nothing on a CPU, where every process holds the whole model: "
            "launch without it."
        )
    if found.get("FSDP_VERSION", "1") != "2":
        raise UsageError("The launcher asks for the first version of FSDP: set fsdp_version: 2 in its configuration.")
    if found.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true":
        raise UsageError(
            "The launcher asks for fsdp_activation_checkpointing: give --training.activation_checkpointing true in its "
            "place."
        )


def check_devices(environment: Mapping[str, str], devices: int) -> None:
    """Refuse more processes on this machine than it has accelerators, which would fail one by one.

    Args:
        environment: launchers tell each process how many there are on its machine.
        devices: accelerators of this machine; 0 where all run on the CPU.
    """
    processes = max((int(environment[name]) for name in _LOCAL_SIZE_VARIABLES if name in environment), default=1)
    if 0 < devices < processes:
        raise UsageError(
            f"The launch started {processes} processes on a machine with {devices} accelerator(s): start at most "
            f"{devices}, or hide the accelerators (CUDA_VISIBLE_DEVICES=) to run on the CPU."
        )


def check_process_count(running: int, asked_for: int) -> None:
    """Refuse a launch that asked for several processes and got another number."""
    if running != asked_for:
        raise UsageError(
            f"The launch asked for {asked_for} processes and got {running} (without GPUs, `accelerate launch` starts "
            f"one whatever it is told). Use: torchrun --nproc_per_node {asked_for} training/train.py …"
        )


def processes_asked_for(environment: Mapping[str, str], parent: Sequence[str]) -> int:
    """The number of processes that whoever launched this one asked for.

    Args:
        environment: a launcher that starts several processes tells each of them their number.
        parent: command line of the parent process; that of `accelerate launch` is read with its own parser, its
            configuration file included.

    Returns:
        The number over all machines, at least 1.
    """
    told = max((int(environment[name]) for name in _WORLD_SIZE_VARIABLES if name in environment), default=1)
    arguments = _arguments_of_accelerate_launch(parent)
    if told > 1 or arguments is None:
        return told
    launch = launch_command_parser().parse_args(arguments)
    asked = launch.num_processes
    if asked is None and (launch.config_file or Path(default_config_file).is_file()):
        asked = load_config_from_file(launch.config_file).num_processes
    return max(asked or 1, launch.num_machines or 1)


def check_batch_size(config: TrainConfig, num_processes: int) -> None:
    """Refuse a batch that cannot be shared out equally."""
    size, parts = config.training.batch_size, config.training.gradient_accumulation_steps
    if size % (num_processes * parts):
        raise UsageError(
            f"training.batch_size is {size}, which {num_processes} processes with training.gradient_accumulation_steps "
            f"{parts} cannot share equally: use a multiple of {num_processes * parts}."
        )


def _arguments_of_accelerate_launch(command_line: Sequence[str]) -> list[str] | None:
    """What follows `accelerate launch`, `accelerate-launch` or `python -m accelerate.commands.launch`, if it is one."""
    for i, word in enumerate(command_line[:4]):
        name = Path(word).name.removesuffix(".exe")
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return list(command_line[i + 1 :])
        if name == "accelerate" and list(command_line[i + 1 : i + 2]) == ["launch"]:
            return list(command_line[i + 2 :])
    return None


def _command_line_of_parent() -> list[str]:
    try:
        parent = psutil.Process().parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []
