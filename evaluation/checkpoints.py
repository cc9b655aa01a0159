"""Loading any model through the Auto classes, or saying in one sentence why it cannot be loaded."""

from collections.abc import Sequence
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import dsf_models  # noqa: F401  registers the architectures with the Auto classes
from dsf_models.hub.usage import UsageError

_REFUSED = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_model(name: str, heads: Sequence[str] = ("CausalLM",)) -> PreTrainedModel:
    """Load a checkpoint for evaluation, with every weight from its files.

    Args:
        name: a folder, or an id on the Hub.
        heads: kinds of models that will do, as their classes end; the first one for a checkpoint of any other kind.

    Returns:
        The model in evaluation mode.

    Raises:
        UsageError: for a missing folder, one that is no checkpoint, a damaged or incomplete file of weights, and an
            architecture that neither transformers nor this package knows.
    """
    check_files(name)
    try:
        # Code and pickled weights from elsewhere are never run, nor asked about.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model, info = getattr(transformers, f"AutoModelFor{head_of(config, heads)}").from_pretrained(
            name, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except _REFUSED as error:
        raise UsageError(f"--model {name}{taken_as(name)} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"--model {name} lacks {len(missing)} weights, such as {missing[0]!r}, which would be random: "
            "save the whole model again."
        )
    return model.eval()


def load_tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        UsageError: it has none.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json raises no kind of its own
        raise UsageError(
            f"--model {name}{taken_as(name)} has no tokenizer ({str(error).splitlines()[0]}): this suite reads text, "
            "so save one beside the weights."
        ) from error


def head_of(config: PreTrainedConfig, heads: Sequence[str]) -> str:
    """Which of these kinds a checkpoint is of, by the class that it was saved from; the first where it is of none."""
    saved = (config.architectures or [""])[0]
    return next((head for head in heads if saved.endswith(f"For{head}")), heads[0])


def taken_as(name: str) -> str:
    """What an error says about a name that is no folder."""
    return "" if Path(name).exists() else " (no folder here, so taken as an id on the Hub)"


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
