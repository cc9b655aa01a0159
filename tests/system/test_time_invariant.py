"""Time-invariant systems: one kernel, however it is written down, and a Toeplitz Φ exactly where nothing varies."""

import math
from dataclasses import replace

import pytest
import torch

from dsf_models.engine import evaluate, evaluate_sequential, modes_of
from dsf_models.system import DSFSystem, DSFSystemError, Identity, Rotation, ScalarDecay, apply_transfer_matrix
from evaluation.benchmarks.random_systems import CONSTANT_FACTORS, Case, relative_error

FACTORS = {
    "structure": "rotation",
    "broadcasts": (*CONSTANT_FACTORS, "gain time"),
    "D": 2,
    "input_gain": 4,
    "output_gain": 3,
}
MAPS = {"structure": "rotation", "maps": True, "heads": 1, "width": 3, "D": 2}
REAL = {"structure": "real_rotation", "broadcasts": CONSTANT_FACTORS, "signed": True, "D": 1}
SCALAR = {"broadcasts": (*CONSTANT_FACTORS, "decay time"), "signed": True, "D": 1}
KINDS = {"factors": FACTORS, "maps": MAPS, "real": REAL, "scalar": SCALAR}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def built(**fields):
    case = Case(**fields)
    return case.system(case.tensors())


def pairs(system):
    """Return C and B of a system with maps as complex (d, m) and (m, d), and λ (m,): pairs of states are numbers."""
    C, B = system.output_map.unflatten(1, (-1, 2)), system.input_map.unflatten(0, (-1, 2))
    transition = system.transition
    return (
        torch.complex(C[..., 0], -C[..., 1]),
        torch.complex(B[:, 0], B[:, 1]),
        torch.polar(transition.log_radius[0].exp(), transition.angle[0]),
    )


# ---- the kernel ------------------------------------------------------------------------------------------------------


def test_kernel_is_a_sum_of_decaying_cosines():
    """K_t = Σ_k |w_k| ρ_k^t cos(ω_k t + arg w_k) + D δ_t0 with w_k = C_k B_k."""
    system = built(**MAPS, length=1, states=10)
    C, B, eigenvalues = pairs(system)
    w = torch.einsum("em,mf->efm", C, B)
    t = torch.arange(500, dtype=torch.float64)
    radius, angle = eigenvalues.abs()[:, None], eigenvalues.angle()[:, None]
    waves = w.abs()[..., None] * radius**t * torch.cos(angle * t + w.angle()[..., None])
    expected = waves.sum(2)
    expected[..., 0] += torch.diag(system.D[0])
    torch.testing.assert_close(system.kernel(500)[0, 0], expected, rtol=1e-12, atol=1e-12)


@kinds
def test_impulse_response_of_the_recurrence_is_the_kernel(kind):
    """Also by fast Fourier transform, and in the index convention K_0 = C B + D."""
    system = built(**kind | {"batch": 1, "length": 40, "state": False})
    kernel = system.kernel(40)
    head, channel = system.num_heads - 1, system.head_dim - 1
    impulse = torch.zeros_like(system.u)
    impulse[:, 0, head, channel] = 1
    struck = replace(system, u=impulse)
    expected = apply_transfer_matrix(system.transfer_matrix(), impulse)
    for mode in (None, *modes_of(struck)):
        y = evaluate_sequential(struck)[0] if mode is None else evaluate(struck, mode)[0]
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    column = {3: lambda: kernel[0, head], 4: lambda: kernel[0, head, channel], 5: lambda: kernel[0, 0, :, channel].T}
    read = expected[0, :, head] if kernel.ndim == 5 else expected[0, :, head, channel]
    torch.testing.assert_close(column[kernel.ndim](), read, rtol=1e-12, atol=1e-12)
    matrices = system.matrices()
    now = (matrices.C @ matrices.B + matrices.D)[0, 0]
    torch.testing.assert_close(
        apply_transfer_matrix(kernel[..., :1, None], system.u[:, :1])[0, 0].flatten(), now @ system.u[0, 0].flatten()
    )


def test_strict_recursion_is_the_same_system_in_other_matrices():
    """x_{t+1} = A x_t + B u_t, y_t = C x_t + D u_t has the kernel D, CB, CAB, …: C' = C A^{-1}, D' = D - C A^{-1} B."""
    system = built(**MAPS, batch=1, length=30, state=False)
    A, B, C, D = (matrix[0, 0] for matrix in system.matrices())
    x, outputs = torch.zeros(len(A), dtype=torch.float64), []
    for u in system.u[0, :, 0]:
        outputs.append(C @ x + D @ u)
        x = A @ x + B @ u
    converted = replace(system, output_map=C @ A.inverse(), D=None)
    feed = D - C @ A.inverse() @ B
    y = evaluate(converted)[0][0, :, 0] + system.u[0, :, 0] @ feed.T
    torch.testing.assert_close(y, torch.stack(outputs), rtol=1e-12, atol=1e-12)


@kinds
def test_kernel_has_the_shape_of_phi(kind):
    system = built(**kind)
    phi, kernel = system.transfer_matrix(), system.kernel(11)
    assert kernel.shape == phi.shape[:-1]
    torch.testing.assert_close(kernel, phi[..., 0], rtol=1e-13, atol=1e-13)
    assert system.kernel(20).shape[-1] == 20


@pytest.mark.parametrize("angle", [0.0, math.pi, 2 * math.pi / 7])
def test_eigenvalues_of_modulus_one(angle):
    """A running sum, a parity flag, a rotating code of the position: after 10^5 steps it is where it should be."""
    length = 100_000
    system = DSFSystem(
        u=torch.zeros(1, length, 1, 1, dtype=torch.float64),
        B=torch.tensor([1.0, 0.0], dtype=torch.float64)[None, None, None],
        C=torch.tensor([1.0, 0.0], dtype=torch.float64)[None, None, None],
        transition=Rotation(torch.zeros(1, 1).double(), torch.full((1, 1), angle, dtype=torch.float64)),
    )
    system.u[0, 0] = 1
    y = evaluate(system, chunk_size=64)[0][0, :, 0, 0]
    expected = torch.cos(angle * torch.arange(length, dtype=torch.float64))
    torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-10)


# ---- T13: time-invariant if and only if Toeplitz ---------------------------------------------------------------------


@kinds
def test_constant_systems_have_a_toeplitz_phi(kind):
    system = built(**kind)
    assert system.time_invariant
    phi = system.transfer_matrix()
    torch.testing.assert_close(phi[..., 1:, 1:], phi[..., :-1, :-1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "varying",
    [
        FACTORS | {"broadcasts": ("B time", "C time")},
        FACTORS | {"broadcasts": ("B time", "gain time")},
        FACTORS | {"broadcasts": ("C time", "gain time")},
        SCALAR | {"broadcasts": CONSTANT_FACTORS},
        {"decay": None, "broadcasts": CONSTANT_FACTORS, "normalized": True},
    ],
)
def test_varying_systems_have_none_and_no_kernel(varying):
    system = built(**varying)
    assert not system.time_invariant
    assert modes_of(system) == ("recurrent", "chunked", "matrix")
    phi = system.transfer_matrix()
    assert relative_error(phi[..., 1:, 1:], phi[..., :-1, :-1]) > 1e-3
    with pytest.raises(DSFSystemError, match=r"kernel needs a time-invariant system.*transfer_matrix"):
        system.kernel(5)
    with pytest.raises(DSFSystemError, match='mode="convolution" needs a time-invariant system'):
        evaluate(system, "convolution")


@kinds
def test_documents_and_pads_cut_the_toeplitz_matrix(kind):
    system = built(**kind | {"starts": (4,), "lengths": (11, 8)})
    phi, whole = system.transfer_matrix(), built(**kind).transfer_matrix()
    document = system.starts.cumsum(1)
    real = ~system.padded
    kept = (document[:, :, None] == document[:, None, :]) & real[:, :, None] & real[:, None, :]
    kept = kept.view(2, *(1,) * (phi.ndim - 3), 11, 11)
    torch.testing.assert_close(phi, torch.where(kept, whole, 0.0), rtol=1e-13, atol=1e-13)


def test_identity_and_constant_decay_are_time_invariant():
    assert Identity().time_invariant
    assert ScalarDecay(torch.zeros(2, 1, 3)).time_invariant
    assert not ScalarDecay(torch.zeros(1, 5, 1)).time_invariant
    assert Rotation(torch.zeros(1, 2)).time_invariant
    with pytest.raises(DSFSystemError, match="depends on time"):
        ScalarDecay(torch.zeros(1, 5, 1)).orbit(torch.ones(1, 1, 1, 1), 3)


# ---- eigenvalues -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FACTORS, MAPS, REAL])
def test_eigenvalues_are_those_of_the_dense_matrix(kind):
    system = built(**kind | {"batch": 1})
    values, realisation = system.eigenvalues()
    assert realisation == "native"
    assert values.shape == (1, 10, system.num_heads, system.B.shape[-1] if system.B is not None else system.state_size)
    width = 1 if system.input_map is not None else system.head_dim
    listed = values[0, 0].repeat_interleave(width, dim=0).flatten().to(torch.complex128)
    dense = torch.linalg.eigvals(system.matrices().Lambda[0, 1])
    distance = (listed[:, None] - dense[None]).abs()
    assert distance.min(0).values.max() < 1e-12
    assert distance.min(1).values.max() < 1e-12
    assert relative_error(torch.view_as_real(listed.sum()), torch.view_as_real(dense.sum())) < 1e-12


def test_eigenvalues_at_document_starts_and_pads():
    values = built(**FACTORS | {"starts": (3,), "lengths": (11, 6)}).eigenvalues().values
    assert not values[0, 2].any()
    assert values[0, 3].abs().min() > 0
    assert values[1, 5:].isnan().all()
    torch.testing.assert_close(values[..., 0::2], values[..., 1::2].conj(), equal_nan=True)


# ---- errors ----------------------------------------------------------------------------------------------------------

ONES = torch.ones(2, 5, 1, 3)
LAMBDA = Rotation(torch.zeros(1, 2), torch.zeros(1, 2))


def maps(**changes):
    given = {"u": ONES, "input_map": torch.ones(4, 3), "output_map": torch.ones(3, 4), "transition": LAMBDA}
    return DSFSystem(**given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_map": None}, "input_map is None"),
        ({"output_map": None}, "output_map is None"),
        ({"input_map": None, "output_map": None}, "B is None: give the factors B and C, or input_map"),
        ({"input_map": torch.ones(4, 2)}, r"input_map has shape \(4, 2\)"),
        ({"output_map": torch.ones(4, 3)}, r"output_map \(4, 3\)"),
        ({"u": torch.ones(2, 5, 3, 1)}, r"u \(2, 5, 3, 1\)"),
        ({"input_map": torch.ones(4, 3).double()}, "input_map is torch.float64"),
        ({"B": torch.ones(1, 1, 1, 4)}, "B is given beside input_map"),
        ({"input_gain": torch.ones(2, 5, 1)}, "input_gain is given beside input_map"),
        ({"normalized": True}, "normalized is True"),
        ({"transition": ScalarDecay(torch.zeros(2, 5, 1))}, "maps need a constant Λ"),
        ({"transition": Rotation(torch.zeros(1, 3), torch.zeros(1, 3))}, r"log_radius has shape \(1, 3\).*4 / 2"),
        ({"transition": Rotation(torch.zeros(1, 3))}, r"log_radius has shape \(1, 3\).*4\)"),
        ({"transition": Rotation(torch.zeros(1, 2), torch.zeros(1, 1))}, r"angle has shape \(1, 1\)"),
        ({"transition": Rotation(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))}, "angle and sign"),
        ({"transition": LAMBDA.mask(torch.ones(2, 5).bool(), None)}, "depends on time"),
    ],
)
def test_maps_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DSFSystemError, match=message):
        maps(**changes)


def test_constants_may_be_more_precise_than_half_precision_inputs():
    half = maps(u=ONES.bfloat16())
    y, state = evaluate(half)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(DSFSystemError, match=r"float16"):
        maps(u=ONES.bfloat16(), input_map=torch.ones(4, 3).half())
