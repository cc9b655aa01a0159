"""What the loop is made of: the order of the examples, the groups of parameters, the schedule, the metrics file."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dsf_models
from tests.contract import NEEDED
from training.config import OptimizerConfig, ScheduleConfig
from training.data import batch_indices, parts_of_process
from training.metrics import MetricsLog, Score, score_split
from training.optim import build_optimizer, build_schedule, parameter_groups


def test_every_epoch_passes_through_all_examples_once() -> None:
    order = np.concatenate([batch_indices(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    first = [batch_indices(step, 4, 10, seed=3).tolist() for step in range(8)]
    assert [batch_indices(step, 4, 10, seed=3).tolist() for step in reversed(range(8))] == first[::-1]
    assert batch_indices(0, 4, 10, seed=4).tolist() != first[0]


def test_a_batch_may_be_larger_than_the_data() -> None:
    counts = np.bincount(batch_indices(0, 25, 10, seed=0), minlength=10)
    assert sorted(counts) == [2] * 5 + [3] * 5


def test_processes_and_parts_share_a_batch_without_loss() -> None:
    batch = {"input_ids": torch.arange(24).view(12, 2)}
    parts = [part["input_ids"] for process in range(2) for part in parts_of_process(batch, process, 2, 3)]
    assert [len(part) for part in parts] == [2] * 6
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(24))


def tiny(architecture: str) -> PreTrainedModel:
    depth = NEEDED.get(architecture, {"num_hidden_layers": 1})
    config = AutoConfig.for_model(
        f"dsf_{architecture}", hidden_size=16, vocab_size=8, conv_kernel=4, use_bias=True, **depth
    )
    return AutoModelForCausalLM.from_config(config)


def group_names(model: PreTrainedModel) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(model, 0.1)]


@pytest.mark.parametrize("architecture", dsf_models.list_architectures())
def test_norms_biases_and_transition_parameters_are_not_decayed(architecture: str) -> None:
    model = tiny(architecture)
    decayed, spared = group_names(model)
    transition = {f"model.layers.0.mixer.{name}" for name in model.model.layers[0].token_mixer.transition_parameters}
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert spared == vectors | transition
    assert decayed == {name for name, _ in model.named_parameters()} - spared
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_a_transition_parameter_with_two_axes_is_not_decayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, name = tiny("ssd"), "model.layers.0.mixer.in_proj.weight"
    assert name in group_names(model)[0]
    monkeypatch.setattr(type(model.model.layers[0].mixer), "transition_parameters", ("in_proj.weight",))
    assert name in group_names(model)[1]


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = tiny("ssd")
    model.lm_head.weight.requires_grad_(False)
    decayed, spared = group_names(model)
    assert "lm_head.weight" not in decayed | spared


def test_schedule_is_its_formula() -> None:
    warmup, steps, ratio, highest = 4, 20, 0.1, 0.5
    optimizer = build_optimizer(tiny("ssd"), OptimizerConfig(learning_rate=highest))
    schedule = build_schedule(optimizer, ScheduleConfig(warmup_steps=warmup, final_ratio=ratio), steps)
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup))) / 2
        factor = (step + 1) / warmup if step < warmup else ratio + (1 - ratio) * cosine
        assert schedule.get_last_lr() == pytest.approx([highest * factor] * 2)
        optimizer.step()
        schedule.step()
    assert factor == pytest.approx(ratio)


class Echo(nn.Module):
    """A model that answers each position with its own input plus one."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids + 1, 10).float())


@pytest.mark.parametrize(
    ("process", "processes", "accuracy", "row_accuracy"),
    [(0, 1, 5 / 6, 3 / 4), (0, 2, 1, 1), (1, 2, 2 / 3, 1 / 2)],
)
def test_score_counts_answers_and_whole_rows_of_its_share(
    process: int, processes: int, accuracy: float, row_accuracy: float
) -> None:
    rows = {
        "input_ids": [[1, 2, 3], [1, 2, 3], [4, 5, 6], [7, 8, 1]],
        "labels": [[2, -100, 4], [2, 9, -100], [-100, 6, -100], [-100, -100, 2]],
    }
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    accelerator = SimpleNamespace(
        process_index=process, num_processes=processes, device=torch.device("cpu"), autocast=nullcontext
    )
    model = Echo()
    score = score_split(model, data, accelerator, examples_per_batch=3)
    right, wrong = math.log(math.e + 9) - 1, math.log(math.e + 9)
    assert (score.accuracy, score.row_accuracy) == pytest.approx((accuracy, row_accuracy))
    assert score.loss == pytest.approx(accuracy * right + (1 - accuracy) * wrong)
    assert model.training


def test_better_is_more_accurate_then_lower_loss() -> None:
    score = Score(loss=1.0, accuracy=0.5, row_accuracy=0.1)
    assert score.is_better_than(None)
    assert not score.is_better_than(score)
    assert Score(loss=2.0, accuracy=0.6, row_accuracy=0.0).is_better_than(score)
    assert Score(loss=0.9, accuracy=0.5, row_accuracy=0.0).is_better_than(score)
    assert not Score(loss=float("nan"), accuracy=0.5, row_accuracy=0.0).is_better_than(score)


def test_metrics_after_the_last_checkpoint_are_forgotten(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append(step, "train", {"loss": float(step)})
    log.append(2, "test", {"accuracy": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 4, "spl')
    log.rewind(2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_numbers_that_json_cannot_express_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, "train", {"gradient_norm": float("inf")})
    assert json.loads(log.path.read_text())["gradient_norm"] is None
