"""transformers' pipelines take every architecture: what comes out is what model and tokenizer give by themselves."""

import functools

import pytest
import torch
from transformers import pipeline

from dsf_models import list_architectures
from tests.consumers.tokenizers_of_text import english_text, trained_tokenizer
from tests.contract import fresh

PIPELINES = {
    "text-generation": "causal_lm",
    "text-classification": "sequence_classification",
    "token-classification": "token_classification",
    "feature-extraction": "model",
}
NEW = {"max_new_tokens": 6, "do_sample": False}
each_architecture = pytest.mark.parametrize("name", list_architectures())


def texts() -> list[str]:
    """Real sentences of several lengths."""
    lines = [line for line in english_text().splitlines() if line[:1].isalpha()]
    return [lines[0][:40], lines[1][:12], lines[2][:27]]


@functools.cache
def pipe(task: str, name: str):
    tokenizer = trained_tokenizer()
    model = fresh(name, "default", PIPELINES[task], vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2)
    return pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def hidden(name: str, text: str, task: str) -> torch.Tensor:
    """What the pipeline's model gives for one text alone."""
    one = pipe(task, name)
    with torch.no_grad():
        return one.model(**one.tokenizer(text, return_tensors="pt"))


@pytest.mark.feature("pipeline()")
@each_architecture
def test_text_generation(name):
    generator = pipe("text-generation", name)
    for text in texts():
        ids = generator.tokenizer(text, return_tensors="pt")
        expected = generator.tokenizer.decode(generator.model.generate(**ids, **NEW)[0], skip_special_tokens=True)
        assert generator(text, **NEW)[0]["generated_text"] == expected
    alone = [generator(text, **NEW)[0] for text in texts()]
    together = generator(texts(), batch_size=3, **NEW)
    assert [one[0] for one in together] == alone, "a batch is not its texts alone"


@pytest.mark.feature("pipeline()")
@each_architecture
def test_text_generation_from_messages(name):
    generator = pipe("text-generation", name)
    chats = [[{"role": "user", "content": text}] for text in texts()]
    answers = generator(chats, batch_size=3, **NEW)
    for chat, answer in zip(chats, answers, strict=True):
        prompt = generator.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = generator.model.generate(**prompt, **NEW)[0, prompt["input_ids"].shape[1] :]
        expected = generator.tokenizer.decode(new, skip_special_tokens=True)
        assert answer[0]["generated_text"] == [*chat, {"role": "assistant", "content": expected}]


@pytest.mark.feature("pipeline()")
@each_architecture
def test_text_classification(name):
    classifier = pipe("text-classification", name)
    together = classifier(texts(), batch_size=3, top_k=None)
    for text, scores in zip(texts(), together, strict=True):
        expected = hidden(name, text, "text-classification").logits.softmax(-1)[0]
        found = {one["label"]: one["score"] for one in scores}
        for label, index in classifier.model.config.label2id.items():
            assert found[label] == pytest.approx(float(expected[index]), abs=1e-5)


@pytest.mark.feature("pipeline()")
@each_architecture
def test_token_classification(name):
    tagger = pipe("token-classification", name)
    together = tagger(texts(), batch_size=3, ignore_labels=[])
    for text, tokens in zip(texts(), together, strict=True):
        expected = hidden(name, text, "token-classification").logits.softmax(-1)[0].max(-1).values
        assert [token["score"] for token in tokens] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.feature("pipeline()")
@each_architecture
def test_feature_extraction(name):
    extractor = pipe("feature-extraction", name)
    together = extractor(texts(), batch_size=3, return_tensors="pt")
    for text, features in zip(texts(), together, strict=True):
        expected = hidden(name, text, "feature-extraction").last_hidden_state[0]
        # The pipeline keeps the pads, which stand on the left.
        torch.testing.assert_close(features[0, -len(expected) :], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.feature("Stop strings")
@each_architecture
def test_generation_ends_at_a_stop_string(name):
    generator = pipe("text-generation", name)
    ids = generator.tokenizer(texts()[0], return_tensors="pt")
    start, new = ids["input_ids"].shape[1], {"max_new_tokens": 24, "do_sample": False}
    whole = generator.model.generate(**ids, **new, min_new_tokens=24)
    words = [generator.tokenizer.decode(token) for token in whole[0, start:]]
    place = next(place for place, word in enumerate(words) if word.isascii() and word.isprintable())
    found = generator.model.generate(**ids, **new, stop_strings=[words[place]], tokenizer=generator.tokenizer)
    assert start < found.shape[1] <= start + place + 1
    assert torch.equal(found, whole[:, : found.shape[1]])
