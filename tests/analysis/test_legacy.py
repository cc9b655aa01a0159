"""The follow-up's released numbers, defect by defect, beside the true ones."""

import pytest
import torch

from dsf_models import SoftmaxSystem
from dsf_models.analysis import legacy_eigenvalues, legacy_spectrum, spectrum
from dsf_models.analysis.legacy import LABEL, PHASES, RADII, legacy_fractions
from tests.contract import fresh, sequences

LENGTH, WIDTH = 512, 128


def truth(q, k):
    system = SoftmaxSystem(q=q, k=k, u=torch.ones(*k.shape[:3], 1), scale=WIDTH**-0.5)
    return system.eigenvalues().values


def drawn(std):
    generator = torch.Generator().manual_seed(0)
    return (std * torch.randn(1, LENGTH, 1, WIDTH, generator=generator) for _ in range(2))


def share(values, low, high):
    return float(((values >= low) & (values < high)).double().mean())


def test_zero_logits():
    q, k = torch.zeros(1, 20, 2, 4), torch.randn(1, 20, 2, 4)
    assert torch.equal(legacy_eigenvalues(q, k), torch.ones(1, 19, 2).double())
    exact = torch.arange(1, 20).double()
    found = SoftmaxSystem(q=q, k=k, u=torch.ones(1, 20, 2, 1), scale=0.5).eigenvalues().values[0, :, 0]
    torch.testing.assert_close(found, exact / (exact + 1), rtol=1e-14, atol=0)


def test_small_logits():
    """The masked scores' ones drown what there is to see: half below 1 and half above, where nearly all are below."""
    q, k = drawn(0.05)
    found, legacy = truth(q, k), legacy_eigenvalues(q, k)
    assert 92 <= round(100 * share(found, 0.9, 1)) <= 98
    assert share(legacy, 0.9, 1) == pytest.approx(0.49, abs=0.03)
    assert share(legacy, 1, 10) == pytest.approx(0.51, abs=0.03)


def test_logits_without_their_scale():
    q, k = drawn(1.0)
    found, legacy = truth(q, k), legacy_eigenvalues(q, k)
    assert share(found, 1, 10) == pytest.approx(0.48, abs=0.03)
    assert not bool((found > 10).any())
    assert float((legacy > 100).double().mean()) == pytest.approx(0.22, abs=0.03)


def test_by_a_plain_loop():
    q, k = torch.randn(2, 6, 4, 3).double(), torch.randn(2, 6, 2, 3).double()
    found = legacy_eigenvalues(q, k)
    for row, head in ((0, 0), (1, 3)):
        nu = [
            sum(float((q[row, i, head] @ k[row, j, head // 2]).exp()) if j <= i else 1.0 for j in range(6))
            for i in range(6)
        ]
        expected = torch.tensor([nu[i - 1] / nu[i] for i in range(1, 6)], dtype=torch.float64)
        torch.testing.assert_close(found[row, :, head], expected, rtol=1e-12, atol=0)


def test_edges_count_twice_and_negative_phases_nowhere():
    assert legacy_fractions(torch.tensor([0.1, 1.0]), RADII).tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0, 0]
    assert legacy_fractions(torch.tensor([100.0]), RADII).tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert legacy_fractions(torch.tensor([-30.0, 30.0]), PHASES).tolist() == [0, 0, 0.5, 0, 0, 0]


def test_of_a_model_it_carries_its_label_and_differs():
    model, ids = fresh("softmax_attention", "rope"), torch.stack(sequences((12, 12)))
    found = legacy_spectrum(model, ids)
    assert found.label == LABEL
    assert LABEL.startswith("legacy (")
    assert found.fractions.shape == (2, 4, 2, len(RADII))
    assert bool((found.fractions.sum(-1) >= 1).all())
    assert torch.equal(found.phase_fractions[..., 0], torch.ones(2, 4, 2).double())
    true = spectrum(model, ids).by_row
    assert float((true[..., :4] - found.fractions[..., :4]).abs().max()) > 0.1


def test_it_reads_the_blocks_output_through_the_bare_projections():
    model, ids = fresh("softmax_attention", "rope"), sequences((8,))[0][None]
    found = legacy_spectrum(model, ids).fractions[0, 1, 0]
    output = model(ids, output_hidden_states=True).hidden_states[1]
    mixer = model.model.layers[0].token_mixer
    q, k = (proj(output).unflatten(-1, (-1, 4))[:, :, head] for proj, head in ((mixer.q_proj, 1), (mixer.k_proj, 0)))
    values = legacy_eigenvalues(q[:, :, None], k[:, :, None])[0, :, 0]
    assert torch.equal(found, legacy_fractions(values, RADII))


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match=r"layer=0: it is no softmax attention"):
        legacy_spectrum(fresh("ssd"), sequences((8,))[0][None])
