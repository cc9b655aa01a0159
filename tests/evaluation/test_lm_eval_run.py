"""The evaluation harness on tasks of the zoo: prompts survive tokenizers, scores are those of the model itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dsf_models.hub.usage import UsageError
from dsf_models.tasks import get_task
from dsf_models.tasks.words import render, word_tokenizer
from evaluation.lm_eval_tasks import generators
from tests.consumers.tokenizers_of_text import trained_tokenizer
from tests.evaluation.helpers import save_trained_on

SIZES = {
    "mqar": {"vocab_size": 32, "sequence_length": 24, "num_pairs": 3},
    "needle": {"vocab_size": 32, "sequence_length": 40, "value_tokens": 2},
    "copy": {"vocab_size": 12, "sequence_length": 16, "min_length": 3, "max_length": 7},
}
TASKS = {"mqar": "mqar", "needle": "needle", "copy": "input_copying"}


def documents(name: str, **more: Any) -> list[dict]:
    return getattr(generators, name)(sizes=SIZES[name], num_examples=10, seed=3, **more)["test"].to_list()


@pytest.mark.parametrize("name", TASKS)
def test_documents_are_rows_of_the_task(name: str) -> None:
    task = get_task(TASKS[name], **SIZES[name])
    columns = task.generate("test", 3, 0, 10)
    for number, document in enumerate(documents(name, version=1.0)):
        row, labels = columns["input_ids"][number], columns["labels"][number]
        scored = np.flatnonzero(labels != -100)
        place = scored[number % 3] if name == "mqar" else scored[0]
        assert document["context"] == render(row[: place + 1])
        assert document["target"] == render(labels[[place]] if name == "mqar" else labels[scored])
        if name == "mqar":
            assert document["target"] in document["choices"]
            assert len(document["choices"]) == 3


def test_sizes_of_no_task_and_answers_in_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="no such size; did you mean num_pairs"):
        generators.mqar(sizes={"num_pair": 3})
    sizes = {"vocab_size": 64, "sequence_length": 128, "variant": "multiquery", "num_needles": 2}
    with pytest.raises(ValueError, match="not one piece of text"):
        generators.needle(sizes=sizes)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_survive_tokenizers(name: str) -> None:
    """Ids come back from the tokenizer of words, and no token of another tokenizer reaches over the last space."""
    words, others = word_tokenizer(SIZES[name]["vocab_size"]), trained_tokenizer()
    for document in documents(name):
        context, target = document["context"], " " + document["target"]
        ids = [int(word[1:]) for word in (context + target).split()]
        assert words(context + target).input_ids == ids
        assert others(context + target).input_ids == others(context).input_ids + others(target).input_ids


@pytest.fixture(scope="module")
def harness() -> Any:
    pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")
    from evaluation import lm_eval_run

    return lm_eval_run


def metrics(results: dict) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in results["models"][0]["metrics"]}


def test_the_harness_scores_a_checkpoint_as_it_answers_its_task(harness: Any, tmp_path: Path) -> None:
    """Its task, sizes and seed are those of its record, and batches of 1 and 8 score alike."""
    folder = save_trained_on(tmp_path / "ssd", "ssd", "mqar", **SIZES["mqar"])
    words = ["--model", str(folder), "--tasks", "dsf_mqar", "--num_examples", "40", "--output_dir"]
    one, eight = (harness.main([*words, str(tmp_path / f"out{size}"), "--batch_size", str(size)]) for size in (1, 8))
    assert metrics(one) == metrics(eight)
    columns = get_task("mqar", **SIZES["mqar"]).generate("test", 7, 0, 40)
    model = AutoModelForCausalLM.from_pretrained(folder)
    right, among = [], []
    for number, (row, labels) in enumerate(zip(columns["input_ids"], columns["labels"], strict=True)):
        place = np.flatnonzero(labels != -100)[number % 3]
        with torch.no_grad():
            logits = model(torch.tensor(row[None, : place + 1]).long()).logits[0, -1]
        right.append(int(logits.argmax()) == labels[place])
        shown = row[1:6:2]
        among.append(int(shown[int(logits[torch.tensor(shown).long()].argmax())]) == labels[place])
    assert metrics(one) == {"dsf_mqar: acc": np.mean(among), "dsf_mqar: exact_match": np.mean(right)}
    suite = one["suite"]
    assert suite["tasks"]["dsf_mqar"]["documents"] == 40
    assert len(suite["data_hash"]) == len(hashlib.sha256().hexdigest())
    assert json.loads((tmp_path / "out1" / "results.json").read_text())["suite"] == suite
    with pytest.raises(UsageError, match="did you mean dsf_mqar"):
        harness.main(["--model", str(folder), "--tasks", "dsf_mqr", "--output_dir", str(tmp_path / "none")])


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_on_a_model_that_reads_text(harness: Any, tmp_path: Path, name: str) -> None:
    from tests.consumers.test_serve import saved_model

    folder = saved_model("ssd", tmp_path / "model")
    words = ["--model", str(folder), "--tasks", f"dsf_{name}", "--sizes", json.dumps(SIZES[name])]
    one, eight = (
        metrics(
            harness.main(
                [*words, "--limit", "12", "--batch_size", str(size), "--output_dir", str(tmp_path / f"out{size}")]
            )
        )
        for size in (1, 8)
    )
    assert one == pytest.approx(eight, rel=1e-5)


@pytest.mark.slow
def test_smollm2_scores_alike_in_batches_of_1_and_8(harness: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.hub.test_conversion_of_pretrained import saved_smollm2

    folder = tmp_path_factory.mktemp("smollm2")
    model = saved_smollm2(folder / "model")
    words = ["--model", str(model), "--tasks", "dsf_mqar", "dsf_needle", "dsf_copy", "--limit", "16"]
    one, eight = (
        harness.main([*words, "--batch_size", str(size), "--output_dir", str(folder / f"out{size}")]) for size in (1, 8)
    )
    assert metrics(one) == pytest.approx(metrics(eight), rel=1e-4)
    assert one["models"][0]["architecture"] == "llama"
