"""LSTM: it is torch's, has no system and says so, and trains under a compiler that differentiates for itself."""

import pytest
import torch
from torch import nn

from dsf_models import LSTMConfig, NotADynamicalSystemError
from dsf_models.architectures.lstm import LSTMMixer, evaluate_split, evaluate_spread
from dsf_models.backbone.layout import TokenLayout
from tests.contract import assert_close, assert_gradients_close, fresh, gradients, sequences


def mixer_and_torch(dtype=torch.float64):
    mixer = LSTMMixer(LSTMConfig(hidden_size=5, expand=2), layer_idx=0).to(dtype)
    mixer.init_parameters()
    twin = nn.LSTM(5, 10, batch_first=True).to(dtype)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(mixer, name).add_(0.3 * torch.randn_like(getattr(mixer, name)))
            getattr(twin, f"{name}_l0").copy_(getattr(mixer, name))
    return mixer, twin


def test_it_is_the_lstm_of_torch():
    mixer, twin = mixer_and_torch()
    hidden = torch.randn(2, 7, 5, dtype=torch.float64)
    y = mixer.mix(hidden, TokenLayout(None))
    expected, _ = twin(hidden)
    assert torch.equal(y, expected)
    assert_close(mixer.finish(y, hidden), expected @ mixer.out_proj.weight.T, 1e-14)


@pytest.mark.parametrize("evaluate", [evaluate_split, evaluate_spread])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_documents_and_pads_are_exact(dtype, evaluate):
    """Documents of one row, and rows of any length, = the documents alone in torch's LSTM, last states included."""
    mixer, twin = mixer_and_torch(dtype)
    weights = [mixer.weight_ih, mixer.weight_hh, mixer.bias_ih, mixer.bias_hh]
    inputs, state = torch.randn(3, 9, 5, dtype=dtype), torch.randn(3, 2, 10, dtype=dtype)
    starts = torch.zeros(3, 9, dtype=torch.bool)
    starts[0, [0, 4]] = True
    real = torch.arange(9) < torch.tensor([9, 5, 0])[:, None]
    y, last = evaluate(inputs, state, weights, real, starts)
    fresh_state = torch.zeros(2, 10, dtype=dtype)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    for row, pieces in ((0, [(0, 4, fresh_state), (4, 9, fresh_state)]), (1, [(0, 5, state[1])])):
        for start, stop, begin in pieces:
            expected, (h, c) = twin(inputs[row, start:stop], (begin[None, 0], begin[None, 1]))
            assert_close(y[row, start:stop], expected, tolerance)
        assert_close(last[row], torch.cat([h, c]), tolerance)
    assert torch.equal(last[2], state[2]), "a row of pads hands its state on"
    nothing = torch.zeros_like(real)
    assert torch.equal(evaluate(inputs, state, weights, nothing, nothing)[1], state)


def test_the_start_of_its_parameters():
    mixer = LSTMMixer(LSTMConfig(hidden_size=16), layer_idx=0)
    mixer.init_parameters()
    assert mixer.bias_ih.reshape(4, 16).tolist() == [[0.0] * 16, [1.0] * 16, [0.0] * 16, [0.0] * 16]
    assert not mixer.bias_hh.any()
    for weight in (mixer.weight_ih, mixer.weight_hh):
        assert 0.2 < weight.abs().max() <= 0.25
        assert weight.std() > 0.12


def test_it_has_no_system_and_says_so():
    model, ids = fresh("lstm"), sequences()[0][None]
    assert model.dsf_systems(ids) == [None, None]
    with pytest.raises(NotADynamicalSystemError, match=r"layer 1 is an LSTM: its gates depend on h_\{i-1\}"):
        model.transfer_matrix(1, ids)
    with pytest.raises(NotADynamicalSystemError, match="another architecture"):
        model.model.layers[0].token_mixer.system(ids, None)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_compiler_that_differentiates_for_itself(packed):
    torch._dynamo.reset()
    model = fresh("lstm", "bare").double().train()
    ids = sequences((12,))[0][None]
    inputs = {"input_ids": ids, "labels": ids} | ({"position_ids": torch.arange(12)[None] % 7} if packed else {})
    loss = model(**inputs).loss
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    assert_close(compiled, loss, 1e-12)
    assert_gradients_close(gradients(model, compiled), gradients(model, loss), 1e-10)
    torch._dynamo.reset()
