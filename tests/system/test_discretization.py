"""From poles to Λ in real numbers, against the formulas in complex ones."""

import pytest
import torch

from dsf_models.transitions import discretize


def formulas(method, delta, pole):
    """Return λ and b̄ / b in complex numbers."""
    z = delta * pole
    if method == "zoh":
        return z.exp(), (z.exp() - 1) / pole
    return (1 + z / 2) / (1 - z / 2), delta / (1 - z / 2)


def as_complex(re, im):
    return torch.complex(re, torch.zeros_like(re) if im is None else im)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])
def test_formulas(method, real):
    generator = torch.Generator().manual_seed(0)
    re = -10 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 0.01
    im = None if real else 20 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    delta = torch.rand(4, 1, generator=generator, dtype=torch.float64)
    found = discretize(method, delta, re, im)
    value, gain = formulas(method, delta, as_complex(re, im))
    torch.testing.assert_close(as_complex(*found.transition.powers(torch.ones(()))), value, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(as_complex(found.gain_re, found.gain_im), gain, rtol=1e-13, atol=1e-14)
    if real and method == "bilinear":
        assert (found.transition.sign < 0).any(), "a real eigenvalue may be negative: Δa < -2"


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])
def test_gradients_in_single_precision(method, real):
    """The gradient of (λ - 1) / a cancels to its square of small Δ: it is worked out in float64."""
    re = -torch.tensor([[0.5, 0.5, 1.0]])
    im = None if real else torch.tensor([[0.0, 3.0, 60.0]])
    delta = torch.tensor([[1e-3]])

    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (delta, re, im) if x is not None]
        found = discretize(method, *leaves)
        outputs = [x for x in (found.transition.log_radius, found.transition.angle, *found[1:]) if x is not None]
        return torch.autograd.grad(outputs[-1].sum(), leaves), torch.autograd.grad(
            discretize(method, *leaves).gain_re.square().sum(), leaves
        )

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        for value, expected in zip(single, double, strict=True):
            torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=0.0)


def test_bilinear_transform_keeps_what_is_near_one_and_survives_zero():
    found = discretize("bilinear", torch.tensor([[1e-9]]), -torch.ones(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(found.transition.log_radius, torch.tensor([[-1e-9]]).double(), rtol=1e-6, atol=0.0)
    pole = torch.full((1, 1), -2.0, requires_grad=True)
    found = discretize("bilinear", torch.ones(1, 1), pole)
    assert found.transition.log_radius.isfinite().all()
    assert torch.autograd.grad(found.transition.log_radius.sum(), pole)[0].isfinite().all()
