"""EleutherAI's evaluation harness scores a saved model as the model itself scores: by path, nothing else said."""

import pytest
import torch

from dsf_models import list_architectures
from tests.consumers.test_serve import saved_model
from tests.consumers.tokenizers_of_text import english_text, trained_tokenizer
from tests.contract import fresh

pytestmark = pytest.mark.slow
CONTEXT, CONTINUATION = "The state is", " a matrix of numbers"


def log_likelihood(model, ids: list[int], start: int) -> float:
    """Σ log p(ids[i] | ids[:i]) for i >= start."""
    with torch.no_grad():
        scores = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.mark.feature("lm-evaluation-harness")
@pytest.mark.parametrize("name", list_architectures())
def test_the_harness_scores_as_the_model_does(name, tmp_path):
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    harness = pytest.importorskip("lm_eval.models.huggingface").HFLM
    folder, tokenizer = saved_model(name, tmp_path / "model"), trained_tokenizer()
    model = fresh(name, "default", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    lm = harness(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, max_length=10_000)

    pairs = [(CONTEXT, CONTINUATION), (CONTEXT + " not", " a vector")]
    requests = [instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    for (context, continuation), (found, _) in zip(pairs, lm.loglikelihood(requests, disable_tqdm=True), strict=True):
        start = len(tokenizer(context).input_ids)
        ids = tokenizer(context + continuation).input_ids
        assert found == pytest.approx(log_likelihood(model, ids, start), rel=1e-4)

    long_text = english_text()[:8_000]
    ids = [tokenizer.bos_token_id, *tokenizer(long_text).input_ids]
    assert len(ids) > 2_100, "the text must be longer than the harness's own limit of 2,048 tokens"
    rolling = instance("loglikelihood_rolling", {}, (long_text,), 0)
    (found,) = lm.loglikelihood_rolling([rolling], disable_tqdm=True)
    assert found == pytest.approx(log_likelihood(model, ids, 1), rel=1e-4)

    asked = instance("generate_until", {}, (CONTEXT, {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False}), 0)
    (text,) = lm.generate_until([asked], disable_tqdm=True)
    prompt = tokenizer(CONTEXT, return_tensors="pt")
    new = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert text == tokenizer.decode(new, skip_special_tokens=True)
