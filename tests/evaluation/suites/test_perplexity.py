"""Bits per byte, windows, recall tokens and their intervals, against loops over single tokens in float64."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dsf_models.hub.usage import UsageError
from dsf_models.tasks.text import byte_tokenizer, code_length
from evaluation.config import TextOptions
from evaluation.intervals import bootstrap
from evaluation.suites.perplexity import check_stride, completes_bigram, encode, read_texts, score, windows
from tests.contract import fresh
from tests.evaluation.helpers import evaluate, refused

TEXTS = ["abcabcabd, abcabd.", "Ein ganz anderer Text: äöü.", "x y x y x z", "short"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model of bytes, and the texts."""
    made = tmp_path_factory.mktemp("perplexity")
    tokenizer = byte_tokenizer()
    model = fresh("ssd", "default", vocab_size=len(tokenizer), pad_token_id=257, eos_token_id=256)
    model.save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    (made / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return made


def nats_of(model: PreTrainedModel, ids: list[int], context: int | None = None) -> list[float]:
    """-log p of each token but the first, one forward pass for each, over at most `context` tokens in front of it."""
    found = []
    for t in range(1, len(ids)):
        start = 0 if context is None else max(0, t - context)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:t]]), use_cache=False).logits[0, -1].double()
        found.append(float(-logits.log_softmax(-1)[ids[t]]))
    return found


def metrics(results: dict) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in results["models"][0]["metrics"]}


def test_bits_are_those_of_token_by_token_scoring(folder: Path, tmp_path: Path) -> None:
    results = evaluate(tmp_path / "out", folder / "model", suite="perplexity", text__files=folder / "texts.jsonl")
    model = fresh("ssd", "default", vocab_size=258, pad_token_id=257, eos_token_id=256)
    nats = [nats_of(model, [*text.encode(), 256]) for text in TEXTS]
    total = sum(map(sum, nats))
    expected = code_length(total, TEXTS, 258)
    found = metrics(results)
    assert found["bits per byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert found["bits per word"] == pytest.approx(expected.bits_per_word, rel=1e-5)
    assert found["word perplexity"] == pytest.approx(2**expected.bits_per_word, rel=1e-4)
    assert found["token perplexity"] == pytest.approx(math.exp(total / sum(map(len, nats))), rel=1e-5)
    documents = results["models"][0]["documents"]
    assert documents["nats"] == pytest.approx([sum(own) + math.log(258) for own in nats], abs=1e-3)
    assert documents["bytes"] == [len(text.encode()) for text in TEXTS]


def test_recall_tokens_complete_a_pair_that_has_stood_before(folder: Path, tmp_path: Path) -> None:
    results = evaluate(tmp_path / "out", folder / "model", suite="perplexity", text__files=folder / "texts.jsonl")
    model = fresh("ssd", "default", vocab_size=258, pad_token_id=257, eos_token_id=256)
    hits, others = [], []
    for text in TEXTS:
        ids = [*text.encode(), 256]
        for t, nats in enumerate(nats_of(model, ids), 1):
            earlier = {(ids[s - 1], ids[s]) for s in range(1, t)}
            (hits if (ids[t - 1], ids[t]) in earlier else others).append(nats)
    entries = {metric["name"]: metric for metric in results["models"][0]["metrics"]}
    assert entries["token perplexity, recall"]["counts"]["tokens"] == len(hits) > 10
    assert entries["token perplexity, recall"]["value"] == pytest.approx(math.exp(np.mean(hits)), rel=1e-5)
    assert entries["token perplexity, other"]["value"] == pytest.approx(math.exp(np.mean(others)), rel=1e-5)
    assert entries["share of recall tokens"]["value"] == pytest.approx(len(hits) / (len(hits) + len(others)))


def test_no_pair_counts_before_it_has_stood() -> None:
    assert completes_bigram(np.array([1, 2, 1, 2, 1, 1, 1])).tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert not completes_bigram(np.array([5])).any()


@pytest.mark.parametrize(("window", "stride"), [(None, None), (8, 4), (8, 7), (8, 1), (50, 25)])
@pytest.mark.parametrize("length", [2, 7, 8, 9, 23, 100])
def test_windows_score_each_token_once_with_enough_context(window: int | None, stride: int | None, length: int) -> None:
    ids = np.arange(length)
    scored = []
    for part in windows([ids], window, stride):
        assert window is None or len(part.ids) <= window
        assert (part.ids == ids[part.start : part.start + len(part.ids)]).all()
        scored += part.ids[part.first :].tolist()
        assert part.first >= 1 if part.start == 0 else part.first >= window - stride
    assert scored == list(range(1, length))


def test_a_window_of_stride_one_is_a_sliding_context() -> None:
    model = fresh("ssd", "default", vocab_size=20)
    ids = torch.randint(20, (30,)).tolist()
    tokens = score(model, list(windows([np.array(ids)], 6, 1)), 1, batch_size=7)
    assert tokens.nats.sum() == pytest.approx(sum(nats_of(model, ids, context=5)), rel=1e-5)
    assert tokens.count.sum() == tokens.count_at.sum() == 29


def test_the_batch_changes_nothing(folder: Path, tmp_path: Path) -> None:
    found = [
        metrics(
            evaluate(
                tmp_path / str(size),
                folder / "model",
                suite="perplexity",
                text__files=folder / "texts.jsonl",
                batch_size=size,
            )
        )
        for size in (1, 3)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_model_with_a_limit_is_read_in_windows(folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    results = evaluate(tmp_path / "out", tmp_path / "llama", suite="perplexity", text__files=folder / "texts.jsonl")
    assert results["models"][0]["reading"]["window"] == 8
    assert results["models"][0]["reading"]["stride"] == 4
    curve = results["models"][0]["curves"][0]
    assert [point["x"] for point in curve["points"]] == ["1", "2–3", "4–7", "8–15", "16–31"]


def test_a_tokenizer_that_begins_texts_pays_for_the_first_token() -> None:
    tokenizer = byte_tokenizer()
    ids, has_start = encode(tokenizer, ["ab"], end_of_text=False)
    assert (ids[0].tolist(), has_start) == ([97, 98], False)
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|pad|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 257)]
    )
    ids, has_start = encode(tokenizer, ["ab"], end_of_text=True)
    assert (ids[0].tolist(), has_start) == ([257, 97, 98, 256], True)


def test_the_interval_covers_the_truth_in_95_of_100_experiments() -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        sizes = rng.integers(1, 20, 60)
        sums = np.column_stack([rng.gamma(2.0, sizes / 2.0), sizes])
        low, high = bootstrap(sums, lambda s: s[:, 0] / s[:, 1])
        covered.append(low <= 1 <= high)
    assert 0.9 <= np.mean(covered) <= 0.985
    assert bootstrap(np.ones((1, 2)), lambda s: s[:, 0]) is None


def test_what_cannot_be_predicted_is_refused(folder: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", folder / "model"
    texts = folder / "texts.jsonl"
    assert "--text.files is missing" in refused(out, model, suite="perplexity")
    assert "No file at" in refused(out, model, suite="perplexity", text__files=folder / "none.txt")
    stride = refused(out, model, suite="perplexity", text__files=texts, text__stride=3)
    assert "give --text.window too" in stride
    assert "did you mean 'text.files'" in refused(out, model, suite="perplexity", text__file=texts).lower()
    assert "does not read" in refused(out, model, suite="perplexity", text__files=texts, sizes__num_pairs=3)
    fresh("ssd", "default", vocab_size=258, label_alignment="same").save_pretrained(tmp_path / "same")
    assert "answer at each position" in refused(out, tmp_path / "same", suite="perplexity", text__files=texts)
    fresh("ssd", "default", vocab_size=258).save_pretrained(tmp_path / "bare")
    assert "has no tokenizer" in refused(out, tmp_path / "bare", suite="perplexity", text__files=texts)
    with pytest.raises(UsageError, match="below the window"):
        check_stride(8, 8)


def test_some_documents_are_chosen_at_random(tmp_path: Path) -> None:
    file = tmp_path / "sorted.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i}"}) for i in range(1000)))
    options = TextOptions(files=str(file))
    chosen = [int(text) for text in read_texts(options, 50)]
    assert (len(set(chosen)), chosen) == (50, sorted(chosen))
    assert 300 < np.mean(chosen) < 700
    assert read_texts(options, 50) == read_texts(options, 50)
    assert read_texts(options, None) == read_texts(options, 5000) == [str(i) for i in range(1000)]
