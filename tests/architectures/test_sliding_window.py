"""Softmax attention within a window: what it attends to, on every backend, and that its cache does not grow."""

import pytest
import torch

from dsf_models.system import DSFSystemError, SoftmaxSystem
from tests.contract import CACHE_NAME, assert_close, fresh, logits_in_segments, new_cache, sequences

WINDOW = 4


def ids():
    return torch.stack(sequences((13, 13)))


@torch.no_grad()
def test_weights_outside_the_window_are_zero_and_within_it_softmax():
    model = fresh("softmax_attention", "sliding_bare", sliding_window=WINDOW).double()
    for system, phi in zip(model.dsf_systems(ids()), [model.transfer_matrix(i, ids()) for i in range(2)], strict=True):
        logits = 0.5 * torch.einsum("bihm,bjhm->bhij", system.q, system.k)
        for i in range(13):
            seen = slice(max(0, i - WINDOW + 1), i + 1)
            assert_close(phi[:, :, i, seen], logits[:, :, i, seen].softmax(-1), 1e-12)
            assert bool((phi[:, :, i].sum(-1) - 1).abs().max() < 1e-12)


@torch.no_grad()
def test_a_window_as_long_as_the_sequence_is_full_attention():
    model = fresh("softmax_attention", "bare").double()
    within = fresh("softmax_attention", "sliding_bare", sliding_window=13).double()
    within.load_state_dict(model.state_dict())
    assert_close(within(ids()).logits, model(ids()).logits, 1e-12)
    shorter = fresh("softmax_attention", "sliding_bare", sliding_window=12).double()
    shorter.load_state_dict(model.state_dict())
    assert_close(shorter(ids()[:, :12]).logits, model(ids()[:, :12]).logits, 1e-12)
    assert (shorter(ids()).logits - model(ids()).logits)[:, 12].abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("case", ["sliding", "sliding_bare"])
def test_eager_and_sdpa_agree(case):
    model = fresh("softmax_attention", case).double()
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, [2, 7, 12]] = 0
    found = {}
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        whole = model(ids(), attention_mask=mask, use_cache=False).logits
        segments = logits_in_segments(model, ids(), (6, 7, 8), mask)
        # transformers' eager backend takes its softmax in float32, whatever the model's dtype.
        assert_close(segments[mask.bool()], whole[mask.bool()], {"sdpa": 1e-10, "eager": 1e-6}[backend], backend)
        found[backend] = whole
    assert_close(found["eager"][mask.bool()], found["sdpa"][mask.bool()], 1e-6)
    weights = model(ids(), output_attentions=True, use_cache=False).attentions
    assert_close(weights[0].double(), model.transfer_matrix(0, ids()), 1e-6)


@torch.no_grad()
def test_the_cache_holds_the_window_and_no_more():
    model = fresh("softmax_attention", "sliding_bare", sliding_window=WINDOW)
    cache = new_cache(model)
    for start, stop in ((0, 2), (2, 9), (9, 13)):
        model(ids()[:, start:stop], use_cache=True, **cache)
        for layer in cache[CACHE_NAME].layers:
            assert layer.read_keys().shape == (2, WINDOW - 1, 4 * (4 + 4) + 1)
            assert int(layer.get_seq_length()) == stop


def test_systems_within_a_window():
    q = torch.randn(1, 6, 1, 2, dtype=torch.float64)
    system = SoftmaxSystem(q=q, k=q, u=q, scale=1.0, window=2)
    assert bool((system.transfer_matrix().tril(-2) == 0).all())
    for ask in (system.eigenvalues, lambda: system.truncated(2)):
        with pytest.raises(
            DSFSystemError, match=r"window=2: attention drops each input after 2 steps.*transfer_matrix"
        ):
            ask()
    with pytest.raises(DSFSystemError, match="window=0 is no whole number of at least 1"):
        SoftmaxSystem(q=q, k=q, u=q, scale=1.0, window=0)
