"""The spectra of one finished run, fresh and trained, at inputs of its own test split."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsf_models.analysis import compare_spectra
from dsf_models.analysis.legacy import legacy_spectrum
from dsf_models.hub.inspecting import load_model
from evaluation.papers.study import ROOT
from training.config import TrainConfig, parse_config
from training.data import RunData, load_task_data
from training.labelled_data import load_labelled_data

ROWS = 64
"""Rows of the test split that the mixers read."""


def observed_spectra(checkpoint: Path) -> Mapping[str, Any]:
    """Read where |λ| lies, of a model as it began and as it ended.

    Args:
        checkpoint: `final/` of a run on a task or on labelled sequences; the run's `config.yaml` is beside it.

    Returns:
        `initial` and `trained`: fractions by layer, head and interval of `dsf_models.analysis.RADII`; `realisation`;
        for softmax attention without pads `legacy` too, by layer, head and interval, as the study's released code
        would count.
    """
    config = parse_config(["--config", str(checkpoint.parent / "config.yaml")])
    inputs = few_rows(config).test.rows(np.arange(ROWS))
    inputs.pop("labels")
    model = load_model(checkpoint).eval()
    compared = compare_spectra(model, **inputs, seed=config.run.seed)
    found: dict[str, Any] = {
        "initial": listed(compared.initial.fractions),
        "trained": listed(compared.now.fractions),
        "realisation": compared.now.realisations[0],
    }
    if config.model["architecture"] == "softmax_attention" and "attention_mask" not in inputs:
        found["legacy"] = listed(legacy_spectrum(model, **inputs).fractions.mean(2))
    return found


def few_rows(config: TrainConfig) -> RunData:
    """The data of a run, with so few rows that they are at hand at once."""
    few = {"train_examples": 1, "validation_examples": 1, "test_examples": ROWS}
    if config.task is not None:
        return load_task_data(replace(config.task, **few))
    files = [str(ROOT / file) for file in config.labelled.files]  # the run started in the repository's folder
    return load_labelled_data(replace(config.labelled, files=files, **few))


def listed(fractions: Tensor) -> list[list[list[float]]]:
    """Fractions (layers, heads, intervals) as JSON takes them, to six places."""
    return [[[round(share, 6) for share in head] for head in layer] for layer in fractions.tolist()]
