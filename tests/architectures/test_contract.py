"""What every architecture owes, for every registered one: see `tests.contract`."""

import inspect
from pathlib import Path

import pytest
import torch

from dsf_models import list_architectures
from tests import contract
from tests.contract import PADDING, every, sequences, shared

FLOAT64, FLOAT32 = torch.float64, torch.float32


def duties() -> list[str]:
    """Return the names of all that the contract asks of a model."""
    found = inspect.getmembers(contract, inspect.isfunction)
    return [name for name, f in found if name.startswith("assert_") and "model" in inspect.signature(f).parameters]


@pytest.mark.parametrize("duty", duties())
def test_no_duty_is_forgotten(duty):
    """Neither for the registered architectures, in this file, nor for one that is defined in a single file."""
    assert len(duties()) >= 14
    for path in (Path(__file__), Path(__file__).parents[1] / "backbone" / "test_registry.py"):
        assert f"contract.{duty}" in path.read_text(), path.name


@torch.no_grad()
def test_only_attention_and_the_lstm_have_no_states_to_walk():
    ids, reasons = torch.stack(sequences((11, 11))), {}
    for name in list_architectures():
        for case in contract.variants(name):
            for reason in contract.without_states(shared(name, case), input_ids=ids):
                reasons.setdefault(reason, set()).add(name)
    assert reasons == {"infinite": {"softmax_attention", "hybrid"}, "nonlinear": {"lstm", "hybrid"}}


@every()
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32], ids=["float64", "float32"])
def test_modes_agree(name, case, dtype):
    contract.assert_modes_agree(shared(name, case, dtype), input_ids=torch.stack(sequences((11, 11))))


@every()
def test_transfer_matrix_explains_the_mixer(name, case):
    model, mask = shared(name, case), contract.padding_mask("interior")
    contract.assert_transfer_matrix_explains_the_mixer(model, input_ids=sequences()[0][None])
    contract.assert_transfer_matrix_explains_the_mixer(
        model, input_ids=contract.place(sequences(), mask, contract.PAD), attention_mask=mask
    )
    contract.assert_transfer_matrix_explains_the_mixer(model, **contract.packed(sequences())["position_ids"])


@every()
def test_causal_and_mixing(name, case):
    contract.assert_causal_and_mixing(shared(name, case))


@pytest.mark.feature("Cache: prompts in pieces, then token by token")
@every()
@torch.no_grad()
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32], ids=["float64", "float32"])
def test_cache(name, case, dtype):
    contract.assert_cache_contract(shared(name, case, dtype))


@pytest.mark.feature("Padding on any side")
@every()
@torch.no_grad()
@pytest.mark.parametrize("side", PADDING)
def test_padding(name, case, side):
    contract.assert_padding_contract(shared(name, case), side, 1e-10)
    contract.assert_padding_contract(shared(name, case, FLOAT32), side, 1e-6)


@pytest.mark.feature("Padding on any side")
@every()
@torch.no_grad()
@pytest.mark.parametrize("side", PADDING)
def test_padding_with_a_cache(name, case, side):
    contract.assert_cached_padding_contract(shared(name, case), side, 1e-10)


@pytest.mark.feature("Packed documents")
@every()
@torch.no_grad()
def test_packing(name, case):
    contract.assert_packing_contract(shared(name, case), 1e-10)
    contract.assert_packing_contract(shared(name, case, FLOAT32), 1e-5)


@pytest.mark.feature("Padding on any side")
@every()
@pytest.mark.parametrize("side", PADDING)
def test_padding_gradients(name, case, side):
    contract.assert_padding_gradients(shared(name, case), side, "next", 1e-10)
    contract.assert_padding_gradients(shared(name, case), side, "same", 1e-10)


@pytest.mark.feature("Packed documents")
@every()
def test_packing_gradients(name, case):
    contract.assert_packing_gradients(shared(name, case), 1e-10)


@pytest.mark.feature("Packed documents")
@every()
@torch.no_grad()
def test_packing_with_padding(name, case):
    for side in PADDING:
        contract.assert_packed_and_padded(shared(name, case), side, 1e-10)


@every()
@torch.no_grad()
def test_packed_prefill_goes_on(name, case):
    model = shared(name, case)
    if model.base_model.keeps_keys:
        with pytest.raises(ValueError, match="cannot cache packed documents"):
            contract.assert_document_goes_on(model, 1e-10)
    else:
        contract.assert_document_goes_on(model, 1e-10)


@every()
def test_generation(name, case):
    contract.assert_generation_contract(shared(name, case))


@every()
def test_generation_from_any_padding(name, case):
    for side in PADDING:
        contract.assert_generation_from_any_padding(shared(name, case), side)


@every()
def test_generation_goes_on(name, case):
    contract.assert_generation_goes_on(shared(name, case))
