"""Throughput: what is timed, in turn, and how repeats become numbers."""

from pathlib import Path

import pytest

from evaluation.config import SpeedOptions
from evaluation.suites.speed import Timed, quartiles, rate_metrics, what_is_timed
from tests.contract import fresh
from tests.evaluation.helpers import evaluate, refused

TINY = {
    "suite": "speed",
    "speed__lengths": "[8, 16]",
    "speed__tokens": 16,
    "speed__batch_sizes": "[1, 2]",
    "speed__context": 8,
    "speed__repeats": 2,
}


def test_a_batch_has_as_many_tokens_at_every_length() -> None:
    timed = list(what_is_timed(SpeedOptions(lengths=[64, 256], tokens=256, batch_sizes=[1, 4], context=32)))
    prefill = [one for one in timed if one.measure == "prefill"]
    assert [(one.batch, one.length, one.tokens) for one in prefill] == [(4, 64, 256), (1, 256, 256)]
    decode = [one for one in timed if one.measure == "decode"]
    assert [(one.batch, one.length, one.tokens) for one in decode] == [(1, 32, 1), (4, 32, 4)]


def test_rates_are_medians_with_quartiles_and_ratios_are_of_the_same_round() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    rate, ratio = rate_metrics(Timed("prefill", 8, 2, 16), [1.0, 2.0, 4.0], [2.0, 2.0, 2.0])
    assert (rate.value, rate.interval) == (8.0, (6.0, 12.0))
    assert (ratio.value, ratio.interval) == (1.0, (0.75, 1.5))


def test_models_are_timed_in_one_process(tmp_path: Path) -> None:
    for name in ("ssd", "softmax_attention"):
        fresh(name, "default", vocab_size=16).save_pretrained(tmp_path / name)
    models = [tmp_path / "ssd", tmp_path / "softmax_attention"]
    results = evaluate(tmp_path / "out", *models, **TINY, speed__memory="false")
    names = [[metric["name"] for metric in model["metrics"]] for model in results["models"]]
    assert len(names[0]) == 6
    assert len(names[1]) == 12
    assert names[1][1] == "speed over the first model's: prefill, 2 × 8 tokens"
    assert all(metric["value"] > 0 for model in results["models"] for metric in model["metrics"])
    assert [curve["name"] for curve in results["models"][0]["curves"]] == [
        "speed of training step",
        "speed of prefill",
        "speed of decode",
    ]
    message = refused(tmp_path / "none", models[0], **TINY, record="true")
    assert "belongs to a machine" in message


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    fresh("ssd", "default", vocab_size=64).save_pretrained(tmp_path / "ssd")
    options = TINY | {"speed__lengths": "[4096]", "speed__tokens": 65536, "speed__batch_sizes": "[1]"}
    results = evaluate(tmp_path / "out", tmp_path / "ssd", **options)
    sizes = {m["name"]: m["value"] for m in results["models"][0]["metrics"] if m["kind"] == "memory"}
    prefill = next(value for name, value in sizes.items() if "prefill" in name)
    training = next(value for name, value in sizes.items() if "training" in name)
    assert training > prefill > 0
