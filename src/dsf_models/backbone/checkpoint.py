"""What the files of a checkpoint may ask for, checked before memory of that size is allocated."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["check_files", "check_index", "damaged_file", "stale_weights"]

SUFFIX = ".safetensors"
SPARE_ELEMENTS = 2**28
"""Parameters that a model may have beyond those of its files, as a new head or embedding (1 GiB in float32)."""
ELEMENTS_PER_BYTE = 2
"""Parameters that a byte of a file may stand for: one of 8 bits, and as many again, drawn anew for a new head."""
QUANTIZED_ELEMENTS_PER_BYTE = 8
"""The same for a quantised checkpoint, whose parameters may have a single bit."""


def stale_weights(there: Iterable[str], new: Iterable[str]) -> list[str]:
    """Return the weights in a repository that new ones replace: a whole file would be read in place of new shards.

    Args:
        there: names of the repository's files.
        new: names of the files that are uploaded.

    Returns:
        Names of weights and indices at the repository's root that are not uploaded anew.
    """
    ours = re.compile(r"model[^/]*\.safetensors(\.index\.json)?")  # and no adapter's
    found = {name for name in new if ours.fullmatch(name)}
    return sorted({name for name in there if ours.fullmatch(name)} - found) if found else []


def check_index(index: Path) -> None:
    """Raise where the index of a sharded checkpoint names anything but safetensors files beside it.

    Raises:
        OSError: the index is no JSON of an index, or a file's name leads elsewhere; the message names it.
    """
    try:
        names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{index} is no index of a sharded checkpoint ({error!r}): copy or download it again.") from error
    _check_names(names, str(index))


def check_files(
    parameters: Iterable[Tensor],
    files: Sequence[str],
    weight_map: Mapping[str, object] | None = None,
    quantized: bool = False,
) -> None:
    """Raise where files are no safetensors files, or far too small for the parameters that a model still lacks.

    Args:
        parameters: those to be loaded; the ones to be allocated are on the meta device.
        files: the files to be read.
        weight_map: the file of each parameter as the index of a sharded checkpoint names it.
        quantized: whether they hold quantised parameters.

    Raises:
        OSError: the message names the file, or both sizes.
    """
    _check_names((weight_map or {}).values(), "the index of the checkpoint")
    for file in files:
        if not file.endswith(SUFFIX):
            raise OSError(f"{file}: only {SUFFIX} files are loaded, since unpickling can run foreign code.")
    stored = sum(os.path.getsize(file) for file in files)
    wanted = sum(parameter.numel() for parameter in parameters if parameter.is_meta)
    allowed = stored * (QUANTIZED_ELEMENTS_PER_BYTE if quantized else ELEMENTS_PER_BYTE) + SPARE_ELEMENTS
    if wanted > allowed:
        raise OSError(
            f"the configuration describes a model of {wanted:,} parameters, but its files hold {stored:,} bytes: "
            "config.json does not belong to them. Copy or download both again; to train a new model of this size, "
            "build it with from_config."
        )


def _check_names(names: Iterable[object], index: str) -> None:
    for name in names:
        plain = isinstance(name, str) and name == os.path.basename(name) and "\\" not in name and name.endswith(SUFFIX)
        if not plain:
            raise OSError(
                f"{index} has {name!r} in its weight_map, which must name {SUFFIX} files in the index's own folder: "
                "do not load it if you did not write it yourself."
            )


def damaged_file(folder: str | Path) -> Path | None:
    """Return the first safetensors file of a local folder that cannot be opened."""
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return path
    return None
