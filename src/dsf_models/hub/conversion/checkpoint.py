"""Converting a checkpoint: safetensors from a folder or the Hub, translated, into a new folder whole or not at all.

No pickle is opened and no code from the checkpoint is run: only the files named here are read, or even downloaded.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ...backbone import DSFConfig
from ..files import new_folder
from ..usage import UsageError
from .family import Family

__all__ = ["CARRIED_OVER", "convert", "load_converted", "read_config", "source_folder"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
CARRIED_OVER = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that belong to a model whatever its architecture."""


def source_folder(source: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: the one named, or a copy of the Hub's repository of that name.

    Raises:
        UsageError: there is no such folder, and no such repository can be had.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    wanted = ["config.json", "*.safetensors", _INDEX, *CARRIED_OVER]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise UsageError(f"source={source!r}: no such folder, and no name of a repository on the Hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"source={source!r}: no such folder, and the Hub does not give it out: {reason}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a checkpoint folder; its class is always an installed one.

    Raises:
        UsageError: config.json is missing or not understood.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder / 'config.json'} does not exist: give the folder of a saved model.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint folder, whole or in shards, from safetensors files alone.

    Raises:
        UsageError: there are none, or a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            weights |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} is damaged or missing ({error}): copy or download it again.") from error
    return weights


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise UsageError(
            f"{folder} holds no {_WEIGHTS}: pickled weights are not loaded, since unpickling can run foreign code; "
            "save the model with save_pretrained first."
        )
    try:
        names = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{folder / _INDEX} is damaged: copy or download it again.") from error
    return [folder / Path(name).name for name in sorted(names)]


def convert(source: Path, target: Path, families: Iterable[Family], to_transformers: bool = False) -> Family:
    """Convert a checkpoint folder into a new one.

    Args:
        source: folder of the checkpoint.
        target: folder to make; it must not exist yet.
        families: those to choose from.
        to_transformers: from an architecture here to a model of transformers, instead of the other way.

    Returns:
        The family that the checkpoint belongs to.

    Raises:
        UsageError: the model cannot be converted, or the target exists; nothing is written then.
    """
    if target.exists():
        raise UsageError(f"target={str(target)!r} exists: give the name of a new folder.")
    family, converted, weights = _translated(source, families, to_transformers)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as folder:
        save_torch_state_dict(weights, folder, metadata={"format": "pt"})
        converted.save_pretrained(folder)
        for name in CARRIED_OVER:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    return family


def load_converted(source: Path, families: Iterable[Family]) -> PreTrainedModel:
    """Return a language model of transformers as one of the architectures here, without writing it anywhere.

    Args:
        source: folder of the checkpoint.
        families: those to choose from.

    Raises:
        UsageError: the model cannot be converted.
    """
    family, config, weights = _translated(source, families, to_transformers=False)
    return family.model_class(config).from_pretrained(None, config=config, state_dict=weights).eval()


def _translated(
    source: Path, families: Iterable[Family], to_transformers: bool
) -> tuple[Family, PreTrainedConfig, dict[str, Tensor]]:
    config = read_config(source)
    family = _family_of(config, list(families), to_transformers)
    _check_head(config, family)
    converted = family.source_config_of(config) if to_transformers else family.dsf_config(config)
    translate = family.source_weights if to_transformers else family.dsf_weights
    weights = translate(read_weights(source), config)
    converted.architectures = [family.model_class(converted).__name__]
    return family, converted, weights


def _family_of(config: PreTrainedConfig, families: list[Family], to_transformers: bool) -> Family:
    if to_transformers:
        known = {f"dsf_{family.architecture}": family for family in families}
    else:
        known = {family.source_config.model_type: family for family in families}
    if config.model_type in known:
        return known[config.model_type]
    if isinstance(config, DSFConfig) and not to_transformers:
        remedy = "this is an architecture of dsf_models already; to convert it back, add --to transformers"
    elif to_transformers and not isinstance(config, DSFConfig):
        remedy = "this is no architecture of dsf_models; leave --to transformers out"
    else:
        remedy = f"only {', '.join(known)} can be converted"
    raise UsageError(f"model_type={config.model_type!r}: {remedy}.")


def _check_head(config: PreTrainedConfig, family: Family) -> None:
    expected = family.model_class(config).__name__
    if config.architectures not in (None, [expected]):
        raise UsageError(f"architectures={config.architectures!r}: only language models are converted ({expected}).")
