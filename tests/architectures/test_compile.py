"""torch.compile of every architecture: whole graphs in training, and one graph for all decoding steps."""

import pytest
import torch
from transformers import CompileConfig, StaticCache

from tests import contract
from tests.contract import CACHE_NAME, every, fresh, gradients, sequences


def counting_backend():
    """Return a compiler backend that runs graphs as they are, and counts them in its attribute `graphs`.

    A function, not an object: `generate` copies its configuration deeply, and with it an object that counts.
    """

    def backend(graph, inputs, **options):
        backend.graphs += 1
        return graph.forward

    backend.graphs = 0
    return backend


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every("default", "full", "rope", "sliding")
@pytest.mark.parametrize("kind", ["plain", "padded", "packed"])
def test_training_step_is_one_graph(name, case, kind):
    model, backend = fresh(name, case).double().train(), counting_backend()
    mask = contract.padding_mask("left")
    ids = contract.place(sequences(), mask, contract.PAD)
    inputs = {
        "plain": {"input_ids": ids},
        "padded": {"input_ids": ids, "attention_mask": mask.long()},
        "packed": contract.packed(sequences())["position_ids"],
    }[kind]
    inputs["labels"] = inputs["input_ids"]
    expected = model(**inputs).loss
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    loss = compiled(**inputs).loss
    contract.assert_close(loss, expected, 1e-12)
    contract.assert_gradients_close(gradients(model, loss), gradients(model, expected), 1e-10)
    assert backend.graphs == 1


@every("default", "full", "rope", "sliding")
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left-padded"])
def test_decoding_is_one_graph(name, case, padded):
    """Generation with a static cache compiles its decoding step once, for all tokens."""
    model, backend = fresh(name, case).double(), counting_backend()
    lengths = (6, 4) if padded else (5, 5)
    mask = contract.padding_mask("left", lengths)
    prompts = {"ids": contract.place(sequences(lengths), mask, contract.PAD), "attention_mask": mask.long()}
    expected = contract.generate(model, **prompts, use_cache=False)
    config = CompileConfig(fullgraph=True, backend=backend)
    config._compile_all_devices = True
    found = contract.generate(model, **prompts, cache_implementation="static", compile_config=config)
    assert torch.equal(found, expected)
    assert backend.graphs == 1


@every("default", "full", "rope", "sliding")
@torch.no_grad()
def test_own_decoding_loop_is_one_graph(name, case):
    """So does a loop of one's own, whether it gives positions or not."""
    for with_positions in (False, True):
        model, backend, ids = fresh(name, case).double(), counting_backend(), torch.stack(sequences((12, 12)))
        whole = model(ids, use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=12)
        model(ids[:, :4], **{CACHE_NAME: cache})
        step = torch.compile(model, fullgraph=True, backend=backend)
        for time in range(4, 12):
            positions = {"position_ids": torch.full((1, 1), time)} if with_positions else {}
            logits = step(ids[:, time : time + 1], **{CACHE_NAME: cache}, **positions).logits
            contract.assert_close(logits[:, 0], whole[:, time], 1e-10, f"token {time}")
        assert backend.graphs == 1
        torch._dynamo.reset()
