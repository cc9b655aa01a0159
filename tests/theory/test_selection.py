"""Selection by inner product, soft and hard, and what no state of few bits can do.

Numeric tests 3 and 4 of the theory of dynamic token selection; source: Nishikawa & Suzuki 2025 (arXiv 2405.19036),
statements and proofs this project's own.
"""

import math

import pytest
import torch

from dsf_models import DSFSystem, FilterSystem, engine
from dsf_models.analysis.selection import (
    hard_selection,
    required_sharpness,
    selection_error_bound,
    selection_margin,
    soft_selection,
)
from dsf_models.transitions import Identity

FLOAT64 = torch.float64


def keys_with_margin(count, margin, width=8, batch=4):
    """Return keys, query and values whose best score exceeds the second by `margin`, at a random place."""
    query = torch.nn.functional.normalize(torch.randn(batch, width, dtype=FLOAT64), dim=-1)
    keys = torch.nn.functional.normalize(torch.randn(batch, count, width, dtype=FLOAT64), dim=-1)
    scores = torch.einsum("bvm,bm->bv", keys, query)
    # Only a key's part along the query counts: move the best one until the margin is as asked for.
    missing = margin - selection_margin(scores)
    keys[torch.arange(batch), scores.argmax(-1)] += missing[:, None] * query
    return keys, query, torch.randn(batch, count, 3, dtype=FLOAT64)


def error_of(scores, values, sharpness):
    return float((soft_selection(scores, values, sharpness) - hard_selection(scores, values)).norm(dim=-1).max())


@pytest.mark.parametrize("count", [10, 100, 1000, 10_000])
@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_soft_selection_errs_as_the_bound_says(count, margin):
    """Numeric test 4: ‖soft - hard‖ <= 2 V e^{-χδ} max ‖v‖ for V = 10 … 10^4 tokens and any margin δ.

    And the χ that the bound asks for reaches the error asked for.
    """
    keys, query, values = keys_with_margin(count, margin)
    scores, norm = torch.einsum("bvm,bm->bv", keys, query), float(values.norm(dim=-1).max())
    torch.testing.assert_close(selection_margin(scores), torch.full((4,), margin, dtype=FLOAT64))
    for exponent in (0.5, 2.0, 8.0, 20.0):
        bound = selection_error_bound(count, margin, exponent / margin, norm)
        assert error_of(scores, values, exponent / margin) <= bound <= 2 * count * math.exp(-exponent) * norm
    for epsilon in (1e-2, 1e-6):
        sharpness = required_sharpness(count, margin, epsilon, norm)
        assert selection_error_bound(count, margin, sharpness, norm) == pytest.approx(epsilon)
        assert error_of(scores, values, sharpness) <= epsilon


@pytest.mark.parametrize("count", [10, 10_000])
@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_the_error_of_a_soft_selection_falls_at_the_rate_of_the_margin(count, margin):
    """Numeric test 4: the slope of the log error in χ is -δ, here where one token alone is δ behind the best."""
    scores = -margin * (3 + 7 * torch.rand(4, count, dtype=FLOAT64))
    scores[:, 3], scores[:, 7] = 0.0, -margin
    values = torch.randn(4, count, 3, dtype=FLOAT64)
    sharpness = torch.linspace(10, 25, 7) / margin
    errors = torch.tensor([error_of(scores, values, float(x)) for x in sharpness]).log()
    slopes = errors.diff() / sharpness.diff()
    torch.testing.assert_close(slopes, torch.full((6,), -margin), rtol=2e-3, atol=0.0)


def test_what_no_sharpness_can_do_is_refused():
    for margin in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"margin={margin}.*between the two largest scores"):
            required_sharpness(5, margin, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"error=0\.0.*in the limit only"):
        required_sharpness(5, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"sharpness=-1\.0.*positive"):
        soft_selection(torch.ones(2), torch.ones(2, 1), -1.0)


def two_sided_sum(u):
    """Return Σ_j u_j at every position, by a filter with λ = 1 in both directions: (b, t, p) -> (b, t, p)."""
    one = torch.ones(1, 1, 1, 1, dtype=u.dtype)
    system = DSFSystem(u=u[:, :, None], B=one, C=one, transition=Identity())
    return engine.evaluate(FilterSystem(forward=system, backward=system))[0][:, :, 0]


def test_two_filters_and_networks_select():
    """FNN ∘ SSM ∘ FNN ∘ SSM: broadcast the query, weigh, sum, divide; the result is the soft selection everywhere."""
    keys, query, values = keys_with_margin(40, 0.5)
    sharpness = required_sharpness(40, 0.5, 1e-4, float(values.norm(dim=-1).max()))
    scores = torch.einsum("bvm,bm->bv", keys, query)
    given = torch.cat([torch.zeros_like(keys), query[:, None]], dim=1)
    broadcast = two_sided_sum(given)[:, :-1]
    weights = (sharpness * (keys * broadcast).sum(-1, keepdim=True)).exp()
    sums = two_sided_sum(torch.cat([weights * values, weights], dim=-1))
    selected = sums[..., :-1] / sums[..., -1:]
    torch.testing.assert_close(selected, soft_selection(scores, values, sharpness)[:, None].expand_as(selected))
    assert float((selected - hard_selection(scores, values)[:, None]).norm(dim=-1).max()) <= 1e-4


# ---- what a state can hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "tokens"), [(2, 53), (16, 13), (256, 6)])
def test_a_float64_state_holds_53_bits(vocabulary, tokens):
    """Numeric test 3: the state h = |W| h + x of one float64 number holds V tokens iff V log2 |W| <= 53.

    That is 53 tokens at |W| = 2, 13 at |W| = 16 and 6 at |W| = 256.
    """
    words = torch.randint(0, vocabulary, (200, tokens + 1))
    words[:, 0] = vocabulary - 1
    words[:, -1] |= 1
    for length, holds in ((tokens, True), (tokens + 1, False)):
        state = torch.zeros(200, dtype=FLOAT64)
        for token in words[:, -length:].unbind(1):
            state = vocabulary * state + token
        read = []
        for _ in range(length):
            read.append(state.remainder(vocabulary).long())
            state = ((state - read[-1]) / vocabulary).floor()
        assert torch.equal(torch.stack(read[::-1], dim=1), words[:, -length:]) is holds


def test_copying_needs_the_bits_of_the_string():
    """Numeric test 3: a causal model's answer is a function of its state, so p bits copy at most 2^p strings of |W|^V.

    All 2^20 strings of 20 bits through one state of 16 bits (bfloat16) and of 64: the first keeps apart no more than
    2^16, hence copies at most one string in 16, whatever reads it; the second keeps all apart.
    """
    strings = torch.arange(2**20)
    bits = (strings[:, None] >> torch.arange(20)) & 1
    for dtype, at_most, exact in ((torch.bfloat16, 2**16, False), (FLOAT64, 2**20, True)):
        state = torch.zeros(2**20, dtype=dtype)
        for token in bits.unbind(1):
            state = 0.5 * state + token.to(dtype)
        apart = len(state.unique())
        assert apart <= at_most
        assert (apart == 2**20) is exact
        assert apart > 100


@pytest.mark.parametrize("length", [32, 64, 128])
def test_copying_by_rotating_codes_needs_a_state_of_the_string_length(length):
    """Numeric test 3: M rotations e^{iω_m} a code bit copy V tokens exactly for M >= V/2, that is V real states.

    Below they blur: of |W| = 16 words 0.3 to 0.5 are right at M = V/4 and 0.15 to 0.3 at M = V/8.
    """
    words = torch.randint(0, 16, (50, length))
    code = 2.0 * ((words[..., None] >> torch.arange(4)) & 1).double() - 1

    def accuracy(modes):
        angle = 2 * math.pi * (torch.arange(modes) + 0.5).double() / length
        gap = torch.arange(length)[:, None] - torch.arange(length)
        kernel = 2 * (gap[..., None] * angle).cos().sum(-1) / length
        read = (torch.einsum("ij,bjw->biw", kernel, code) > 0).long()
        return float(((read << torch.arange(4)).sum(-1) == words).double().mean())

    assert accuracy(length // 2) == 1.0
    assert 0.3 < accuracy(length // 4) < 0.5
    assert 0.15 < accuracy(length // 8) < 0.3
