"""What a time-invariant system is as a filter: its kernel, index convention, windows and both directions.

Numeric test 1 of the theory of dynamic token selection; source: Nishikawa & Suzuki 2025 (arXiv 2405.19036), derivations
this project's own.
"""

import math

import pytest
import torch

from dsf_models import DSFSystem, FilterSystem, engine
from dsf_models.transitions import Rotation
from evaluation.benchmarks.random_systems import relative_error

FLOAT64 = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=FLOAT64)


def single(u, log_radius, angle, weight, D=0.0):
    """Return the system of one channel with kernel Σ_k Re(w_k λ_k^t) + D δ_{t0}, u (b, t), w complex (m,)."""
    B = torch.stack([torch.ones_like(weight.real), torch.zeros_like(weight.real)], dim=-1).flatten()
    C = torch.stack([weight.real, -weight.imag], dim=-1).flatten()
    return DSFSystem(
        u=u[:, :, None, None],
        B=B[None, None, None],
        C=C[None, None, None],
        transition=Rotation(log_radius[None], angle[None]),
        D=torch.tensor([D], dtype=u.dtype),
    )


def convolve(kernel, u):
    """Return Σ_{l<=i} K_l u_{i-l}, kernel (t,) and u (b, t)."""
    length = u.shape[1]
    return torch.stack([(kernel[: i + 1].flip(0) * u[:, : i + 1]).sum(1) for i in range(length)], dim=1)


def test_the_kernel_is_a_sum_of_decaying_sinusoids():
    """Numeric test 1: recurrence = convolution = Σ_k |w_k| ρ_k^t cos(ω_k t + arg w_k) + D δ_{t0}, to 1e-12."""
    length, modes = 60, 5
    rho, omega = 0.7 + 0.3 * torch.rand(modes, dtype=FLOAT64), 3 * torch.rand(modes, dtype=FLOAT64)
    weight, u, t = torch.complex(normal(modes), normal(modes)), normal(2, length), torch.arange(length)[:, None]
    kernel = (weight.abs() * rho**t * (omega * t + weight.angle()).cos()).sum(1)
    kernel[0] += 0.3
    system = single(u, rho.log(), omega, weight, 0.3)
    for mode in engine.modes_of(system):
        y, _ = engine.evaluate(system, mode=mode)
        assert relative_error(y[..., 0, 0], convolve(kernel, u)) <= 1e-12, mode


def test_index_convention():
    """Numeric test 1: the kernel of h_i = A h_{i-1} + B u_i is (CB + D, CAB, …), so K_0 = CB + D.

    The recursion x_{t+1} = A x_t + B u_t, y_t = C x_t + D u_t has the kernel (D, CB, CAB, …) instead; it is the same
    map with C' = C A^{-1} and D' = D - C A^{-1} B.
    """
    length, n = 20, 4
    A, B, C, D = 0.5 * normal(n, n), normal(n, 1), normal(1, n), normal(1, 1)
    u = normal(length, 1)

    def here(C, D):
        h, outputs = torch.zeros(n, 1, dtype=FLOAT64), []
        for u_i in u:
            h = A @ h + B * u_i
            outputs.append(C @ h + D * u_i)
        return torch.cat(outputs)

    x, strict = torch.zeros(n, 1, dtype=FLOAT64), []
    for u_t in u:
        strict.append(C @ x + D * u_t)
        x = A @ x + B * u_t
    strict = torch.cat(strict)
    inverse = torch.linalg.inv(A)
    assert relative_error(here(C @ inverse, D - C @ inverse @ B), strict) <= 1e-10
    kernel = torch.stack([(C @ torch.linalg.matrix_power(A, t) @ B)[0, 0] for t in range(length)])
    assert relative_error(here(C, D)[:, 0], convolve(kernel, u.T)[0] + (D * u)[:, 0]) <= 1e-12
    system = single(u.T, torch.tensor([-0.2]), torch.tensor([0.9]), torch.complex(normal(1), normal(1)), 0.7)
    weights = system.matrices()
    assert float(system.kernel(1)[0, 0, 0]) == pytest.approx(float(weights.C[0, 1] @ weights.B[0, 1]) + 0.7, abs=1e-12)


def test_modes_around_the_circle_make_every_window():
    """The U modes e^{2πik/U} span all filters of length U: copying a string of known length U - 1 is such a filter.

    K_t = δ_{t, V} for t <= V copies V tokens behind, with one layer and no selection: fixed-length copying is no test.
    """
    window = 12
    k = torch.arange(window).double()
    for target in (normal(window), torch.nn.functional.one_hot(torch.tensor(window - 1), window).double()):
        weight = torch.fft.fft(target.to(torch.complex128)) / window
        u = normal(2, 30)
        full = single(u, torch.zeros(window, dtype=FLOAT64), 2 * math.pi * k / window, weight)
        assert relative_error(full.kernel(window)[0, 0], target) <= 1e-12
        y, _ = engine.evaluate(FilterSystem(forward=full, window=window - 1))
        padded = torch.cat([target, torch.zeros(30 - window)])
        assert relative_error(y[..., 0, 0], convolve(padded, u)) <= 1e-12


def test_a_window_as_a_difference_drifts_where_nothing_fades():
    """C Λ^l B - C Λ^W Λ^{l-W} B is a window of lags l < W to 1e-12 in float64; in float32 at |λ| = 1 it drifts.

    The delay line's convolution is exactly 0 beyond the window in both.
    """
    length, window = 4000, 50
    log_radius, angle, weight = torch.zeros(1), torch.tensor([0.3]), torch.ones(1, dtype=torch.complex64)
    for dtype in (FLOAT64, torch.float32):
        u = torch.zeros(1, length, dtype=dtype)
        u[0, :100] = torch.randn(100, dtype=dtype)
        late = torch.nn.functional.pad(u, (window, 0))[:, :length]
        plain = single(u, log_radius, angle, weight.to(dtype.to_complex()))
        turn = torch.polar(torch.ones(1, dtype=FLOAT64), window * angle.double()).to(dtype.to_complex())
        turned = single(late, log_radius, angle, weight.to(dtype.to_complex()) * turn)
        difference = engine.evaluate(plain)[0] - engine.evaluate(turned)[0]
        exact, _ = engine.evaluate(FilterSystem(forward=plain, window=window - 1))
        scale = float(exact.abs().max())
        assert float((difference - exact).abs().max()) <= (1e-12 if dtype == FLOAT64 else 1e-4) * scale
        assert not exact[:, 100 + window :].any()
        assert bool(difference[:, 100 + window :].any())


def test_two_sided_by_reading_late():
    """A two-sided window [-U, U] is also a causal filter of 2U + 1 taps read U tokens late, behind U pads."""
    window, length = 4, 15
    u, log_radius, angle = normal(2, length), -0.1 * torch.ones(2, dtype=FLOAT64), torch.tensor([0.4, 1.9]).double()
    ahead, behind = (torch.complex(normal(2), normal(2)) for _ in range(2))
    forward, backward = (single(u, log_radius, angle, weight) for weight in (ahead, behind))
    y, _ = engine.evaluate(FilterSystem(forward=forward, backward=backward, window=window))
    taps = torch.cat([backward.kernel(window)[0, 0].flip(0), forward.kernel(window + 1)[0, 0]])
    late = torch.nn.functional.pad(u, (0, window))
    kernel = torch.nn.functional.pad(taps, (0, late.shape[1] - len(taps)))
    assert relative_error(y[..., 0, 0], convolve(kernel, late)[:, window:]) <= 1e-12


def test_an_even_filter_needs_no_second_read_out():
    """C' = C Λ makes the filter even: K'_l = C' Λ^{l-1} B = K_l, and Φ symmetric."""
    u, log_radius, angle = normal(1, 9), torch.tensor([-0.1]).double(), torch.tensor([0.8]).double()
    weight = torch.complex(normal(1), normal(1))
    forward = single(u, log_radius, angle, weight)
    backward = single(u, log_radius, angle, weight * torch.polar(log_radius.exp(), angle))
    phi = FilterSystem(forward=forward, backward=backward).transfer_matrix()[0, 0]
    assert relative_error(phi, phi.mT) <= 1e-13


def test_a_flat_filter_needs_a_radius_near_one():
    """ρ = exp(-Δ/2) at the smallest default Δ = 0.001 is 0.9995: at lag 1000 the weight has fallen to 0.61."""
    log_radius = torch.tensor([-0.5 * 0.001], dtype=FLOAT64)
    system = single(normal(1, 2), log_radius, torch.zeros(1, dtype=FLOAT64), torch.ones(1, dtype=torch.complex128))
    kernel = system.kernel(1001)[0, 0]
    assert float(log_radius.exp()) == pytest.approx(0.9995, abs=1e-6)
    assert float(kernel[1000] / kernel[0]) == pytest.approx(0.61, abs=0.005)
