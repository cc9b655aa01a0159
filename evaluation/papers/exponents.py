"""The exponent a of the reversed sigmoid σ(-f)^a, as a checkpoint holds it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

_NAME = "alpha"


def _layer(name: str) -> int:
    """Number of the layer that a weight belongs to."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def learned_exponents(checkpoint: Path) -> Mapping[str, list[float]]:
    """Read a of every layer that has one; max(a, 0) is what acts.

    Args:
        checkpoint: folder with `model.safetensors`.

    Returns:
        `exponents`: from the first layer on; nothing where no exponent is learned.
    """
    with safe_open(checkpoint / "model.safetensors", framework="pt") as weights:
        names = [name for name in weights.keys() if name.rpartition(".")[2] == _NAME]  # noqa: SIM118  no mapping
        exponents = [float(weights.get_tensor(name)) for name in sorted(names, key=_layer)]
    return {"exponents": exponents} if exponents else {}
