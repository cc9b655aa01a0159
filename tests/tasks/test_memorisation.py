"""Memorisation: one map for all splits, its law, baselines and golden hashes."""

import numpy as np
import pytest

from dsf_models.tasks import IGNORE_INDEX, SPLITS, get_task

GOLDEN = {
    16: "de63572c1bb410cf8c72f26ab7bebbd2418f6f2487a0dbfc8d9049cf8c91ff4b",
    256: "8269d22259270993ddc5417180c630139be2695c3e9d4436d88dee06d8f60ebe",
    8192: "ce4aeed29adb63ea2c6f7676587481d7c177029c33650baa67e0fb032d429961",
}


@pytest.mark.parametrize("vocab_size", GOLDEN)
def test_golden_hashes(vocab_size):
    assert get_task("memorisation", vocab_size=vocab_size).data_hash("train", 0, 8) == GOLDEN[vocab_size]


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("vocab_size", [4, 5, 256])
def test_splits_share_the_map_of_the_seed(seed, vocab_size):
    task = get_task("memorisation", vocab_size=vocab_size)
    values = task.values_of_keys(seed)
    assert values.shape == (vocab_size // 2 - 1,)
    for split in SPLITS:
        columns = task.generate(split, seed, 0, 50)
        keys = columns["input_ids"][:, 0::2]
        np.testing.assert_array_equal(columns["labels"][:, 1::2], values[keys - 1])
        assert (columns["labels"][:, 0::2] == IGNORE_INDEX).all()
        assert not columns["input_ids"][:, 1::2].any()
        assert keys.min() == 1
        assert keys.max() == vocab_size // 2 - 1


def test_best_trivial_is_the_most_frequent_value_in_the_mean_over_seeds():
    task = get_task("memorisation", vocab_size=32)
    most = np.array([np.bincount(task.values_of_keys(seed)).max() / 15 for seed in range(2000)])
    assert most.mean() == pytest.approx(task.best_trivial, abs=5 * most.std() / np.sqrt(2000))


@pytest.mark.parametrize("sizes", [{"vocab_size": 3}, {"sequence_length": 31}])
def test_errors_name_the_field(sizes):
    with pytest.raises(ValueError, match=f"memorisation.{next(iter(sizes))}=.*give"):
        get_task("memorisation", **sizes)
