import re
from dataclasses import replace

import pytest
import yaml

from dsf_models.hub.card import DSF_PAPER, TOKEN_SELECTION_PAPER, CardFacts, Metric, model_card

FACTS = CardFacts(
    model_name="ssd on mqar",
    architecture="ssd",
    transition="exp(-Δ_i a) I",
    input_matrix="Δ_i ⊗ b_i",
    output_matrix="I ⊗ c_i^T",
    parameters=67_648,
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
    assert "with uncommitted changes" in model_card(replace(FACTS, uncommitted_changes=True))
    assert "not under version control" in model_card(replace(FACTS, commit=None))


def test_second_paper_is_cited_only_where_it_is_relevant() -> None:
    assert "arXiv:2405.19036" not in model_card(FACTS)
    assert "arXiv:2405.19036" in model_card(replace(FACTS, papers=(DSF_PAPER, TOKEN_SELECTION_PAPER)))


def test_card_is_a_pure_function_of_its_facts() -> None:
    assert model_card(FACTS) == model_card(replace(FACTS))
