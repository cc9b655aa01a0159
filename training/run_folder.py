"""The folder of a run: one run each, never half a run, never somebody else's files.

config.yaml         the resolved configuration
environment.json    versions, commit, hardware and threads of every launch
metrics.jsonl       every recorded number
checkpoints/        what a resumed run starts from, and the selected weights
result.json         what the run was and what it reached
final/              the model to use and publish
"""

import json
from pathlib import Path

from dsf_models.hub.files import remove_folder, write_json, write_text
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import UsageError
from training.config import TrainConfig, config_to_dict, config_to_yaml, differences, read_yaml

_CONFIG = "config.yaml"
_ENVIRONMENT = "environment.json"


def check_run_folder(config: TrainConfig) -> None:
    """Refuse an output folder that this run may not write to; nothing is changed.

    Raises:
        UsageError: for a folder that holds something else than a run; for one that holds a run, unless it is to be
            resumed or overwritten; for a resumed run whose configuration has changed.
    """
    folder = Path(config.run.output_dir)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _CONFIG).is_file():
        raise UsageError(
            f"run.output_dir is {str(folder)!r}, which holds something that is not a run: give a new folder."
        )
    if config.run.resume:
        _check_unchanged(config, folder)
    elif not config.run.overwrite:
        raise UsageError(
            f"run.output_dir is {str(folder)!r}, which already holds a run: continue it with --run.resume true, "
            "delete it and start again with --run.overwrite true, or give another folder."
        )


def prepare_run_folder(config: TrainConfig, num_processes: int) -> Path:
    """Create the folder of a new run, or take up that of an old one, and record this launch; for one process only.

    Args:
        config: a configuration that `check_run_folder` has let pass.
        num_processes: recorded with the facts about the environment.

    Returns:
        The folder.
    """
    folder = Path(config.run.output_dir)
    if config.run.overwrite:
        remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _CONFIG, config_to_yaml(config))
    launch = {"num_processes": num_processes, **environment_facts()}
    write_json(folder / _ENVIRONMENT, {"launches": [*_earlier_launches(folder), launch]})
    return folder


def _earlier_launches(folder: Path) -> list[dict]:
    file = folder / _ENVIRONMENT
    return json.loads(file.read_text(encoding="utf-8"))["launches"] if file.exists() else []


def _check_unchanged(config: TrainConfig, folder: Path) -> None:
    old, new = read_yaml(folder / _CONFIG), config_to_dict(config)
    # The folder may have been moved, and the tracker has no influence on the run.
    for content in (old, new):
        content.pop("tracker", None)
        content["run"] = {name: content["run"].get(name) for name in ("seed", "threads")}
    if changed := differences(old, new):
        raise UsageError(
            f"run.resume continues the run in {str(folder)!r} as it was begun, but these fields differ: "
            f"{'; '.join(changed)}. Put them back, or start another run in another folder."
        )
