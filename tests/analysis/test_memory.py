"""How far Φ reaches: closed forms, every shape of Φ, both directions."""

import math

import pytest
import torch

from dsf_models.analysis import effective_memory, magnitude, row_sums, token_weights
from tests.contract import every, sequences, shared


def fading(decay, length):
    time = torch.arange(length)
    return (decay ** (time[:, None] - time).clamp(min=0).double()).tril()[None, None]


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_a_constant_decay(decay, share):
    """Σ_{l<=L} λ^l >= share Σ_{l<=i} λ^l from L + 1 = log(1 - share (1 - λ^{i+1})) / log λ on."""
    found = effective_memory(fading(decay, 15), share)
    for i in range(15):
        total = 1 - decay ** (i + 1)
        exact = math.ceil(math.log(max(1 - share * total, decay ** (i + 1))) / math.log(decay) - 1 - 1e-9)
        assert int(found.lag[0, 0, i]) == min(max(exact, 0), i)
        weights = [decay**lag for lag in range(i + 1)]
        mean = sum(lag * weight for lag, weight in enumerate(weights)) / sum(weights)
        assert float(found.mean_lag[0, 0, i]) == pytest.approx(mean)


def test_even_weights():
    phi = torch.ones(1, 1, 10, 10).tril() / torch.arange(1, 11)[:, None]
    found = effective_memory(phi, 0.5)
    assert found.lag[0, 0].tolist() == [math.ceil(0.5 * (i + 1)) - 1 for i in range(10)]
    torch.testing.assert_close(found.mean_lag[0, 0], torch.arange(10).double() / 2, rtol=1e-6, atol=0)


def test_signs_do_not_cancel_and_both_sides_count():
    phi = torch.zeros(1, 1, 5, 5)
    phi[0, 0, 2] = torch.tensor([-1.0, 0.0, 1.0, 0.0, 1.0])
    found = effective_memory(phi, 0.9)
    assert float(found.lag[0, 0, 2]) == 2
    assert float(found.mean_lag[0, 0, 2]) == pytest.approx(4 / 3)
    assert found.lag[0, 0, [0, 1, 3, 4]].isnan().all()
    assert float(row_sums(phi).absolute[0, 0, 2]) == 3
    assert float(row_sums(phi).signed[0, 0, 2]) == 1
    assert token_weights(phi, 2)[0, 0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])


def test_channels_count_by_their_frobenius_norm():
    phi = torch.randn(2, 3, 4, 6, 6)
    torch.testing.assert_close(magnitude(phi)[1, 2, 3, 1], phi[1, 2, :, 3, 1].norm())
    mixed = torch.randn(2, 1, 4, 4, 6, 6)
    torch.testing.assert_close(magnitude(mixed)[1, 0, 3, 1], torch.linalg.matrix_norm(mixed[1, 0, :, :, 3, 1]))
    assert row_sums(phi).signed is None


@every("default", "windowed")
@torch.no_grad()
def test_of_every_architecture(name, case):
    model, ids = shared(name, case), torch.stack(sequences((9, 9)))
    for system in model.dsf_systems(ids):
        if system is None:
            continue
        found = effective_memory(system.transfer_matrix())
        position = torch.arange(9)
        assert bool((found.lag >= 0).all() & (found.lag <= position).all())
        if case == "windowed":
            assert float(found.lag.max()) <= 3


def test_errors():
    with pytest.raises(ValueError, match=r"share=0: give the share"):
        effective_memory(torch.ones(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match=r"phi.ndim=2: give Φ"):
        magnitude(torch.ones(2, 2))
