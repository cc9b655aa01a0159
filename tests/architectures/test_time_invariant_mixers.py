"""S4D, S5 and LRU: their equations in complex numbers, and where their eigenvalues start."""

import math

import pytest
import torch

from dsf_models import S5Config, engine, list_architectures
from dsf_models.backbone import get_architecture
from tests.contract import fresh, small_config

TIME_INVARIANT = ("lru", "s4d", "s5")
METHODS = ("zoh", "bilinear")


def mixer(name, **changes):
    """Return a mixer in float64 as its architecture initialises it."""
    architecture = get_architecture(name)
    torch.manual_seed(0)
    made = architecture.mixer_class(small_config(name, "bare", **changes), 0)
    made.init_parameters()
    return made.double()


def poles(made):
    return torch.complex(-made.A_re_log.exp(), torch.zeros_like(made.A_re_log) if made.A_im is None else made.A_im)


def discretized(made, delta, a):
    z = delta * a
    if made.discretization == "zoh":
        return z.exp(), (z.exp() - 1) / a
    return (1 + z / 2) / (1 - z / 2), delta / (1 - z / 2)


def run(eigenvalues, inputs):
    """Return h_i = Λ h_{i-1} + inputs_i for complex inputs (b, t, …)."""
    h, states = torch.zeros_like(inputs[:, 0]), []
    for added in inputs.unbind(1):
        h = eigenvalues * h + added
        states.append(h)
    return torch.stack(states, dim=1)


def equations_of_s4d(made, u):
    value, gain = discretized(made, made.log_dt.exp()[:, None], poles(made))
    h = run(value, gain * u[..., None])
    if made.real:
        return (made.C[..., 0] * h.real).sum(-1) + made.D * u
    return 2 * (torch.view_as_complex(made.C) * h).sum(-1).real + made.D * u


def equations_of_s5(made, u):
    value, gain = discretized(made, made.log_dt.exp(), poles(made))
    B, C = torch.complex(*made.B.unbind(1)), torch.view_as_complex(made.C)
    h = run(value, gain * (u.to(B.dtype) @ B.T))
    return 2 * (h @ C.T).real + made.D * u


def equations_of_lru(made, u):
    value = torch.exp(torch.complex(-made.nu_log.exp(), made.theta_log.exp()))
    B, C = torch.complex(*made.B.unbind(1)), torch.view_as_complex(made.C)
    h = run(value, made.gamma_log.exp() * (u.to(B.dtype) @ B.T))
    return (h @ C.T).real + made.D * u


@pytest.mark.parametrize(
    ("name", "changes", "equations"),
    [
        *(("s4d", {"a_init": a, "discretization": m}, equations_of_s4d) for a in ("lin", "real") for m in METHODS),
        *(("s5", {"discretization": m, "state_size": 8}, equations_of_s5) for m in METHODS),
        ("lru", {}, equations_of_lru),
    ],
)
@torch.no_grad()
def test_real_pairs_are_the_equations_in_complex_numbers(name, changes, equations):
    made, u = mixer(name, **changes), torch.randn(2, 13, 16, dtype=torch.float64)
    y, _ = engine.evaluate(made.system(u, None))
    torch.testing.assert_close(y.flatten(2), equations(made, u), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", TIME_INVARIANT)
def test_systems_do_not_depend_on_their_input(name):
    model = fresh(name, "full").double()
    one, other = (model.dsf_systems(torch.randint(1, 41, (2, 9)))[0] for _ in range(2))
    assert one.time_invariant
    assert torch.equal(one.kernel(9), other.kernel(9))
    assert not torch.equal(one.u, other.u)


def test_mixers_say_whether_they_are_time_invariant():
    said = {name for name in list_architectures() if get_architecture(name).time_invariant}
    assert said >= {*TIME_INVARIANT, "s4"}
    assert not said & {"ssd", "linear_attention", "softmax_attention"}


@pytest.mark.parametrize("name", TIME_INVARIANT)
def test_nothing_is_stored_in_complex_numbers(name):
    state = fresh(name, "default").state_dict()
    assert not any(value.is_complex() for value in state.values())


# ---- where eigenvalues start -----------------------------------------------------------------------------------------


def eigenvalues(made):
    width = made.inner_size
    return made.system(torch.zeros(1, 2, width, dtype=torch.float64), None).eigenvalues().values[0, 0]


@pytest.mark.parametrize("a_init", ["lin", "inv", "real"])
def test_poles_of_s4d(a_init):
    made = mixer("s4d", a_init=a_init, state_size=8)
    k = torch.arange(8 if a_init == "real" else 4)
    half = torch.full((len(k),), -0.5)
    expected = {
        "lin": torch.complex(half, math.pi * k),
        "inv": torch.complex(half, 8 / math.pi * (8 / (2 * k + 1) - 1)),
        "real": torch.complex(-(k + 1.0), torch.zeros(len(k))),
    }[a_init]
    torch.testing.assert_close(poles(made).to(torch.complex64), expected.expand(16, -1), rtol=1e-6, atol=1e-6)
    radius = eigenvalues(made).abs()
    slowest, fastest = (1.0, 8.0) if a_init == "real" else (0.5, 0.5)
    assert radius.shape == (16, 8)
    assert math.exp(-0.1 * fastest) - 1e-6 < radius.min()
    assert radius.max() < math.exp(-0.001 * slowest) + 1e-6
    delta = made.log_dt.exp()
    assert delta.min() >= 0.001 - 1e-9
    assert delta.max() <= 0.1 + 1e-6
    assert bool((made.D == 1).all())


@pytest.mark.parametrize("blocks", [1, 2])
@torch.no_grad()
def test_s5_starts_as_the_normal_part_of_hippo(blocks):
    made = mixer("s5", state_size=16, num_blocks=blocks)
    n = torch.arange(16 // blocks, dtype=torch.float64)
    root, rank_one = (2 * n + 1).sqrt(), (n + 0.5).sqrt()
    legs = -torch.outer(root, root).tril(-1) - torch.diag(n + 1)
    normal = torch.block_diag(*[legs + torch.outer(rank_one, rank_one)] * blocks)
    torch.testing.assert_close(normal + normal.T, -torch.eye(16, dtype=torch.float64), rtol=0.0, atol=1e-12)
    both = torch.cat([poles(made), poles(made).conj()])
    assert (both[:, None] - torch.linalg.eigvals(normal)).abs().min(0).values.max() < 1e-5
    # With one Δ the whole system has one exponential: traces know no basis.
    made.log_dt.fill_(math.log(0.1))
    step = torch.matrix_exp(0.1 * normal)
    expected = torch.stack([torch.linalg.matrix_power(step, e).trace() for e in range(5)])
    values = eigenvalues(made)[0]
    torch.testing.assert_close(torch.stack([(values**e).sum().real for e in range(5)]), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(values.abs(), torch.full((16,), math.exp(-0.05)).double(), rtol=1e-6, atol=0.0)


@torch.no_grad()
def test_start_of_s5_in_the_basis_of_its_eigenvectors():
    """Turned by half of a unitary matrix, B and C keep their variances, 1 / fan-in; Δ is drawn for each eigenvalue."""
    made = mixer("s5", hidden_size=128, state_size=256)
    assert made.B.square().sum(1).mean().item() == pytest.approx(1 / 128, rel=0.03)
    assert made.C.square().sum(-1).mean().item() == pytest.approx(1 / 256, rel=0.03)
    radius = eigenvalues(made).abs()
    assert math.exp(-0.05) - 1e-6 < radius.min() < 0.96
    assert 0.999 < radius.max() < math.exp(-0.0005) + 1e-6


def test_default_number_of_blocks():
    sizes = {256: 8, 16: 8, 8: 4, 4: 2, 6: 1, 2: 1, 40: 4}
    assert {size: S5Config(hidden_size=8, state_size=size).num_blocks for size in sizes} == sizes


@torch.no_grad()
@pytest.mark.parametrize(("r_min", "r_max"), [(0.9, 0.99), (0.0, 1.0), (0.5, 0.5)])
def test_ring_of_the_lru(r_min, r_max):
    """|λ|² is uniform in the ring, angles in [0, max_phase], and γ gives unit variance under white noise."""
    made = mixer("lru", state_size=4000, r_min=r_min, r_max=r_max, max_phase=1.5)
    values = eigenvalues(made)[0, 0::2]
    square = values.abs().square()
    assert r_min**2 - 1e-6 <= square.min()
    assert square.max() <= r_max**2 + 1e-6
    assert square.mean().item() == pytest.approx((r_min**2 + r_max**2) / 2, abs=0.02)
    assert values.angle().min() >= 0
    assert values.angle().max() <= 1.5 + 1e-6
    assert values.angle().mean().item() == pytest.approx(0.75, abs=0.03)
    variance = made.gamma_log.exp().square() / (1 - square)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0.0)
