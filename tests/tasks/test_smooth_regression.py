"""Smooth regression as a task: its labels from its inputs by the definition, its baselines, its function by seed."""

from dataclasses import replace

import numpy as np
import pytest

from dsf_models.tasks import get_task, list_tasks
from dsf_models.tasks.base import SyntheticTask
from dsf_models.tasks.smooth import basis, features, tuned_sieve
from dsf_models.tasks.smooth_regression import SmoothRegression, num_functions

GOLDEN = {
    (): "90dbbf25796507c0f80b19b51f88731fd2a5e9e6dfc941a2e1f5b5e3d0d1abc7",
    (("kind", "fixed"),): "2d64d9dca5babe64038e0ac2288cc00ce7238b268a478d1c61d59b5cd67ec99f",
    (
        ("sequence_length", 16),
        ("num_variables", 2),
        ("smoothness", 2.0),
        ("gap_power", 0.0),
        ("sigma", 0.0),
    ): "762fb617f7b1ee4e3dca376aaa89c49bc3f52683f67355b7ccd4253067ad543e",
}


def variables(task, row):
    """Return what the function reads of one row (t, 2), by the definition."""
    if task.kind == "fixed":
        return [float(row[-i][1]) for i in range(1, task.num_variables + 1)]
    ranked = sorted(row.tolist(), reverse=True)
    return [content for _, content in ranked[: task.num_variables]]


@pytest.mark.parametrize("sizes", GOLDEN, ids=lambda sizes: str(len(sizes)))
def test_golden_hashes(sizes):
    assert SmoothRegression(**dict(sizes)).data_hash("train", 0, 8) == GOLDEN[sizes]


def test_it_is_no_task_of_tokens():
    assert "smooth_regression" in list_tasks()
    assert "smooth_regression" not in list_tasks(SyntheticTask)


@pytest.mark.parametrize("kind", ["fixed", "piecewise"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_are_the_function_of_the_inputs(kind, split):
    noisy = SmoothRegression(kind=kind, sequence_length=20)
    clean, columns = replace(noisy, sigma=0.0), noisy.generate(split, 3, 0, 2000)
    f = clean.function(3)
    x = np.array([variables(noisy, row) for row in columns["inputs_values"]])
    # What float32 takes from the contents, times the steepness of the function.
    np.testing.assert_allclose(clean.generate(split, 3, 0, 2000)["labels"], f(x), atol=1e-4)
    residual = columns["labels"] - f(x)
    assert (residual**2).mean() == pytest.approx(noisy.oracle_mse, rel=0.12)
    assert abs(np.corrcoef(residual, f(x))[0, 1]) < 0.1
    assert columns["labels"].var() == pytest.approx(noisy.constant_mse, rel=0.12)
    assert clean.oracle_mse == 0


def test_importances_differ_in_float32():
    """Also where the gaps are least, at a length of thousands."""
    for power in (0.0, 4.0):
        task = SmoothRegression(sequence_length=4096, gap_power=power)
        ranked = np.sort(task.generate("train", 0, 0, 4)["inputs_values"][:, :, 0], axis=1)
        assert (np.diff(ranked, axis=1) > 0).all()


def test_every_seed_has_its_own_function():
    task = get_task("smooth_regression")
    first, again, other = (task.function(seed).coefficients for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["fixed", "piecewise"])
def test_the_oracle_sieve_learns_it_from_the_columns(kind):
    """From the published columns alone, read as the kind says, the sieve comes near the oracle."""
    task = SmoothRegression(kind=kind, sequence_length=8)
    sets = []
    for split in ("train", "validation", "test"):
        columns = task.generate(split, 0, 0, 1000)
        x = np.array([variables(task, row) for row in columns["inputs_values"]])
        sets.append((x, columns["labels"].astype(np.float64)))
    fit = tuned_sieve(sets[0], sets[1], np.array([1.0, 2.0, 3.0, 4.0]), 250)
    error = ((fit(sets[2][0]) - sets[2][1]) ** 2).mean()
    assert task.oracle_mse < error < 0.25 * task.constant_mse


def test_number_of_terms():
    a = (1.0, 1.5, 2.0)
    assert num_functions(a, 6.0) == len(basis(np.array(a), 6.0).levels)
    assert num_functions((1.0,) * 16, 30.0) > 2**40


def test_values_do_not_depend_on_the_other_points():
    f, x = get_task("smooth_regression").function(0), np.random.default_rng(0).random((50, 4))
    whole = f(x)
    assert features(x, f.frequencies).shape == (50, len(f.levels))
    for count in (1, 2, 3, 17):
        np.testing.assert_array_equal(f(x[:count]), whole[:count])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kind": "fixd"}, "smooth_regression.kind='fixd': unknown; did you mean fixed"),
        ({"sequence_length": 1}, "sequence_length=1: give 2"),
        ({"num_variables": 0}, "num_variables=0: give 1 to 16"),
        ({"sequence_length": 3}, "num_variables=4: give 1 to 3"),
        ({"smoothness": 0.0}, r"smoothness=0\.0: give a positive"),
        ({"smoothness_power": -1.0}, r"smoothness_power=-1\.0: give 0"),
        ({"level": 0.5}, r"level=0\.5: give at least smoothness=1\.0"),
        ({"level": 20.0}, r"level=20\.0: the function has .* terms; lower it"),
        ({"level": float("inf")}, "level=inf"),
        ({"gap_power": 5.0}, r"gap_power=5\.0: give 0 to 4"),
        ({"sigma": -0.1}, r"sigma=-0\.1: give a finite number"),
        ({"sigma": float("nan")}, "sigma=nan"),
    ],
)
def test_nonsense_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        SmoothRegression(**sizes)
