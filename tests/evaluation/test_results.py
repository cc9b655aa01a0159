"""The one form of results: what every suite writes, what is missing, and what goes into a checkpoint and its card."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries

from dsf_models.cli import main as command
from dsf_models.hub.evaluation_record import EVALUATIONS, EvaluationRecord
from dsf_models.hub.publish import publishable_files, write_card
from dsf_models.hub.usage import UsageError
from evaluation.evaluate import record
from evaluation.results import read_results, what_is_wrong
from tests.evaluation.helpers import evaluate, refused, save_trained_on

SIZES = {"sequence_length": 16, "num_pairs": 2, "vocab_size": 16}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A checkpoint with a card, and its evaluation, which was recorded."""
    folder = tmp_path_factory.mktemp("results")
    model = save_trained_on(folder / "ssd", "ssd", "mqar", **SIZES)
    write_card(model, "alice/model")
    return folder, evaluate(folder / "out", model, suite="mqar", record="true")


def test_every_result_says_what_it_is(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    assert read_results(folder / "out" / "results.json") == json.loads(json.dumps(results))
    (model,) = results["models"]
    accuracy = model["metrics"][0]
    assert (accuracy["name"], accuracy["value"]) == ("accuracy", model["accuracy"]["accuracy"])
    assert accuracy["interval"] == model["accuracy"]["interval"]
    assert [point["value"] for point in model["curves"][0]["points"]] == [
        entry["accuracy"] for entry in model["by"]["gap"]
    ]


@pytest.mark.parametrize("path", ["schema", "interval", "environment", "suite.data_hash", "models.0.parameters"])
def test_what_is_missing_is_named(path: str, evaluated: tuple[Path, dict], tmp_path: Path) -> None:
    content = copy.deepcopy(evaluated[1])
    place = content
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part) if part.isdigit() else part]
    del place[last]
    assert last in what_is_wrong(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="is no evaluation of this version"):
        read_results(tmp_path / "results.json")


def test_a_checkpoint_keeps_what_was_found(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    (kept,) = EvaluationRecord.load_all(folder / "ssd")
    assert [metric.to_dict() for metric in kept.metrics] == results["models"][0]["metrics"]
    assert (kept.data_hash, kept.seed, kept.suite) == (results["suite"]["data_hash"], 7, "mqar")
    assert kept.environment == results["environment"]
    record(results)
    assert len(EvaluationRecord.load_all(folder / "ssd")) == 1, "the same suite on the same data stands once"
    names = publishable_files(folder / "ssd")
    assert {EVALUATIONS, f".eval_results/{kept.key}.yaml", "README.md"} <= set(names)


def test_the_card_and_its_metadata_carry_it(evaluated: tuple[Path, dict], capsys: pytest.CaptureFixture) -> None:
    folder, results = evaluated
    metric = results["models"][0]["metrics"][0]
    low, high = metric["interval"]
    row = f"| mqar | mqar | accuracy | test | {100 * metric['value']:.2f} % | {100 * low:.2f} % to {100 * high:.2f} % |"
    card = ModelCard.load(folder / "ssd" / "README.md")
    assert row in card.text
    assert card.text.index("## Evaluation") < card.text.index("## Use")
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == metric["value"]
    assert found["accuracy"].metric_args == {"interval_95": [low, high]}
    assert found["accuracy"].dataset_args == {"data_hash": results["suite"]["data_hash"]}
    assert "accuracy" in card.data.metrics
    (folder / "ssd" / "README.md").rename(folder / "README.md")
    try:
        assert command(["card", str(folder / "ssd")]) == 0
        assert row in capsys.readouterr().out
    finally:
        (folder / "README.md").rename(folder / "ssd" / "README.md")
    (file,) = (folder / "ssd" / ".eval_results").glob("*.yaml")
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entries[0].dataset_id, entries[0].value) == ("mqar", metric["value"])
    assert "95 % interval" in entries[0].notes


def test_another_evaluation_joins_the_first(evaluated: tuple[Path, dict], tmp_path: Path) -> None:
    """What training or a person wrote stays; the section of evaluations is renewed."""
    model = save_trained_on(tmp_path / "ssd", "ssd", "mqar", **SIZES)
    text = "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task: {type: text-generation}\n"
    text += (
        "    dataset: {name: other, type: other}\n    metrics: [{type: accuracy, value: 0.5}]\n---\n# Mine\n\nWords.\n"
    )
    (model / "README.md").write_text(text)
    evaluate(tmp_path / "one", model, record="true")
    evaluate(tmp_path / "two", model, suite="mqar", sizes__num_pairs=3, record="true")
    card = ModelCard.load(model / "README.md")
    assert (card.data.license, card.data.model_name) == ("mit", "mine")
    assert [result.dataset_name for result in card.data.eval_results] == ["other", *["mqar"] * 4]
    assert card.text.count("## Evaluation") == 1
    assert card.text.startswith("# Mine\n\nWords.")
    assert len(re.findall(r"^\| mqar \| mqar \| accuracy", card.text, re.MULTILINE)) == 2
    assert len(EvaluationRecord.load_all(model)) == 2


def test_only_folders_with_sound_records_are_written_to(tmp_path: Path) -> None:
    model = save_trained_on(tmp_path / "ssd", "ssd", "mqar", **SIZES)
    (model / EVALUATIONS).write_text("{")
    message = refused(tmp_path / "out", model, record="true")
    assert "evaluations.json holds no evaluations" in message
    (model / EVALUATIONS).unlink()
    (model / "README.md").write_text("---\nlicense: [mit\n---\n# Mine\n")
    assert "README.md has a damaged front matter" in refused(tmp_path / "out", model, record="true")
    assert "is no folder here" in refused(tmp_path / "out", "nobody/nothing", suite="mqar", record="true")


def test_kept_results_have_the_form_of_this_version() -> None:
    files = (Path(__file__).parents[2] / "evaluation" / "results").rglob("results.json")
    ours = [file for file in files if "schema" in json.loads(file.read_text(encoding="utf-8"))]
    assert ours
    for file in ours:
        content = read_results(file)
        assert content["environment"]["uncommitted_changes"] is False, f"{file} was made by code that nobody can find"


def test_the_harness_scored_alike_in_batches_of_1_and_8() -> None:
    folder = Path(__file__).parents[2] / "evaluation" / "results"
    for name in ("ssd", "smollm2"):
        files = [folder / f"harness_{name}_batch_{size}" / "results.json" for size in (1, 8)]
        metrics = [read_results(file)["models"][0]["metrics"] for file in files]
        one, eight = ({metric["name"]: metric["value"] for metric in own} for own in metrics)
        assert one == pytest.approx(eight, rel=1e-5)
