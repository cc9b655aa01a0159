"""The study of eigenvalues: what is read from a run, what the report says of it, and that tasks and sweeps fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dsf_models.analysis import BINS, spectrum
from dsf_models.analysis.legacy import LABEL, legacy_spectrum
from dsf_models.hub.usage import UsageError
from evaluation.papers.eigenvalues import spectra
from evaluation.papers.eigenvalues.observed import ROWS, few_rows, observed_spectra
from evaluation.papers.eigenvalues.report import FIGURE, REGIONS, TASKS, read_runs, write_report
from evaluation.reporting.sections import find_folders
from tests.training.helpers import train, write_documents
from training.config import config_to_dict, parse_config
from training.sweep_config import Seeds, parse_sweep
from training.sweep_plan import axis_choices, plan

ENVIRONMENT = {"commit": "abc", "hardware": {"cpu": "a processor", "logical_cores": 2}, "versions": {"torch": "2"}}


def inputs_of(run: Path) -> dict[str, torch.Tensor]:
    inputs = few_rows(parse_config(["--config", str(run / "config.yaml")])).test.rows(np.arange(ROWS))
    inputs.pop("labels")
    return inputs


def test_spectra_are_those_of_the_run_at_its_own_test_split(tmp_path: Path) -> None:
    run = train(tmp_path / "run", model__architecture="softmax_attention", task__test_examples=ROWS)
    found, inputs = observed_spectra(run / "final"), inputs_of(run)
    model = AutoModelForCausalLM.from_pretrained(run / "final").eval()
    np.testing.assert_allclose(found["trained"], spectrum(model, **inputs).fractions, atol=1e-6)
    np.testing.assert_allclose(found["legacy"], legacy_spectrum(model, **inputs).fractions.mean(2), atol=1e-6)
    assert found["realisation"] == "normalised"
    np.testing.assert_allclose(np.sum(found["initial"], axis=-1), 1, atol=1e-5)
    assert found["initial"] != found["trained"]


def test_pads_have_no_eigenvalues_and_no_legacy(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "documents.csv", 400)
    words = {"labelled__data": "text", "labelled__files": f"[{file}]", "labelled__length": 24}
    run = train(tmp_path / "run", **words, model__architecture="softmax_attention")
    inputs = inputs_of(run)
    assert inputs["attention_mask"].min() == 0
    found = observed_spectra(run / "final")
    assert "legacy" not in found
    model = AutoModelForSequenceClassification.from_pretrained(run / "final").eval()
    lengths = inputs["attention_mask"].sum(1)
    counts = spectrum(model, **inputs).counts.sum(-1)
    assert torch.equal(counts[0, 0], (lengths - 1).double())


def fractions(shares: dict[int, float]) -> list[list[list[float]]]:
    """Of one layer and one head."""
    return [[[shares.get(i, 0.0) for i in range(len(BINS))]]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Kept files of two mixers on one task, with two seeds each, and of a run that nobody has looked at."""
    folder = tmp_path / "eigenvalues_small"
    (folder / "mqar").mkdir(parents=True)
    runs, seen = [], {}
    for mixer, accuracy, keeps in (("softmax_attention", 1.0, 0.9), ("ssd", 0.4, 0.2)):
        for seed in (0, 1):
            name = f"{mixer}-{seed}"
            result: dict[str, Any] = {"test": {"accuracy": accuracy - 0.02 * seed}, "environment": ENVIRONMENT}
            runs.append({"name": name, "axes": {"mixer": mixer}, "result": result})
            seen[name] = {
                "initial": fractions({3: 1.0}),
                "trained": fractions({0: round(0.9 - keeps, 6), 3: keeps, 4: 0.1}),
                "realisation": "a",
            }
            if mixer == "softmax_attention":
                seen[name]["legacy"] = [[[0.0, 0.0, 0.0, 0.5, 1.0, 0.0, 0.0]]]
    runs.append({"name": "unseen", "axes": {"mixer": "lru"}, "result": runs[0]["result"]})
    runs.append({"name": "unfinished", "axes": {"mixer": "ssd"}, "result": None})
    (folder / "mqar" / "results.json").write_text(json.dumps({"tuned": [], "runs": runs}))
    (folder / "mqar" / "observations.json").write_text(json.dumps(seen))
    (folder / "mqar" / "table.json").write_text("[]")
    return folder


def test_shares_and_changes_are_those_of_the_files(results: Path) -> None:
    softmax, ssd = read_runs(results / "mqar", "mqar")
    assert (softmax.mixer, softmax.accuracies) == ("softmax_attention", (1.0, 0.98))
    assert softmax.share("keeps", "trained") == pytest.approx([1.0, 1.0])
    assert softmax.share("forgets", "initial") == [0, 0]
    assert ssd.share("keeps", "trained") == pytest.approx([0.3, 0.3])
    assert ssd.share("forgets", "trained") == pytest.approx([0.7, 0.7])
    assert ssd.change == pytest.approx([0.8, 0.8])
    assert (softmax.legacy is None, ssd.legacy is None) == (False, True)
    # Regions hold every interval once.
    indices = [i for _, part in REGIONS.values() for i in range(len(BINS))[part]]
    assert indices == list(range(len(BINS)))


def test_the_report_says_it_and_labels_what_is_legacy(results: Path) -> None:
    (results / "findings.md").write_text("SSD forgets.\n")
    text = write_report(results)
    assert "| mqar | softmax_attention | 99.0 ± 12.7 | 0.0 ± 0.0 | 0.0 ± 0.0 | 100.0 ± 0.0 |" in text
    assert "| mqar | ssd | 39.0 ± 12.7 | 70.0 ± 0.0 |" in text
    assert LABEL in text
    assert "| mqar | released code | 0.0 | 0.0 | 0.0 | 50.0 | 100.0 | 0.0 | 0.0 |" in text
    assert "SSD forgets." in text
    assert "Commit `abc`" in text
    assert (results / FIGURE).stat().st_size > 10_000
    # One section of the page of all reports: the sweep below has none of its own.
    assert find_folders([results.parent]) == [results]
    # An evaluation below it keeps its own, also a damaged one, of which the page then says so.
    (results / "evaluation").mkdir()
    (results / "evaluation" / "results.json").write_text("{")
    assert find_folders([results.parent]) == [results, results / "evaluation"]


def test_without_any_run_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished run"):
        write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_and_its_sweep_fit(task: str, size: str) -> None:
    sweep, _ = parse_sweep(["--config", str(spectra.config_of(task, size))])
    assert Path(sweep.output_dir).parts[-2:] == (size, task)
    (axis,) = sweep.axes
    mixers = [choice.value for choice in axis_choices(axis, sweep.axes[axis])]
    assert (axis, len(mixers)) == ("mixer", 6)
    assert len(sweep.seeds.run) >= 3
    own = {"architecture", "num_heads", "state_size", "normalizer", "offset"}
    shared = []
    for run in plan(replace(sweep, seeds=Seeds())):
        sections = config_to_dict(run.config)
        model = {name: value for name, value in sections.pop("model").items() if name not in own}
        sections["run"].pop("output_dir")
        shared.append((model, sections))
        assert sections["training"]["target_accuracy"] is None
    assert all(one == shared[0] for one in shared)
