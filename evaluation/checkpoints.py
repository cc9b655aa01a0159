"""Loading any causal language model through the Auto classes, or saying in one sentence why it cannot be loaded."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

import dsf_models  # noqa: F401  registers the architectures with the Auto classes
from dsf_models.hub.usage import UsageError


def load_model(name: str) -> PreTrainedModel:
    """Load a checkpoint for evaluation, with every weight from its files.

    Args:
        name: a folder, or an id on the Hub.

    Returns:
        The model in evaluation mode.

    Raises:
        UsageError: for a missing folder, one that is no checkpoint, a damaged or incomplete file of weights, and an
            architecture that neither transformers nor this package knows.
    """
    check_files(name)
    try:
        # Code and pickled weights from elsewhere are never run, nor asked about.
        model, info = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        taken_as = "" if Path(name).exists() else " (no folder here, so taken as an id on the Hub)"
        raise UsageError(f"--model {name}{taken_as} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"--model {name} lacks {len(missing)} weights, such as {missing[0]!r}, which would be random: "
            "save the whole model again."
        )
    return model.eval()


def check_files(name: str) -> None:
    """Check what can be checked of a local checkpoint before loading it; ids on the Hub pass.

    Raises:
        UsageError: naming the folder or the file.
    """
    folder = Path(name)
    if not folder.exists():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
            raise UsageError(f"--model {name} is no folder here, and no id on the Hub (those read owner/name).")
        return
    if not (folder / "config.json").is_file():
        hint = f" Did you mean {folder / 'final'}?" if (folder / "final" / "config.json").is_file() else ""
        raise UsageError(f"--model {name} is no checkpoint: it has no config.json.{hint}")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(f"The weights in {file} are damaged ({error}): save or download them again.") from error
