"""A system that does not fit together is refused where it is built: the message names field, value and remedy."""

import pytest
import torch

from dsf_models.filters import FilterSystem
from dsf_models.system import DSFSystem, DSFSystemError, Identity, ScalarDecay, SoftmaxSystem
from dsf_models.transitions import DPLR, DeltaRule, ElementwiseDecay, FactoredDecay, KeyDiagonal, Rotation, interrupt

BATCH, LENGTH, HEADS, WIDTH, GROUPS, STATES = 2, 5, 4, 3, 2, 6


def build(**change):
    fields = {
        "u": torch.zeros(BATCH, LENGTH, HEADS, WIDTH),
        "B": torch.zeros(BATCH, LENGTH, GROUPS, STATES),
        "C": torch.zeros(BATCH, LENGTH, GROUPS, STATES),
        "transition": Identity(),
    }
    return DSFSystem(**(fields | change))


def test_the_systems_below_differ_from_one_that_fits():
    assert build().state_size == HEADS * WIDTH * STATES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 5, 12)}, ["u ", "(2, 5, 12)", "(batch, time, heads, head width)"]),
        ({"u": torch.zeros(2, 0, 4, 3)}, ["u ", "(2, 0, 4, 3)", "at least one step"]),
        ({"u": torch.zeros(2, 5, 4, 3, dtype=torch.int64)}, ["u is torch.int64", "floating-point"]),
        ({"u": torch.zeros(2, 5, 4, 3, dtype=torch.complex64)}, ["u is torch.complex64", "floating-point"]),
        ({"u": torch.zeros(2, 5, 4, 3).double()}, ["B is torch.float32", "u is torch.float64", "cast both"]),
        ({"B": torch.zeros(2, 5, 6)}, ["B has shape (2, 5, 6)", "(2|1, 5|1, groups dividing 4, states)"]),
        ({"B": torch.zeros(3, 5, 2, 6)}, ["B has shape (3, 5, 2, 6)", "2|1"]),
        ({"C": torch.zeros(2, 4, 2, 6)}, ["C has shape (2, 4, 2, 6)", "5|1"]),
        ({"C": torch.zeros(2, 5, 3, 6)}, ["C has shape (2, 5, 3, 6)", "groups dividing 4"]),
        ({"C": torch.zeros(2, 5, 8, 6)}, ["C has shape (2, 5, 8, 6)", "groups dividing 4"]),
        ({"B": torch.zeros(2, 5, 0, 6)}, ["B has shape (2, 5, 0, 6)", "groups dividing 4"]),
        ({"C": torch.zeros(2, 5, 2, 7)}, ["B has 6 states per channel and C has 7", "equal"]),
        ({"C": torch.zeros(2, 5, 2, 6).half()}, ["C is torch.float16", "cast both"]),
        ({"D": torch.zeros(3)}, ["D has shape (3,)", "(4,) or (4, 3)"]),
        ({"D": torch.zeros(2, 5, 4)}, ["D has shape (2, 5, 4)", "(4,) or (4, 3)"]),
        ({"input_gain": torch.zeros(4)}, ["input_gain has shape (4,)", "(2, 5, 4) or (2, 5, 4, 3)"]),
        ({"input_gain": torch.zeros(2, 5, 2)}, ["input_gain has shape (2, 5, 2)", "(2, 5, 4)"]),
        ({"output_gain": torch.zeros(2, 5, 4, 1)}, ["output_gain has shape (2, 5, 4, 1)", "(2, 5, 4, 3)"]),
        ({"output_gain": torch.zeros(2, 6, 4)}, ["output_gain has shape (2, 6, 4)", "(2, 5, 4)"]),
        (
            {"normalized": True, "input_gain": torch.zeros(2, 5, 4, 3)},
            ["input_gain has shape (2, 5, 4, 3)", "one normaliser a head", "(2|1, 5|1, 4)", "multiply it into u"],
        ),
        ({"log_normalizer": torch.zeros(2, 5, 2)}, ["log_normalizer has shape (2, 5, 2)", "(2, 5, 4)"]),
        (
            {"log_normalizer": torch.zeros(2, 5, 4, 3)},
            ["log_normalizer has shape (2, 5, 4, 3)", "one normaliser a head"],
        ),
        (
            {"log_normalizer": torch.zeros(2, 5, 4), "normalized": True},
            ["log_normalizer has shape (2, 5, 4) and normalized is True", "one normaliser a head"],
        ),
        ({"u": torch.zeros(2, 5, 0, 3)}, ["u ", "(2, 5, 0, 3)", "head and channel"]),
        ({"B": torch.zeros(2, 5, 2, 0), "C": torch.zeros(2, 5, 2, 0)}, ["B has shape (2, 5, 2, 0)", "at least one"]),
        ({"D": torch.zeros(4, dtype=torch.int64)}, ["D is torch.int64", "floating-point"]),
        ({"input_gain": torch.zeros(2, 5, 4).long()}, ["input_gain is torch.int64", "floating-point"]),
        ({"log_normalizer": torch.zeros(2, 5, 4).long()}, ["log_normalizer is torch.int64", "floating-point"]),
        ({"lengths": torch.tensor([True, False])}, ["lengths is torch.bool", "integers (2,)"]),
        ({"normalized": "yes"}, ["normalized='yes'", "True nor False"]),
        ({"transition": None}, ["transition=None", "structure of Λ"]),
        ({"transition": ScalarDecay(torch.zeros(2, 5, 4).long())}, ["log_decay is torch.int64", "floating-point"]),
        ({"transition": ScalarDecay(torch.zeros(2, 5, 4) + 0j)}, ["log_decay is torch.complex64", "real"]),
        (
            {"transition": ScalarDecay(torch.zeros(2, 5, 4), torch.ones(2, 5, 4).bool())},
            ["sign is torch.bool", "floating-point"],
        ),
        (
            {"transition": FactoredDecay(torch.zeros(2, 5, 4, 3), torch.ones(4, 6, 3).long())},
            ["rate is torch.int64", "floating-point"],
        ),
        ({"transition": KeyDiagonal(torch.zeros(2, 5, 2, 6).long())}, ["log_decay is torch.int64"]),
        ({"transition": Rotation(torch.zeros(4, 6).long())}, ["log_radius is torch.int64"]),
        (
            {"transition": DPLR(torch.zeros(4, 3, 2).long(), torch.zeros(4, 6), torch.zeros(4, 6))},
            ["diagonal is torch.int64"],
        ),
        (
            {"transition": DeltaRule(torch.zeros(2, 5, 4), torch.zeros(2, 5, 2, 6), torch.zeros(2, 5, 4).long())},
            ["beta is torch.int64"],
        ),
        (
            {"transition": interrupt(ScalarDecay(torch.zeros(2, 5, 4)), None, None, 5, torch.device("cpu"))},
            ["inner", "'scalar'", "depends on time", "mask()"],
        ),
        ({"starts": torch.zeros(2, 4, dtype=torch.bool)}, ["starts", "(2, 4)", "booleans (2, 5)"]),
        ({"starts": torch.zeros(2, 5)}, ["starts is torch.float32", "booleans (2, 5)"]),
        ({"lengths": torch.zeros(5, dtype=torch.int64)}, ["lengths", "(5,)", "integers (2,)"]),
        ({"lengths": torch.zeros(2)}, ["lengths is torch.float32", "integers (2,)"]),
        ({"transition": ScalarDecay(torch.zeros(2, 5))}, ["log_decay has shape (2, 5)", "(2|1, 5|1, 4|1)"]),
        ({"transition": ScalarDecay(torch.zeros(2, 5, 2))}, ["log_decay has shape (2, 5, 2)", "step and head"]),
        ({"transition": ScalarDecay(torch.zeros(2, 3, 4))}, ["log_decay has shape (2, 3, 4)", "broadcast"]),
        (
            {"transition": FactoredDecay(torch.zeros(2, 5, 4), torch.ones(4, 6, 3))},
            ["delta has shape (2, 5, 4)", "(b, t, h, p) = (2|1, 5|1, 4|1, 3|1)"],
        ),
        (
            {"transition": FactoredDecay(torch.zeros(2, 5, 4, 2), torch.ones(4, 6, 3))},
            ["delta has shape (2, 5, 4, 2)", "3|1"],
        ),
        (
            {"transition": FactoredDecay(torch.zeros(2, 5, 4, 3), torch.ones(4, 3, 6))},
            ["rate has shape (4, 3, 6)", "(h, n, p) = (4|1, 6|1, 3|1)"],
        ),
        (
            {"transition": FactoredDecay(torch.zeros(2, 5, 4, 3), torch.ones(4, 6, 3)), "normalized": True},
            ["normalized is True", "'factored'", "leave normalized out"],
        ),
        (
            {"transition": ScalarDecay(torch.zeros(2, 5, 4), torch.ones(1, 1, 4))},
            ["sign has shape (1, 1, 4)", "log_decay's (2, 5, 4)"],
        ),
    ],
)
def test_errors_name_the_field_its_value_and_the_remedy(change, message):
    with pytest.raises(DSFSystemError) as error:
        build(**change)
    for part in message:
        assert part in str(error.value)


PER_CHANNEL = {
    "B": torch.zeros(1, 1, 1, 1),
    "C": torch.zeros(1, 1, 1, 1),
    "transition": ElementwiseDecay(torch.zeros(2, 5, 4, 3)),
}
TWO_STATES = {"B": torch.zeros(1, 1, 1, 2), "C": torch.zeros(1, 1, 1, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": ElementwiseDecay(torch.zeros(2, 5, 4))}, ["decay has shape (2, 5, 4)", "(2|1, 5|1, 4, 3)"]),
        (
            {"transition": ElementwiseDecay(torch.zeros(2, 5, 1, 3))},
            ["decay has shape (2, 5, 1, 3)", "one λ"],
        ),
        ({"transition": ElementwiseDecay(torch.zeros(2, 3, 4, 3))}, ["decay has shape (2, 3, 4, 3)", "broadcast"]),
        (
            {"B": torch.zeros(1, 1, 1, 2), "C": torch.zeros(1, 1, 1, 2)},
            ["B has 2 states", "'elementwise'", "of width 1"],
        ),
        ({"normalized": True}, ["normalized is True", "'elementwise'", "leave normalized out"]),
    ],
)
def test_errors_of_decays_per_channel(change, message):
    assert build(**PER_CHANNEL).state_size == HEADS * WIDTH
    with pytest.raises(DSFSystemError) as error:
        build(**PER_CHANNEL | change)
    for part in message:
        assert part in str(error.value)
    with pytest.raises(DSFSystemError, match="rescale by a scalar per head is not written for Λ of structure 'element"):
        build(**PER_CHANNEL).rescale(torch.ones(BATCH, LENGTH + 1, HEADS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 4, 3).long()}, ["q is torch.int64", "floating-point"]),
        ({"k": torch.zeros(2, 5, 4, 3).double()}, ["k torch.float64", "one dtype"]),
        (dict.fromkeys(("q", "k", "u"), torch.zeros(2, 0, 4, 3)), ["(2, 0, 4, 3)", "no step"]),
        ({"scale": float("nan")}, ["scale=nan", "positive and finite"]),
        ({"scale": float("inf")}, ["scale=inf", "positive and finite"]),
        ({"window": 0}, ["window=0", "at least 1", "None for all"]),
        ({"window": True}, ["window=True", "at least 1"]),
        ({"window": 2.5}, ["window=2.5", "whole number"]),
    ],
)
def test_errors_of_softmax(change, message):
    fields = {name: torch.zeros(2, 5, 4, 3) for name in ("q", "k", "u")} | {"scale": 1.0}
    assert SoftmaxSystem(**fields).length == LENGTH
    with pytest.raises(DSFSystemError) as error:
        SoftmaxSystem(**fields | change)
    for part in message:
        assert part in str(error.value)


def constant(**change):
    return build(B=torch.zeros(1, 1, 1, STATES), C=torch.zeros(1, 1, 1, STATES), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward": None}, ["forward is a NoneType", "DSFSystem"]),
        ({"forward": build()}, ["a filter needs a time-invariant system"]),
        ({"backward": constant(u=torch.zeros(2, 6, 4, 3))}, ["backward.u has shape (2, 6, 4, 3)", "(2, 5, 4, 3)"]),
        ({"backward": constant(D=torch.zeros(4))}, ["backward.D", "forward"]),
        ({"window": 0}, ["window=0", "at least 1", "None for no window"]),
        ({"window": True}, ["window=True", "at least 1"]),
        ({"window": 1.5}, ["window=1.5", "whole number"]),
    ],
)
def test_errors_of_filters(change, message):
    assert FilterSystem(forward=constant(), window=2).length == LENGTH
    with pytest.raises(DSFSystemError) as error:
        FilterSystem(**{"forward": constant()} | change)
    for part in message:
        assert part in str(error.value)


def test_the_error_is_a_value_error():
    assert issubclass(DSFSystemError, ValueError)


def test_the_pieces_of_a_system_fit_again():
    """`narrow`, `to` and `with_layout` build systems, which are checked as any other."""
    system = build(transition=ScalarDecay(torch.zeros(1, LENGTH, 1)), D=torch.zeros(HEADS))
    starts, lengths = torch.zeros(BATCH, LENGTH, dtype=torch.bool), torch.tensor([5, 3])
    packed = system.with_layout(starts, lengths)
    piece = packed.narrow(2, 2)
    assert system.with_layout(None, None) is system
    assert piece.u.shape == (BATCH, 2, HEADS, WIDTH)
    assert piece.transition.log_decay.shape == (1, 2, 1)
    assert piece.lengths.tolist() == [2, 1]
    assert packed.narrow(4, 1).lengths.tolist() == [1, 0]
    assert packed.to(torch.float64).transition.log_decay.dtype == torch.float64
    assert packed.to(torch.float64).lengths is lengths
    with pytest.raises(DSFSystemError, match="lengths"):
        system.with_layout(None, torch.tensor([5]))


def test_matrices_that_no_memory_holds_are_refused():
    u = torch.zeros(1, 20, 8, 64)
    system = DSFSystem(u=u, B=torch.zeros(1, 20, 1, 128), C=torch.zeros(1, 20, 1, 128), transition=Identity())
    with pytest.raises(DSFSystemError, match=r"N = 65536 states and d = 512 channels at 1 x 20 steps take 650 GiB"):
        system.matrices()
