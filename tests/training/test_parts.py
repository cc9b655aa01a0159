"""What the loop is made of: the order of the examples, the groups of parameters, the schedule, the metrics file."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dsf_models
from dsf_models.tasks import get_task
from tests.contract import NEEDED
from training.config import OptimizerConfig, ScheduleConfig, TaskConfig
from training.data import (
    Delivery,
    Examples,
    Prefetched,
    Share,
    TaskExamples,
    batch_indices,
    evaluation_batches,
    load_task_data,
)
from training.metrics import MetricsLog, score_split
from training.optim import build_optimizer, build_schedule, learning_rate_factor, parameter_groups
from training.score import Score


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


class Counted(Examples):
    """Row i holds i, and its label."""

    def __init__(self) -> None:
        super().__init__(count=10, length=1)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"input_ids": indices[:, None], "labels": indices[:, None]}


def share(process: int = 0, processes: int = 1, parts: int = 1) -> Share:
    return Share(batch_size=12, parts=parts, process=process, num_processes=processes, seed=0)


def test_processes_and_parts_share_a_batch_without_loss() -> None:
    delivered = [next(Counted().deliveries(3, share(process, 2, 3), {})) for process in range(2)]
    parts = [part["input_ids"] for delivery in delivered for part in delivery.parts]
    assert [len(part) for part in parts] == [2] * 6
    assert sorted(torch.cat(parts).flatten().tolist()) == sorted(batch_indices(3, 12, 10, seed=0))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_shares_a_split_out_in_equally_many_batches(processes: int) -> None:
    shares = [list(evaluation_batches(Counted(), 2, process, processes)) for process in range(processes)]
    assert len({len(batches) for batches in shares}) == 1
    counted = [batch["input_ids"][:count] for batches in shares for batch, count in batches]
    assert sorted(torch.cat(counted).flatten().tolist()) == list(range(10))
    assert all((batch["labels"][count:] == -100).all() for batches in shares for batch, count in batches)


def test_examples_are_the_same_in_memory_and_generated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    task, indices = get_task("mqar", sequence_length=16, num_pairs=2), np.array([7, 0, 7])
    held = TaskExamples(task, "train", 3, 20).rows(indices)
    monkeypatch.setattr("training.data._HELD_TOKENS", 0)
    made = TaskExamples(task, "train", 3, 20)
    assert held.keys() == made.rows(indices).keys()
    assert all(torch.equal(column, held[name]) for name, column in made.rows(indices).items())


def test_prefetching_keeps_the_order_and_hands_errors_on() -> None:
    def source() -> Iterator[Delivery]:
        for step in range(5):
            yield Delivery([], {"step": step})
        raise OSError("the disk is gone")

    deliveries = Prefetched(source())
    assert [next(deliveries).position["step"] for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="the disk is gone"):
        next(deliveries)
    deliveries.close()


def test_prefetching_counts_the_time_that_the_model_waits() -> None:
    def slow() -> Iterator[Delivery]:
        while True:
            time.sleep(0.05)
            yield Delivery([])

    with closing(Prefetched(slow())) as deliveries:
        next(deliveries)
        assert 0.04 < deliveries.waited < 5


def tiny(architecture: str) -> PreTrainedModel:
    depth = NEEDED.get(architecture, {"num_hidden_layers": 1})
    config = AutoConfig.for_model(
        f"dsf_{architecture}", hidden_size=16, vocab_size=8, conv_kernel=4, use_bias=True, **depth
    )
    return AutoModelForCausalLM.from_config(config)


def group_names(model: PreTrainedModel) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {kind: {names[id(parameter)] for parameter in group} for kind, group in parameter_groups(model).items()}


@pytest.mark.parametrize("architecture", dsf_models.list_architectures())
def test_norms_biases_and_transition_parameters_are_not_decayed(architecture: str) -> None:
    model = tiny(architecture)
    groups, names = group_names(model), {name for name, _ in model.named_parameters()}
    block = model.model.layers[0]
    transition = {f"model.layers.0.{block.mixer_attribute}.{name}" for name in block.token_mixer.transition_parameters}
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert transition & names <= groups["transition"]
    assert groups["transition"] | groups["spared"] == vectors | (transition & names)
    assert groups["decayed"] == names - groups["spared"] - groups["transition"]
    assert sum(map(len, groups.values())) == len(names)


def test_the_learning_rate_of_transition_parameters_is_a_multiple() -> None:
    model = tiny("ssd")
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.1, transition_ratio=0.1))
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    mixer = model.model.layers[0].mixer
    assert rates[id(mixer.A_log)] == (pytest.approx(0.05), 0)
    assert rates[id(model.lm_head.weight)] == (0.5, 0.1)
    assert rates[id(model.model.norm.weight)] == (0.5, 0)


def test_a_transition_parameter_with_two_axes_is_not_decayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, name = tiny("ssd"), "model.layers.0.mixer.in_proj.weight"
    assert name in group_names(model)["decayed"]
    monkeypatch.setattr(type(model.model.layers[0].mixer), "transition_parameters", ("in_proj.weight",))
    assert name in group_names(model)["transition"]


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = tiny("ssd")
    model.lm_head.weight.requires_grad_(False)
    assert all("lm_head.weight" not in names for names in group_names(model).values())


SHAPES = {
    "cosine": [0.1 + 0.9 * (1 + math.cos(math.pi * s / 4)) / 2 for s in range(1, 5)],
    "wsd": [1.0, 0.7, 0.4, 0.1],
    "constant": [1.0, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_schedules_are_their_formulas(shape: str) -> None:
    """Two steps of warm-up, then (four steps) half a cosine, a line over the last three, or nothing."""
    config = ScheduleConfig(shape=shape, warmup_steps=2, final_ratio=0.1, decay_steps=3 if shape == "wsd" else None)
    optimizer = build_optimizer(tiny("ssd"), OptimizerConfig(learning_rate=2.0, transition_ratio=0.5))
    schedule, found = build_schedule(optimizer, config, 6), []
    for _ in range(6):
        found.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    for rates, factor in zip(found, [0.5, 1.0, *SHAPES[shape]], strict=True):
        assert rates == pytest.approx([2 * factor, factor, 2 * factor])


def test_a_schedule_without_warmup_starts_at_the_highest_rate() -> None:
    config = ScheduleConfig(shape="wsd", warmup_steps=0)
    factors = [learning_rate_factor(step, config, 10) for step in range(10)]
    assert factors == pytest.approx([1.0] * 8 + [0.55, 0.1])


class Echo(nn.Module):
    """A model that answers each position with its own input plus one."""

    config = SimpleNamespace(looks_ahead=False)

    def forward(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids[logits_to_keep] + 1, 10).float())


class Rows(Examples):
    """Rows that are given."""

    def __init__(self, columns: dict[str, list]) -> None:
        self.given = {name: np.array(column) for name, column in columns.items()}
        super().__init__(*self.given["labels"].shape)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[indices] for name, column in self.given.items()}


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
    data = replace(load_task_data(TaskConfig(name="mqar", train_examples=1)), test=Rows(rows))
    accelerator = SimpleNamespace(
        process_index=process, num_processes=processes, device=torch.device("cpu"), autocast=nullcontext
    )
    model = Echo()
    score = score_split(model, data, "test", accelerator, rows_per_batch=3)
    right, wrong = math.log(math.e + 9) - 1, math.log(math.e + 9)
    assert (score.accuracy, score.row_accuracy) == pytest.approx((accuracy, row_accuracy))
    assert score.loss == pytest.approx(accuracy * right + (1 - accuracy) * wrong)
    assert model.training


def test_better_is_more_accurate_then_lower_loss() -> None:
    score = Score(loss=1.0, accuracy=0.5, row_accuracy=0.1)
    assert score.is_better_than(None, "accuracy")
    assert not score.is_better_than(score, "accuracy")
    assert Score(loss=2.0, accuracy=0.6, row_accuracy=0.0).is_better_than(score, "accuracy")
    assert not Score(loss=2.0, accuracy=0.6, row_accuracy=0.0).is_better_than(score, "loss")
    assert Score(loss=0.9, accuracy=0.5, row_accuracy=0.0).is_better_than(score, "accuracy")
    for other in (score, None):
        assert not Score(loss=float("nan"), accuracy=0.6, row_accuracy=0.0).is_better_than(other, "accuracy")


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
