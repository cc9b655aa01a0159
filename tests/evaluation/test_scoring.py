"""Accuracies, their intervals and the size of the state, against what they are by definition."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import dsf_models
from evaluation.scoring import accuracy, accuracy_by, right_answers, row_accuracy, wilson_interval
from evaluation.state import state_bytes
from tests.contract import NEEDED


class Echo:
    """A model that answers each position with its own input plus one: right where labels[t] = input_ids[t] + 1."""

    device = torch.device("cpu")

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids + 1, 10).float())


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_answers_are_compared_at_their_own_position(batch_size: int) -> None:
    input_ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 1]], dtype=np.int32)
    labels = np.array([[2, -100, 4], [-100, 5, -100], [8, 9, 9]], dtype=np.int32)
    right = right_answers(Echo(), input_ids, labels, batch_size)
    assert right.tolist() == [True, True, False, True, True, False]


def test_accuracy_over_answers_and_over_whole_examples() -> None:
    right = np.array([True, True, False, True, True, True])
    example = np.array([0, 0, 1, 1, 3, 3])
    answers, rows = accuracy(right, example), row_accuracy(right, example)
    assert (answers.value, answers.answers, answers.examples) == (pytest.approx(5 / 6), 6, 3)
    assert (rows.value, rows.answers, rows.examples) == (pytest.approx(2 / 3), 3, 3)


@pytest.mark.parametrize(
    ("value", "trials", "interval"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0)), (0.81, 263, (0.7584, 0.8529))],
)
def test_wilson_interval_has_its_published_values(value: float, trials: float, interval: tuple[float, float]) -> None:
    assert wilson_interval(value, trials) == pytest.approx(interval, abs=1e-3)


@pytest.mark.parametrize("trials", [1, 3, 24.4, 117, 1000, 99999.5])
def test_wilson_interval_holds_the_fraction_it_belongs_to(trials: float) -> None:
    for value in (0.0, 1e-12, 0.5, 1 - 1e-12, 1.0):
        low, high = wilson_interval(value, trials)
        assert 0 <= low <= value <= high <= 1


def test_dependent_answers_widen_the_interval() -> None:
    right = np.repeat([True, False, True, True], 25)
    together, alone = accuracy(right, np.repeat(np.arange(4), 25)), accuracy(right, np.arange(100))
    assert (together.low, together.high) == wilson_interval(0.75, 4)
    assert (alone.low, alone.high) == wilson_interval(0.75, 100)


@pytest.mark.parametrize("dependent", [True, False])
def test_interval_covers_the_truth_in_95_of_100_experiments(dependent: bool) -> None:
    rng, truth, covered = np.random.default_rng(0), 0.9, []
    for _ in range(500):
        counts = rng.integers(1, 6, size=60)
        example = np.repeat(np.arange(60), counts)
        draws = rng.random(60)[example] if dependent else rng.random(len(example))
        measured = accuracy(draws < truth, example)
        covered.append(measured.low <= truth <= measured.high)
    assert np.mean(covered) >= 0.93
    assert not dependent or np.mean(covered) <= 0.98


def test_bins_double_and_hold_every_answer_once() -> None:
    values = np.arange(70)
    right = values % 2 == 0
    bins = accuracy_by(values, right, values)
    assert [(entry["from"], entry["to"]) for entry in bins][:5] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    assert sum(entry["answers"] for entry in bins) == 70
    for entry in bins:
        inside = (values >= entry["from"]) & (values <= entry["to"])
        assert entry["accuracy"] == right[inside].mean()


def test_state_of_a_transformer_is_its_key_value_cache() -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    expected = 2 * 3 * 2 * 4 * 7 * 4  # keys and values, layers, heads, width, tokens, bytes
    assert state_bytes(model, torch.zeros(1, 7, dtype=torch.long)) == expected
    assert state_bytes(model, torch.zeros(5, 7, dtype=torch.long)) == expected


@pytest.mark.parametrize("architecture", dsf_models.list_architectures())
def test_state_per_sequence_does_not_depend_on_the_batch(architecture: str) -> None:
    depth = NEEDED.get(architecture, {"num_hidden_layers": 2})
    config = AutoConfig.for_model(f"dsf_{architecture}", vocab_size=16, hidden_size=16, **depth)
    model = AutoModelForCausalLM.from_config(config).eval()
    one, three = (state_bytes(model, torch.ones(batch, 6, dtype=torch.long)) for batch in (1, 3))
    assert one == three > 0
    longer = state_bytes(model, torch.ones(1, 24, dtype=torch.long))
    grows = any(kind == "full_attention" for kind in config.layer_types)
    assert (longer > one) is grows


def test_a_model_without_a_cache_has_no_state_size() -> None:
    def no_cache(input_ids: torch.Tensor, use_cache: bool) -> dict:
        return {"logits": input_ids}

    assert state_bytes(no_cache, torch.zeros(1, 2)) is None
