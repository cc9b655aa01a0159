"""What every architecture owes, for every registered one: see `tests.contract`."""

import pytest
import torch

from tests import contract
from tests.contract import PADDING, every, sequences, shared

FLOAT64, FLOAT32 = torch.float64, torch.float32


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


@every()
@torch.no_grad()
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32], ids=["float64", "float32"])
def test_cache(name, case, dtype):
    contract.assert_cache_contract(shared(name, case, dtype))


@every()
@torch.no_grad()
@pytest.mark.parametrize("side", PADDING)
def test_padding(name, case, side):
    contract.assert_padding_contract(shared(name, case), side, 1e-10)
    contract.assert_padding_contract(shared(name, case, FLOAT32), side, 1e-6)


@every()
@torch.no_grad()
@pytest.mark.parametrize("side", PADDING)
def test_padding_with_a_cache(name, case, side):
    contract.assert_cached_padding_contract(shared(name, case), side, 1e-10)


@every()
@torch.no_grad()
def test_packing(name, case):
    contract.assert_packing_contract(shared(name, case), 1e-10)
    contract.assert_packing_contract(shared(name, case, FLOAT32), 1e-5)


@every()
@pytest.mark.parametrize("side", PADDING)
def test_padding_gradients(name, case, side):
    contract.assert_padding_gradients(shared(name, case), side, "next", 1e-10)
    contract.assert_padding_gradients(shared(name, case), side, "same", 1e-10)


@every()
def test_packing_gradients(name, case):
    contract.assert_packing_gradients(shared(name, case), 1e-10)


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
