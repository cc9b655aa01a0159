"""Filters, two-sided and of a finite window, against their kernels summed up term by term."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from dsf_models import FilterSystem, engine
from dsf_models.engine import MODES
from dsf_models.system import DSFSystem, DSFSystemError, apply_transfer_matrix
from dsf_models.transitions import Identity, Rotation, ScalarDecay

BATCH, LENGTH, HEADS, WIDTH, STATES = 3, 13, 2, 3, 2
WINDOWS = (None, 1, 2, 5, 12, 40)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
LAYOUTS = {
    "plain": (None, None),
    "pads": (None, (13, 5, 1)),
    "documents": ((0, 4, 5, 11), None),
    "documents and pads": ((0, 3, 7), (13, 9, 4)),
}


def draw(decay=(0.9, -0.7), dtype=torch.float64, layout="plain", batch=BATCH, length=LENGTH):
    """Return (tensors, layout fields) of a random time-invariant system with two decays, one a head."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    starts, lengths = LAYOUTS[layout]
    if starts is not None:
        flags = torch.zeros(batch, length, dtype=torch.bool)
        flags[:, list(starts)] = True
        starts = flags
    tensors = {
        "u": normal(batch, length, HEADS, WIDTH),
        "B": normal(1, 1, HEADS, STATES),
        "C": normal(1, 1, HEADS, STATES),
        "back": normal(1, 1, HEADS, STATES),
        "D": normal(HEADS, WIDTH),
        "log_decay": torch.tensor([[[math.log(abs(value)) for value in decay]]], dtype=dtype),
    }
    sign = torch.tensor([[[math.copysign(1.0, value) for value in decay]]], dtype=dtype)
    return tensors, {"starts": starts, "lengths": None if lengths is None else torch.tensor(lengths)}, sign


def build(tensors, layout, sign, two_sided, window):
    transition = ScalarDecay(tensors["log_decay"], sign)
    shared = {"u": tensors["u"], "B": tensors["B"], "transition": transition, **layout}
    forward = DSFSystem(C=tensors["C"], D=tensors["D"], **shared)
    return FilterSystem(
        forward=forward, backward=DSFSystem(C=tensors["back"], **shared) if two_sided else None, window=window
    )


def kernel(tensors, sign, read_out, lags):
    """Return C Λ^lag B for integer lags >= 0 (t, t), one matrix a head: (h, t, t)."""
    decay = (tensors["log_decay"].double().exp() * sign)[0, 0]
    weight = (tensors["B"] * tensors[read_out])[0, 0].double().sum(-1)
    return weight[:, None, None] * decay[:, None, None] ** lags


def term_by_term(tensors, layout, sign, two_sided, window):
    """Return Φ (b, h, p, t, t), every entry from the definition of the kernel."""
    batch, length = tensors["u"].shape[:2]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    values = kernel(tensors, sign, "C", lag.clamp(min=0)) * (lag >= 0)
    if two_sided:
        values = values + kernel(tensors, sign, "back", (-lag - 1).clamp(min=0)) * (lag < 0)
    values = values[None, :, None] + tensors["D"].double()[..., None, None] * torch.eye(length)
    starts = torch.zeros(batch, length) if layout["starts"] is None else layout["starts"]
    document = starts.cumsum(1)
    seen = document[:, :, None] == document[:, None, :]
    if window is not None:
        seen = seen & (lag.abs() <= window)
    if layout["lengths"] is not None:
        real = torch.arange(length) < layout["lengths"][:, None]
        seen = seen & real[:, :, None] & real[:, None, :]
    return values * seen[:, None, None]


def relative(value, reference):
    return float((value.double() - reference).detach().abs().max() / reference.detach().abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("two_sided", [False, True])
def test_filter_is_its_kernel(two_sided, window, layout):
    """Every mode and Φ = the kernel summed up; gradients = those of that sum."""
    for dtype in (torch.float64, torch.float32):
        tensors, fields, sign = draw(dtype=dtype, layout=layout)
        leaves = {name: value.requires_grad_() for name, value in tensors.items()}
        phi = term_by_term(leaves, fields, sign, two_sided, window)
        expected = torch.einsum("bhpij,bjhp->bihp", phi, leaves["u"].double())
        weight = torch.randn(expected.shape, dtype=torch.float64)
        reference = torch.autograd.grad((expected * weight).sum(), list(leaves.values()), allow_unused=True)
        system = build(leaves, fields, sign, two_sided, window)
        assert relative(system.transfer_matrix(), phi) <= TOLERANCE[dtype]
        for mode in (None, *MODES):
            y, _ = engine.evaluate(system, mode=mode)
            assert y.dtype == dtype
            assert relative(y, expected) <= TOLERANCE[dtype], mode
            found = torch.autograd.grad((y.double() * weight).sum(), list(leaves.values()), allow_unused=True)
            for name, one, other in zip(leaves, found, reference, strict=True):
                assert (one is None) == (other is None), name
                assert one is None or relative(one, other.double()) <= 10 * TOLERANCE[dtype], (mode, name)


def of_structure(structure, tensors, fields):
    """Return a forward and a backward system whose Λ rotates, with factors or with dense maps in place of B and C."""
    log_radius, angle = torch.tensor([[-0.1], [0.0]]), torch.tensor([[0.7], [2.1]])
    if structure == "rotation":
        shared = {"u": tensors["u"], "B": tensors["B"], "transition": Rotation(log_radius, angle), **fields}
        forward = DSFSystem(C=tensors["C"], D=tensors["D"], **shared)
        return forward, DSFSystem(C=tensors["back"], **shared)
    shared = {"u": tensors["u"].flatten(2)[:, :, None], "transition": Rotation(log_radius.T, angle.T), **fields}
    B, C, back = torch.randn(3, 4, HEADS * WIDTH, dtype=tensors["u"].dtype)
    forward = DSFSystem(input_map=B, output_map=C.T, D=tensors["D"].flatten()[None], **shared)
    return forward, DSFSystem(input_map=B, output_map=back.T, **shared)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("structure", ["rotation", "dense maps"])
@torch.no_grad()
def test_filters_of_other_structures(structure, window, layout):
    """K_l = C Λ^l B + D δ_{l0} and K'_l = C' Λ^{l-1} B by powers of the dense matrices, in float64 and float32."""
    for dtype in (torch.float64, torch.float32):
        tensors, fields, _ = draw(dtype=dtype, layout=layout)
        forward, backward = of_structure(structure, tensors, fields)
        Lambda, B, C, _ = (x[0, 1] for x in replace(forward, starts=None, lengths=None).matrices())
        back = replace(backward, starts=None, lengths=None).matrices().C[0, 1]
        powers = [torch.linalg.matrix_power(Lambda, lag) for lag in range(LENGTH)]
        u, real = tensors["u"].double().flatten(2), LAYOUTS[layout][1] or (LENGTH,) * BATCH
        document = (torch.zeros(LENGTH) if fields["starts"] is None else fields["starts"][0]).cumsum(0)
        expected = torch.zeros_like(u)
        for row, i, j in itertools.product(range(BATCH), range(LENGTH), range(LENGTH)):
            if max(i, j) >= real[row] or document[i] != document[j] or abs(i - j) > (window or LENGTH):
                continue
            K = C @ powers[i - j] @ B if j <= i else back @ powers[j - i - 1] @ B
            K = K + torch.diag(tensors["D"].double().flatten()) if i == j else K
            expected[row, i] += K @ u[row, j]
        system = FilterSystem(forward=forward, backward=backward, window=window)
        for mode in (None, *engine.modes_of(forward)):
            y, _ = engine.evaluate(system, mode=mode)
            assert relative(y.flatten(2), expected) <= TOLERANCE[dtype], mode
        applied = apply_transfer_matrix(system.transfer_matrix(), forward.u.double())
        assert relative(applied.flatten(2), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("decay", [(1.0, -1.0), (0.999999, 1.0)])
@pytest.mark.parametrize("two_sided", [False, True])
@torch.no_grad()
def test_nothing_is_left_beyond_the_window(two_sided, decay):
    """In float32, with |λ| = 1 and after a thousand steps, the impulse response beyond lag U is exactly 0."""
    window, length = 7, 1000
    tensors, fields, sign = draw(decay, torch.float32, batch=1, length=length)
    tensors["u"] = torch.zeros_like(tensors["u"])
    tensors["u"][:, 500] = 1e3
    y, _ = engine.evaluate(build(tensors, fields, sign, two_sided, window))
    first = 500 - window if two_sided else 500
    assert bool((y[:, :first] == 0).all())
    assert bool((y[:, 500 + window + 1 :] == 0).all())
    assert bool((y[:, first : 500 + window + 1] != 0).all())


@pytest.mark.parametrize("layout", ["plain", "documents"])
@pytest.mark.parametrize("window", [1, 4, 20])
@torch.no_grad()
def test_segments_carry_the_delay_line(window, layout):
    """A sequence in segments, single tokens among them, that hand on the delay line = the sequence in one piece."""
    tensors, fields, sign = draw(layout=layout)
    system = build(tensors, fields, sign, False, window)
    whole, last = engine.evaluate(system)
    assert last.shape == system.state_shape == (BATCH, window, HEADS, WIDTH)
    for cuts in (range(1, LENGTH), (5,), (1, 2, 9)):
        state, outputs = None, []
        for start, stop in itertools.pairwise([0, *cuts, LENGTH]):
            piece = FilterSystem(forward=system.forward.narrow(start, stop - start), window=window)
            y, state = engine.evaluate(piece, state=state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state, last, rtol=0, atol=0)


@torch.no_grad()
def test_the_delay_line_ends_at_the_last_real_token():
    """With pads the line holds the last real inputs of each row, zeros where there were fewer."""
    tensors, fields, sign = draw(layout="pads")
    _, line = engine.evaluate(build(tensors, fields, sign, False, 6))
    for row, real in enumerate(LAYOUTS["pads"][1]):
        kept = min(real, 6)
        assert torch.equal(line[row, 6 - kept :], tensors["u"][row, real - kept : real])
        assert bool((line[row, : 6 - kept] == 0).all())


@torch.no_grad()
def test_half_precision_is_computed_in_float32():
    tensors, fields, sign = draw(dtype=torch.bfloat16)
    system = build(tensors, fields, sign, True, 4)
    y, _ = engine.evaluate(system)
    expected, _ = engine.evaluate(system.to(torch.float32))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())


def test_what_is_no_filter_is_refused():
    tensors, fields, sign = draw()
    system = build(tensors, fields, sign, True, 3)
    with pytest.raises(DSFSystemError, match="window=0"):
        FilterSystem(forward=system.forward, window=0)
    varying = {"B": tensors["u"][..., :2], "C": tensors["C"], "u": tensors["u"], "transition": Identity()}
    with pytest.raises(DSFSystemError, match="a filter needs a time-invariant system"):
        FilterSystem(forward=DSFSystem(**varying))
    of_rows = varying | {"B": tensors["u"][:, :1, :, :2]}
    with pytest.raises(DSFSystemError, match=r"B has shape \(3, 1, 2, 2\): a filter takes one for all rows"):
        FilterSystem(forward=DSFSystem(**of_rows))
    normalized = DSFSystem(u=tensors["u"], B=tensors["B"], C=tensors["C"], transition=Identity(), normalized=True)
    with pytest.raises(DSFSystemError, match="normaliser"):
        FilterSystem(forward=normalized)
    with pytest.raises(DSFSystemError, match="no single recurrence"):
        system.matrices()
    with pytest.raises(DSFSystemError, match="needs the whole sequence"):
        engine.evaluate(system, state=torch.zeros(system.state_shape))
    causal = FilterSystem(forward=system.forward, window=3)
    with pytest.raises(DSFSystemError, match=r"state has shape .* delay line \(3, 3, 2, 3\)"):
        engine.evaluate(causal, state=torch.zeros(1, 3, 2, 3))


def test_sizes_and_spectrum():
    tensors, fields, sign = draw()
    one, two = (build(tensors, fields, sign, two_sided, None) for two_sided in (False, True))
    assert (one.state_size, two.state_size) == (12, 24)
    assert build(tensors, fields, sign, False, 5).state_size == 5 * HEADS * WIDTH
    spectrum = two.eigenvalues()
    assert spectrum.realisation == "native"
    torch.testing.assert_close(spectrum.values[0, 0], torch.tensor([0.9, -0.7], dtype=torch.float64))
