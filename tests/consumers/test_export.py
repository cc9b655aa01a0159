"""Exported graphs give what the model gives, at sizes that they were not traced with."""

import pytest
import torch
from torch.export import Dim
from transformers import DynamicCache

from tests.contract import VOCAB, fresh, others_slowly

SIZES = ((2, 7), (3, 19), (1, 70))
three_fast = others_slowly()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.feature("torch.export")
@three_fast
def test_an_exported_graph_takes_any_batch_and_length(name):
    model = fresh(name, "default")
    graph = torch.export.export(
        model,
        (),
        {"input_ids": tokens(2, 7), "use_cache": False},
        strict=False,
        dynamic_shapes={"input_ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "use_cache": None},
    ).module()
    with torch.no_grad():
        for size in SIZES:
            ids = tokens(*size)
            found = graph(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(found, model(ids, use_cache=False).logits, rtol=1e-4, atol=5e-5)


@pytest.mark.feature("torch.export")
@three_fast
def test_a_graph_of_one_size_is_exact(name):
    model = fresh(name, "default")
    ids = tokens(2, 7)
    graph = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False).module()
    other = ids.flip(1)
    torch.testing.assert_close(graph(input_ids=other, use_cache=False).logits, model(other, use_cache=False).logits)


@pytest.mark.feature("ONNX export")
@three_fast
def test_onnx_runtime_prefills_and_decodes(name):
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = fresh(name, "default")
    prompt = {"input_ids": tokens(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    exported = OnnxExporter().export_for_generation(model, prompt, config=OnnxConfig(dynamic=True))
    for batch, length in ((2, 7), (3, 19)):
        ids = tokens(batch, length + 3)
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        for start, stop in ((0, length), (length, length + 1), (length + 1, length + 2)):
            runner = exported.runners["prefill" if start == 0 else "decode"]
            inputs = {
                "input_ids": ids[:, start:stop],
                "attention_mask": torch.ones(batch, stop, dtype=torch.long),
                "position_ids": torch.arange(start, stop).expand(batch, -1),
                "cache": cache,
                "past_key_values": cache,
                "use_cache": True,
            }
            outputs = runner(**{key: value for key, value in inputs.items() if key in runner.metadata.kwargs})
            torch.testing.assert_close(outputs.logits, expected[:, start:stop], rtol=1e-3, atol=1e-4)
            cache = outputs["cache"] if "cache" in outputs else outputs["past_key_values"]
