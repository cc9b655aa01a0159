import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from dsf_models.hub.usage import UsageError
from tests.training.helpers import ROOT, arguments, few_labelled, forget_accelerate, metrics, tiny_config
from training.config import (
    LabelledConfig,
    TaskConfig,
    TextConfig,
    TrainConfig,
    config_to_dict,
    config_to_yaml,
    differences,
    known_keys,
    parse_config,
)
from training.train import main

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "run" in yaml.safe_load(path.read_text())]
"""Those of runs; sweeps and Accelerate have files of their own."""


def test_yaml_and_overrides_meet_in_one_configuration(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(config_to_yaml(tiny_config(tmp_path)))
    assert parse_config(["--config", str(file)]) == tiny_config(tmp_path)
    changed = parse_config(["--config", str(file), "--model.hidden_size", "32", "--task.sizes.num_pairs", "1"])
    assert changed.model == tiny_config(tmp_path).model | {"hidden_size": 32}
    assert changed.task.sizes == tiny_config(tmp_path).task.sizes | {"num_pairs": 1}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("max_steps", "training.max_steps"),
        ("task.validation_example", "task.validation_examples"),
    ],
)
def test_unknown_keys_name_the_closest(tmp_path: Path, given: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"Unknown key {given!r}. Did you mean {meant!r}?")):
        parse_config([*arguments(tmp_path), f"--{given}", "1"])
    file = tmp_path / "run.yaml"
    section, _, key = given.rpartition(".")
    file.write_text(yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
    with pytest.raises(UsageError, match=re.escape(repr(given)) + ".*" + re.escape(repr(meant))):
        parse_config([*arguments(tmp_path), "--config", str(file)])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__max_steps": 0}, r"training\.max_steps is 0: use at least 1"),
        ({"training__max_steps": "many"}, r"training\.max_steps: .*many"),
        ({"training__mixed_precision": "bf17"}, r"training\.mixed_precision: .*bf17"),
        ({"training__max_grad_norm": -1}, r"training\.max_grad_norm is -1"),
        ({"training__target_accuracy": 99}, r"training\.target_accuracy is 99"),
        ({"training__patience": 0}, r"training\.patience is 0"),
        ({"schedule__warmup_steps": 6}, r"schedule\.warmup_steps is 6: use less than training\.max_steps \(6\)"),
        ({"schedule__final_ratio": 2}, r"schedule\.final_ratio is 2"),
        ({"optimizer__learning_rate": 0}, r"optimizer\.learning_rate is 0"),
        ({"optimizer__weight_decay": -1}, r"optimizer\.weight_decay is -1"),
        ({"optimizer__betas": "[0.9, 1.0]"}, r"optimizer\.betas is \(0\.9, 1\.0\)"),
        ({"optimizer__epsilon": 0}, r"optimizer\.epsilon is 0"),
        ({"task__test_examples": 0}, r"task\.test_examples is 0"),
        ({"task__seed": -1}, r"task\.seed is -1"),
        ({"run__seed": -1}, r"run\.seed is -1"),
        ({"run__threads": 0}, r"run\.threads is 0"),
        ({"run__resume": True, "run__overwrite": True}, r"run\.resume and run\.overwrite"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        tiny_config(tmp_path, **changes)


def test_an_unquoted_no_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {mixed_precision: no}")
    with pytest.raises(UsageError, match=r"training\.mixed_precision: .*Got value: False.* write it in quotes"):
        parse_config([*arguments(tmp_path), "--config", str(file)])


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.output_dir"):
        parse_config([])
    with pytest.raises(UsageError, match=r"model\.architecture is missing"):
        parse_config(["--run.output_dir", "x", "--task.name", "mqar", "--model.hidden_size", "8"])
    with pytest.raises(UsageError, match=r"does not exist: .*none\.yaml"):
        parse_config(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(UsageError, match="one of the sections `task`, `text` and `labelled`"):
        parse_config(["--run.output_dir", "x", "--model.architecture", "ssd"])
    with pytest.raises(UsageError, match="one of the sections `task`, `text` and `labelled`"):
        parse_config([*arguments(tmp_path), "--text.files", "[a.txt]"])


TEXT = {"run.output_dir": "x", "model.architecture": "ssd", "text.files": "[a.txt]"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text.files": "[]"}, r"text\.files is \[\] and text\.dataset is None: give one"),
        ({"text.dataset": "owner/name"}, r"text\.dataset is 'owner/name': give one of them, not both"),
        ({"text.block_size": 0}, r"text\.block_size is 0: use at least 2"),
        ({"text.evaluation_rows": 0}, r"text\.evaluation_rows is 0"),
        ({"text.streaming": "true"}, r"text\.evaluation_rows is None: a stream needs a number"),
        ({"text.tokenizer": "train"}, r"text\.vocab_size is None: give the number of tokens"),
        ({"text.vocab_size": 99}, r"text\.vocab_size is 99: only the tokenizer \"train\" has it"),
        ({"text.tokenizer_documents": 9}, r'text\.tokenizer_documents is 9: only the tokenizer "train"'),
        ({"text.validation_fraction": 0}, r"text\.validation_fraction is 0"),
        ({"text.test_fraction": 0.96}, r"text\.test_fraction is 0\.96: leave"),
        (
            {"text.streaming": "true", "text.evaluation_rows": 2, "text.deduplicate": "true"},
            r"text\.deduplicate is True: not with text\.streaming",
        ),
    ],
)
def test_text_that_makes_no_sense_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_config([f"--{name}={value}" for name, value in (TEXT | changes).items()])


def test_differences_name_section_and_field(tmp_path: Path) -> None:
    old, new = (config_to_dict(tiny_config(tmp_path, training__batch_size=size)) for size in (8, 16))
    assert differences(old, new) == ["training.batch_size: 8 -> 16"]
    assert differences(old, old) == []


def test_every_key_is_documented() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TrainConfig, skip={"task", "text", "labelled"})
    parser.add_class_arguments(TaskConfig, "task")
    parser.add_class_arguments(TextConfig, "text")
    parser.add_class_arguments(LabelledConfig, "labelled")
    documented = {action.dest for action in parser._actions if action.help}
    assert set(known_keys()) <= documented


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_yaml_has_a_comment_above_each_key(file: Path) -> None:
    lines = file.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\s*\w+:", line):
            assert above.lstrip().startswith("#"), f"no comment above {line.strip()!r}"


FEW = {
    "schedule.warmup_steps": 0,
    "training.batch_size": 2,
    "training.eval_batch_size": 2,
    "training.gradient_accumulation_steps": 1,
    "training.mixed_precision": "no",
    "training.max_steps": 2,
    "training.log_every": 1,
    "tracker.name": "none",
}
FEW_EXAMPLES = {"task.train_examples": 4, "task.validation_examples": 2, "task.test_examples": 2}
FEW_TOKENS = {
    "text.files": f"[{ROOT / 'README.md'}]",
    "text.separator": "",
    "text.dataset": "null",
    "text.dataset_config": "null",
    "text.streaming": "false",
    "text.tokenizer": "bytes",
    "text.vocab_size": "null",
    "text.block_size": 32,
    "text.evaluation_rows": 2,
    "text.validation_fraction": 0.2,
    "text.test_fraction": 0.2,
    "text.ngram_baseline": "false",
    "model.num_hidden_layers": 1,
}
"""What makes two steps on a page of this repository of any configuration; its width stays."""


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_yaml_trains(file: Path, tmp_path: Path) -> None:
    sections = yaml.safe_load(file.read_text())
    (section,) = sections.keys() & {"task", "text", "labelled"}
    few = FEW | {"task": FEW_EXAMPLES, "text": FEW_TOKENS}.get(section, {})
    if section == "labelled":
        few |= few_labelled(tmp_path, sections["labelled"]["data"])
    few["run.output_dir"] = tmp_path / "run"
    forget_accelerate()
    main(parse_config(["--config", str(file), *(f"--{key}={value}" for key, value in few.items())]))
    assert [record["step"] for record in metrics(tmp_path / "run", "train")] == [1, 2]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
