"""Beyond the trained sizes: every axis of every task, curves with their baselines, and what has no room."""

from pathlib import Path

import pytest

from dsf_models.tasks import SyntheticTask, get_task, list_tasks
from evaluation.suites.selection import AXES
from evaluation.suites.task import make_examples
from tests.evaluation.helpers import evaluate, refused, save_trained_on

SIZES = {"sequence_length": 16, "num_pairs": 2, "vocab_size": 16}
SMALL = {
    "mqar": SIZES,
    "mqar_update": SIZES | {"sequence_length": 32, "num_updates": 2},
    "needle": {"sequence_length": 64, "value_tokens": 2, "num_needles": 2, "variant": "multikey"},
    "input_copying": {"sequence_length": 22, "min_length": 3, "max_length": 10},
    "selective_copying": {"sequence_length": 32, "num_tokens": 4},
    "associative_recall": {"sequence_length": 9, "vocab_size": 80},
}


@pytest.mark.parametrize("name", AXES)
def test_every_axis_reaches_eight_times_the_trained_size(name: str) -> None:
    """At least one axis of each task; along all axes nothing else changes but what has to make room."""
    trained = get_task(name, **SMALL.get(name, {})).describe()["sizes"]
    reached = []
    for axis in AXES[name]:
        changes = axis.grow(trained, 8)
        assert trained[axis.size] * 7 <= changes[axis.size] <= trained[axis.size] * 9
        try:
            task = get_task(name, **{**trained, **changes})
        except ValueError:
            continue
        assert {key for key, value in task.describe()["sizes"].items() if value != trained[key]} <= set(changes)
        make_examples(name, {**trained, **changes}, "test", 0, 2)
        reached.append(axis.name)
    assert reached, "no axis of this task has room for eight times the trained size"
    assert name in list_tasks(SyntheticTask)


def test_strings_and_words_have_the_length_that_the_axis_names() -> None:
    for name, facet in (("input_copying", "length"), ("parity", "length")):
        (axis,) = AXES[name]
        trained = get_task(name).describe()["sizes"]
        changes = axis.grow(trained, 4)
        examples = make_examples(name, {**trained, **changes}, "test", 0, 5)
        assert set(examples.facets[facet].tolist()) == {4 * trained[axis.size]}


def test_curves_go_through_the_trained_sizes(tmp_path: Path) -> None:
    folder = save_trained_on(tmp_path / "ssd", "ssd", "mqar", **SIZES)
    results = evaluate(tmp_path / "out", folder, suite="selection", factors="[0.5, 2, 8]")
    (model,) = results["models"]
    curves = {curve["name"]: curve for curve in model["curves"]}
    length = curves["accuracy by length"]
    assert [point["x"] for point in length["points"]] == [8, 16, 32, 128]
    assert length["trained_at"] == 16
    metrics = {metric["name"]: metric for metric in model["metrics"]}
    trained = next(point for point in length["points"] if point["x"] == 16)
    assert trained["value"] == metrics["accuracy"]["value"]
    far = length["points"][-1]
    task = get_task("mqar", **SIZES | {"sequence_length": 128})
    assert (far["chance"], far["best_trivial"]) == (task.chance, task.best_trivial)
    assert metrics["accuracy by length, 8 times the trained sequence length"]["value"] == far["value"]
    direct = evaluate(tmp_path / "direct", folder, suite="mqar", sizes__sequence_length=128)
    assert direct["models"][0]["accuracy"]["accuracy"] == far["value"]
    assert (tmp_path / "out" / "accuracy_by_length.png").is_file()
    assert (tmp_path / "out" / "accuracy_by_pairs_and_length.png").is_file()


def test_a_point_without_room_says_why(tmp_path: Path) -> None:
    limited = save_trained_on(
        tmp_path / "limited", "softmax_attention", "mqar", **SIZES, model_max_position_embeddings=32
    )
    results = evaluate(tmp_path / "out", limited, suite="selection", factors="[2, 8]")
    curves = {curve["name"]: curve for curve in results["models"][0]["curves"]}
    pairs = {point["x"]: point for point in curves["accuracy by pairs"]["points"]}
    assert pairs[4]["value"] is not None
    assert (pairs[16]["value"], "num_pairs" in pairs[16]["note"]) == (None, True)


def test_what_was_trained_has_to_be_known(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = save_trained_on(tmp_path / "memory", "ssd", "memorisation", vocab_size=32, sequence_length=8)
    assert "nothing that grows in memorisation" in refused(out, folder, suite="selection")
    (folder / "task.json").unlink()
    assert "needs a checkpoint with a task.json" in refused(out, folder, suite="selection")
    assert "did you mean selection" in refused(out, folder, suite="selectoin")
    trained = save_trained_on(tmp_path / "ssd", "ssd", "mqar", **SIZES)
    assert "factors is [0.0]" in refused(out, trained, suite="selection", factors="[0]")
    moved = refused(out, trained, suite="selection", sizes__num_pairs=3)
    assert "--sizes is {'num_pairs': 3}, which the suite selection does not read" in moved
    assert "which the suite mqar does not read" in refused(out, trained, suite="mqar", factors="[2]")
