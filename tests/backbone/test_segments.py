"""A long sequence is mixed in segments, and nothing but memory and time tells."""

import pytest
import torch

from dsf_models.backbone import layers
from tests import contract
from tests.contract import every, shared


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every sequence of more than four tokens."""
    monkeypatch.setattr(layers, "SEGMENT_TOKENS", 4)
    monkeypatch.setattr(layers, "SEGMENT_NUMBERS", 1)


def inputs(kind):
    rows = contract.sequences()
    if kind == "packed":
        return contract.packed(rows)["position_ids"]
    mask = contract.padding_mask(kind)
    return {"input_ids": contract.place(rows, mask, contract.PAD), "attention_mask": mask}


@every("default", "full")
@pytest.mark.parametrize("kind", ["left", "interior", "packed"])
def test_outputs_and_gradients(name, case, kind, short_segments, monkeypatch):
    model, given = shared(name, case), inputs(kind)
    cut = model(**given, labels=given["input_ids"], use_cache=False)
    found = contract.gradients(model, cut.loss)
    monkeypatch.undo()
    whole = model(**given, labels=given["input_ids"], use_cache=False)
    real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    contract.assert_close(cut.logits[real], whole.logits[real], 1e-10, "logits")
    contract.assert_gradients_close(found, contract.gradients(model, whole.loss), 1e-10)


@every("default", "full")
def test_prompts_that_fill_a_cache(name, case, short_segments):
    contract.assert_cache_contract(shared(name, case))
    for side in ("left", "interior"):
        contract.assert_cached_padding_contract(shared(name, case), side, 1e-10)


def test_gradients_flow_across_segments_that_fill_a_cache(short_segments, monkeypatch):
    model, given = shared("ssd", "full"), {"input_ids": torch.stack(contract.sequences((11, 11)))}
    cut = model(**given, labels=given["input_ids"], use_cache=True)
    found = contract.gradients(model, cut.loss)
    monkeypatch.undo()
    whole = model(**given, labels=given["input_ids"], use_cache=False)
    contract.assert_gradients_close(found, contract.gradients(model, whole.loss), 1e-10)
