import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries

from dsf_models import list_architectures
from dsf_models.analysis import state_bytes
from dsf_models.backbone import get_architecture
from dsf_models.hub.card import (
    DSF_PAPER,
    HEADS,
    TOKEN_SELECTION_PAPER,
    CardFacts,
    Metric,
    TrainingFacts,
    eval_results,
    folder_facts,
    model_card,
)
from dsf_models.hub.publish import publish, publishable_files, write_card
from dsf_models.hub.usage import UsageError
from tests.contract import fresh, small_config

TRAINING = TrainingFacts(
    task="mqar",
    task_sentence="Answer each key with its value.",
    task_sizes={"sequence_length": 64, "num_pairs": 4},
    metrics=[
        Metric(name="accuracy", split="test", value=0.9912, chance=0.0078, best_trivial=0.2882),
        Metric(name="row accuracy", split="test", value=0.97),
    ],
    seed=3,
    data_seed=5,
    data_hash="d7cad69b",
    steps=200,
    examples_seen=12_800,
    versions={"torch": "2.13.0", "transformers": "5.24.0"},
    commit="27a71694",
    uncommitted_changes=False,
)
FACTS = CardFacts(
    model_name="ssd on mqar",
    architecture="ssd",
    transition="exp(-Δ_i a) I",
    input_matrix="Δ_i ⊗ b_i",
    output_matrix="I ⊗ c_i^T",
    parameters=67_648,
    state_bytes={1024: 1792, 65536: 1792},
    label_alignment="same",
    training=TRAINING,
)


def trained_otherwise(**changes) -> CardFacts:
    return replace(FACTS, training=replace(TRAINING, **changes))


def front_matter(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_front_matter_is_what_the_hub_reads() -> None:
    data = front_matter(model_card(FACTS))
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert {"dsf", "ssd"} <= set(data["tags"])
    assert data["metrics"] == ["accuracy"]
    measured = data["model-index"][0]["results"][0]["metrics"]
    assert [entry["value"] for entry in measured] == [0.9912, 0.97]


@pytest.mark.parametrize(
    "statement",
    [
        "| accuracy | test | 99.12 % | 0.78 % | 28.82 % |",
        "| row accuracy | test | 97.00 % | – | – |",
        "67,648 parameters",
        "State bytes per sequence: 1,792, however long it is.",
        "the answer at position t itself",
        "* Λ_i = exp(-Δ_i a) I\n* B_i = Δ_i ⊗ b_i\n* C_i = I ⊗ c_i^T\n",
        "Answer each key with its value.",
        "sequence_length 64, num_pairs 4",
        "Seed 3; data seed 5",
        "`d7cad69b`",
        "200 optimiser steps, 12,800 examples",
        "`27a71694`.",
        "torch 2.13.0, transformers 5.24.0",
        "arXiv:2405.15731",
        "import dsf_models",
        "AutoModelForCausalLM.from_pretrained(",
    ],
)
def test_card_states(statement: str) -> None:
    assert statement in model_card(FACTS)


def test_card_is_honest_about_its_code() -> None:
    assert "with uncommitted changes" in model_card(trained_otherwise(uncommitted_changes=True))
    assert "not under version control" in model_card(trained_otherwise(commit=None))


def test_second_paper_is_cited_only_where_it_is_relevant() -> None:
    assert "arXiv:2405.19036" not in model_card(FACTS)
    assert "arXiv:2405.19036" in model_card(replace(FACTS, papers=(DSF_PAPER, TOKEN_SELECTION_PAPER)))


def test_card_is_a_pure_function_of_its_facts() -> None:
    assert model_card(FACTS) == model_card(replace(FACTS))


def test_evaluation_results_are_what_the_hub_reads() -> None:
    accuracy, rows = parse_eval_result_entries(yaml.safe_load(eval_results(TRAINING)))
    assert isinstance(accuracy, EvalResultEntry)
    assert (accuracy.dataset_id, accuracy.task_id, accuracy.value) == ("mqar", "test_accuracy", 0.9912)
    assert (rows.dataset_id, rows.task_id, rows.value) == ("mqar", "test_row_accuracy", 0.97)
    assert "chance 0.78 %, best trivial rule 28.82 %; data hash d7cad69b" in accuracy.notes


@pytest.mark.feature("Model card")
@pytest.mark.parametrize("name", list_architectures())
def test_a_folder_alone_makes_a_card(name: str, tmp_path: Path) -> None:
    architecture, config = get_architecture(name), small_config(name)
    config.architectures = [architecture.causal_lm_class.__name__]
    config.save_pretrained(tmp_path)
    write_card(tmp_path, "alice/model")
    card = ModelCard.load(tmp_path / "README.md")
    assert {"dsf", name} <= set(card.data.tags)
    found = (card.data.library_name, card.data.pipeline_tag, card.data.license, card.data.model_name)
    assert found == ("transformers", "text-generation", "apache-2.0", "model")
    for statement in (
        f"`{name}` with {fresh(name).num_parameters():,} parameters",
        f"* Λ_i = {architecture.transition}\n* B_i = {architecture.input_matrix}\n",
        f"* C_i = {architecture.output_matrix}\n",
        f"State bytes per sequence: {state_bytes(config, 1024):,}",
        'AutoModelForCausalLM.from_pretrained("alice/model")',
        DSF_PAPER,
        TOKEN_SELECTION_PAPER,
    ):
        assert statement in card.text


@pytest.mark.parametrize("head", HEADS)
def test_a_card_says_what_the_model_does(head: str, tmp_path: Path) -> None:
    model = fresh("ssd", head=head)
    model.save_pretrained(tmp_path)
    facts = folder_facts(tmp_path)
    assert (facts.head, facts.parameters) == (head, model.num_parameters())
    card = model_card(facts)
    assert front_matter(card)["pipeline_tag"] == HEADS[head].pipeline_tag
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert type(names["model"]) is type(model)


def test_a_card_says_whether_the_code_is_beside_the_weights(tmp_path: Path) -> None:
    fresh("ssd").save_pretrained(tmp_path, include_code=True)
    assert "trust_remote_code=True" in model_card(folder_facts(tmp_path))
    fresh("ssd").save_pretrained(tmp_path, include_code=False)
    assert "trust_remote_code" not in model_card(folder_facts(tmp_path))


def test_a_card_that_is_there_is_kept(tmp_path: Path) -> None:
    small_config("ssd").save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README\.md exists: edit it, or remove it"):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors"], "config.json does not exist"),
        (["config.json"], r"holds no \*\.safetensors"),
        (["config.json", "model.safetensors", "pytorch_model.bin"], "pytorch_model.bin: pickled weights"),
        (["config.json", "model.safetensors", "last.ckpt"], "last.ckpt: pickled weights"),
    ],
)
def test_a_folder_that_others_cannot_load_safely_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=message):
        publish(tmp_path, "alice/model")


def test_a_model_of_another_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="model_type='llama' is no architecture of dsf_models"):
        publish(tmp_path, "alice/model")


def test_only_what_belongs_to_a_model_is_uploaded(tmp_path: Path) -> None:
    wanted = [".eval_results/mqar.yaml", "README.md", "config.json", "modeling_dsf.py", "task.json", "tokenizer.json"]
    wanted += ["generation_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["optimizer.pt", "training_args.bin", ".env", "notes.txt", "checkpoint-7/model.safetensors", ".git/config"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert publishable_files(tmp_path) == sorted(wanted)
