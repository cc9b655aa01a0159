"""Conversion of checkpoints between transformers' own models and the architectures here, one module per family."""

from pathlib import Path

from .checkpoint import convert, source_folder
from .family import Family, Rule
from .llama import LLAMA
from .mamba import MAMBA
from .mamba2 import MAMBA2
from .recurrent_gemma import RECURRENT_GEMMA

__all__ = ["FAMILIES", "LLAMA", "MAMBA", "MAMBA2", "RECURRENT_GEMMA", "Family", "Rule", "convert_checkpoint"]

FAMILIES = (LLAMA, MAMBA, MAMBA2, RECURRENT_GEMMA)
"""Every family that can be converted."""


def convert_checkpoint(
    source: str | Path, target: str | Path, to_transformers: bool = False, revision: str | None = None
) -> Family:
    """Convert a saved language model: from transformers' format to the architecture here, or back.

    Logits stay the same up to rounding. Generation settings and tokenizer files are carried over.

    Args:
        source: folder, or id of a repository on the Hub.
        target: folder to make; it must not exist yet. It appears whole or not at all.
        to_transformers: whether to convert back, into a model of transformers.
        revision: branch, tag or commit of the repository on the Hub.

    Returns:
        The family that the checkpoint belongs to.

    Raises:
        UsageError: the model cannot be converted; the message names what stands against it, its value and the remedy.
    """
    return convert(source_folder(str(source), revision), Path(target), FAMILIES, to_transformers)
