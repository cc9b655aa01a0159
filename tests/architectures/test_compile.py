"""torch.compile of every architecture: whole graphs in training, and one graph for all decoding steps.

Compiling takes a second a graph, so that each way of calling a model is compiled in one of its variants: every
architecture meets all the ways, and every variant one of them at least. One layer is enough, since layers are alike.
"""

import pytest
import torch
from transformers import CompileConfig, StaticCache

from tests import contract
from tests.contract import CACHE_NAME, NEEDED, every, fresh, gradients, sequences


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


def one_layer(name, case):
    """Return a model in float64 of a single layer, or of one for each architecture that it needs."""
    return fresh(name, case, **({} if name in NEEDED else {"num_hidden_layers": 1})).double()


def assert_training_step_is_one_graph(name, case, kind):
    model, backend = one_layer(name, case).train(), counting_backend()
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


@pytest.mark.feature("torch.compile of training")
@every("default", "channel", "windowed")
def test_training_step_is_one_graph(name, case):
    assert_training_step_is_one_graph(name, case, "plain")


@pytest.mark.feature("torch.compile of training")
@every("full", "constant", "sliding")
def test_training_step_on_padded_rows_is_one_graph(name, case):
    assert_training_step_is_one_graph(name, case, "padded")


@pytest.mark.feature("torch.compile of training")
@every("default", "rope", "sliding", "windowed", "channel", slowly=True)
def test_training_step_on_packed_rows_is_one_graph(name, case):
    assert_training_step_is_one_graph(name, case, "packed")


def assert_decoding_is_one_graph(name, case, lengths):
    model, backend = one_layer(name, case), counting_backend()
    mask = contract.padding_mask("left", lengths)
    prompts = {"ids": contract.place(sequences(lengths), mask, contract.PAD), "attention_mask": mask.long()}
    expected = contract.generate(model, **prompts, use_cache=False)
    config = CompileConfig(fullgraph=True, backend=backend)
    config._compile_all_devices = True
    found = contract.generate(model, **prompts, cache_implementation="static", compile_config=config)
    assert torch.equal(found, expected)
    assert backend.graphs == 1


@pytest.mark.feature("Compiled decoding: one graph for all tokens")
@every("full", "rope", "windowed")
def test_decoding_is_one_graph(name, case):
    """Generation with a static cache compiles its decoding step once, for all tokens."""
    assert_decoding_is_one_graph(name, case, (5, 5))


@every("default", "sliding", "constant", slowly=True)
def test_decoding_from_padded_prompts_is_one_graph(name, case):
    assert_decoding_is_one_graph(name, case, (6, 4))


def test_decoding_of_a_hybrid_is_one_graph():
    """Also where its first layer keeps a state, from which no mask of attention can be sized."""
    assert_decoding_is_one_graph("hybrid", "bare", (6, 4))


@pytest.mark.parametrize("name", ["ssd", "softmax_attention", "hybrid"])
def test_a_compiled_forward_decodes_with_two_graphs(name):
    """As transformers' documentation compiles: one graph for the prompt and one for all tokens, also of a next call."""
    model, backend, ids = one_layer(name, "default"), counting_backend(), torch.stack(sequences((5, 5)))
    expected = contract.generate(model, ids)
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend, dynamic=False)
    for _ in range(2):
        assert torch.equal(contract.generate(model, ids, cache_implementation="static"), expected)
        assert backend.graphs == 2


def assert_own_decoding_loop_is_one_graph(name, case, with_positions):
    model, backend, ids = one_layer(name, case), counting_backend(), torch.stack(sequences((12, 12)))
    whole = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=12)
    model(ids[:, :4], **{CACHE_NAME: cache})
    step = torch.compile(model, fullgraph=True, backend=backend)
    for time in range(4, 12):
        positions = {"position_ids": torch.full((1, 1), time)} if with_positions else {}
        logits = step(ids[:, time : time + 1], **{CACHE_NAME: cache}, **positions).logits
        contract.assert_close(logits[:, 0], whole[:, time], 1e-10, f"token {time}")
    assert backend.graphs == 1


@every("full", "sliding", "channel")
@torch.no_grad()
def test_own_decoding_loop_is_one_graph(name, case):
    """So does a loop of one's own, whether it gives positions or not."""
    assert_own_decoding_loop_is_one_graph(name, case, with_positions=False)


@every("default", "rope", slowly=True)
@torch.no_grad()
def test_own_decoding_loop_with_positions_is_one_graph(name, case):
    assert_own_decoding_loop_is_one_graph(name, case, with_positions=True)
