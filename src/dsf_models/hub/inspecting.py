"""`dsf-models inspect`: a checkpoint looked at, as a summary in text, figures and one JSON file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..analysis import Inspection, inspect_model, text_table
from ..analysis.inspection import LayerInspection
from ..analysis.spectrum import random_tokens
from ..analysis.state import StateUse
from ..backbone import DSFConfig, DSFPreTrainedModel, get_architecture
from .conversion import FAMILIES
from .conversion.checkpoint import load_converted, read_config, source_folder
from .files import new_folder, write_json
from .usage import UsageError

__all__ = ["RECORD", "Tokens", "inspect_checkpoint", "load_model", "summary"]

RECORD = "inspection.json"
"""Name of the file of numbers."""


@dataclass(frozen=True)
class Tokens:
    """What a model is to read: texts, token ids, or random tokens."""

    texts: Sequence[str] = ()
    """One row each."""
    ids: Sequence[int] = ()
    """One row of token ids."""
    length: int | None = None
    """Length of random rows, where there are neither texts nor ids. Default: 64, or fewer where positions end."""
    rows: int | None = None
    """Number of random rows. Default: 4."""


def inspect_checkpoint(
    source: str, tokens: Tokens, folder: Path, *, layers: list[int] | None = None, seed: int = 0
) -> Inspection:
    """Inspect a model and write figures and numbers into a folder, which appears whole or not at all.

    Args:
        source: folder, or id of a repository on the Hub, of a model of the zoo or of a family that can be converted.
        tokens: what the model reads.
        folder: to write to; it must not exist, or hold an earlier inspection, which is replaced.
        layers: indices of the layers to look at. Default: all.
        seed: of the fresh initialisation that the spectrum is compared with, and of random tokens.

    Raises:
        UsageError: what was given does not fit; nothing is written then.
    """
    draw = _drawing()
    if folder.exists() and not (folder / RECORD).is_file():
        raise UsageError(f"--output_dir={folder}: it exists and holds no {RECORD}: give the name of a new folder.")
    path = source_folder(source)
    model = load_model(path)
    input_ids, mask, origin = _read(tokens, path, model.config, seed)
    inputs = {} if mask is None else {"attention_mask": mask}
    try:
        inspection = inspect_model(model, input_ids, layers=layers, seed=seed, **inputs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as unfinished:
        figures = draw(inspection, unfinished)
        record = {"model": source, "seed": seed, "tokens_from": origin, "figures": figures}
        write_json(unfinished / RECORD, record | inspection.to_dict())
    return inspection


def load_model(folder: Path) -> DSFPreTrainedModel:
    """Return the model of a checkpoint folder in float32, ready for inference; transformers' are converted in memory.

    Raises:
        UsageError: it is neither of the zoo nor of a family that can be converted.
    """
    config = read_config(folder)
    if not isinstance(config, DSFConfig):
        return load_converted(folder, FAMILIES).float()
    architecture = get_architecture(config.model_type.removeprefix("dsf_"))
    kinds = (
        architecture.causal_lm_class,
        architecture.sequence_classification_class,
        architecture.token_classification_class,
        architecture.model_class,
    )
    named = (config.architectures or [""])[0]
    kind = next((kind for kind in kinds if kind.__name__ == named), architecture.model_class)
    try:
        return kind.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder}: its weights cannot be loaded: {' '.join(str(error).split())}") from error


def _drawing() -> Any:
    try:
        from ..analysis.figures import draw_inspection  # matplotlib comes with an extra alone
    except ImportError as error:
        raise UsageError('figures need matplotlib: run pip install "dsf-models[train]".') from error
    return draw_inspection


def _read(tokens: Tokens, folder: Path, config: DSFConfig, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """Return token ids (b, t), a mask where rows differ in length, and where the tokens come from."""
    if config.input_size is not None:
        raise UsageError(
            f"{folder}: the model reads real numbers (input_size={config.input_size}), no tokens: look at it in "
            "Python, by spectrum(model, inputs_values=…) and the other functions of dsf_models.analysis."
        )
    if (tokens.texts or tokens.ids) and tokens.rows is not None:
        raise UsageError(f"--rows={tokens.rows}: only random tokens have it: leave it out.")
    if tokens.texts:
        tokenizer = _tokenizer(folder)
        rows = [tokenizer(text)["input_ids"] for text in tokens.texts]
        return *_side_by_side(rows, config), "text"
    if tokens.ids:
        return *_side_by_side([list(tokens.ids)], config), "token ids"
    most = config.max_position_embeddings if config.position_embedding == "learned" else None
    length = min(64, most or 64) if tokens.length is None else tokens.length
    rows = 4 if tokens.rows is None else tokens.rows
    if length < 2 or rows < 1 or (most is not None and length > most):
        limit = "" if most is None else f" and at most {most}, the model's positions"
        raise UsageError(f"--length={length}, --rows={rows}: give at least 2 tokens{limit}, and at least 1 row.")
    return random_tokens(config, rows, length, seed), None, f"random, seed {seed}"


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--text: {folder} holds no tokenizer that can be loaded; give token ids with --tokens, or random ones "
            "with --length."
        ) from error


def _side_by_side(rows: list[list[int]], config: DSFConfig) -> tuple[Tensor, Tensor | None]:
    for row in rows:
        if len(row) < 2:
            raise UsageError(f"a row has {len(row)} tokens: λ_1 is the first eigenvalue that acts; give at least 2.")
        unknown = [token for token in row if not 0 <= token < config.vocab_size]
        if unknown:
            raise UsageError(f"token {unknown[0]}: the model has a vocabulary of {config.vocab_size}, from 0.")
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    if all(len(row) == width for row in rows):
        return input_ids, None
    return input_ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


# ---- the summary -----------------------------------------------------------------------------------------------------


def summary(inspection: Inspection) -> str:
    """Return what an inspection found, as tables of text."""
    facts = inspection.facts
    lines = [
        f"{facts['architecture']}: {facts['layers_of_model']} layers, width {facts['hidden_size']}, "
        f"{facts['parameters']:,} parameters",
        f"read {facts['rows']} x {facts['tokens']} tokens; "
        + ("no state: it looks ahead" if facts["state_bytes"] is None else f"{facts['state_bytes']:,} bytes of state"),
    ]
    spectra = inspection.spectra
    shown = [one.layer for one in inspection.layers if spectra.now.reasons[one.layer] is None]
    if shown:
        header = ("layer", "realisation", "mean |λ|", *(f"{name} %" for name in spectra.now.bins.names))
        lines += [
            "",
            "|λ|, freshly initialised > now",
            text_table([_spectrum_row(inspection, i) for i in shown], header),
        ]
    for one in inspection.layers:
        if (reason := spectra.now.reasons[one.layer]) is not None:
            lines += ["", f"no |λ| of layer {one.layer}: {reason}"]
    header = ("layer", "architecture", "Λ", "90 % of Φ - D within", "mean lag", "log η", "rank of the state")
    lines += ["", text_table([_layer_row(one, facts["tokens"]) for one in inspection.layers], header)]
    return "\n".join(lines)


def _spectrum_row(inspection: Inspection, layer: int) -> tuple[str, ...]:
    before, now = inspection.spectra.initial, inspection.spectra.now
    means = " > ".join(f"{float(one.mean_magnitude[layer].nanmean()):.3f}" for one in (before, now))
    shares = zip(*(100 * one.fractions[layer].nanmean(0) for one in (before, now)), strict=True)
    return (str(layer), now.realisations[layer], means, *(f"{float(a):.0f} > {float(b):.0f}" for a, b in shares))


def _layer_row(one: LayerInspection, tokens: int) -> tuple[str, ...]:
    memory, eta, state = one.memory, one.normalizer, one.state
    mapped = tokens if one.weights is None else one.weights.shape[-1]
    beginning = "" if mapped == tokens else f" (of the first {mapped})"
    return (
        str(one.layer),
        one.architecture,
        one.structure or "none",
        "-" if memory is None else f"{float(memory.lag.nanmean()):.1f} tokens{beginning}",
        "-" if memory is None else f"{float(memory.mean_lag.nanmean()):.1f}",
        "none" if eta is None else f"{float(eta.lowest.min()):.2f} to {float(eta.highest.max()):.2f}",
        _state_words(state),
    )


def _state_words(state: StateUse | str | None) -> str:
    if not isinstance(state, StateUse):
        return state or "-"
    size = state.per_state.shape[-1] * state.per_channel.shape[-1]
    return f"{float(state.rank_over_time.nanmean()):.1f} of {size} a head"
