"""Systems drawn at random over all kinds at once, and what the outcomes of their evaluations must fulfil."""

import random
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from evaluation.benchmarks.random_systems import (
    CONSTANT_FACTORS,
    DECAYS,
    RADII,
    ROTATIONS,
    STRUCTURES,
    Case,
    relative_error,
)

BROADCASTS = (*CONSTANT_FACTORS, "gain batch", "gain time", "decay batch", "decay time")
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 23, 24, 25)
CHUNKS = (1, 3, 8, 64)


def assert_outcomes_match(
    result: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    tolerance: float,
    floor: float = 0.0,
    label: str = "",
) -> None:
    """Fail with every quantity whose relative error exceeds the tolerance."""
    errors = {name: relative_error(result[name], value, floor) for name, value in reference.items()}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"{label} relative errors above {tolerance}: {wrong}"


def random_case(seed: int, **fixed: object) -> Case:
    """Draw a system of any kind; `fixed` fields are set afterwards."""
    draw = random.Random(seed)
    batch, length, heads = draw.randint(1, 3), draw.choice(LENGTHS), draw.choice([1, 2, 4, 6, 6])
    batch, length, heads = (fixed.get(k, v) for k, v in {"batch": batch, "length": length, "heads": heads}.items())
    divisors = [g for g in (1, 2, 3, 4, 6) if heads % g == 0]
    groups = draw.choice(divisors)
    normalized = draw.random() < 0.3
    case = Case(
        batch=batch,
        length=length,
        heads=heads,
        groups_B=groups,
        groups_C=draw.choice([groups, groups, draw.choice(divisors)]),
        states=draw.randint(1, 4),
        width=draw.randint(1, 3),
        decay=draw.choice([None, None, *DECAYS]),
        # A signed normaliser may be as near to 0 as it likes: its quotient is ill-conditioned, whoever computes it.
        signed=not normalized and draw.random() < 0.5,
        decay_per_head=draw.random() < 0.7,
        broadcasts=tuple(name for name in BROADCASTS if draw.random() < 0.25),
        normalized=normalized,
        D=draw.choice([None, 1, 2]),
        # One normaliser a head takes one input gain a head.
        input_gain=draw.choice([None, 3, 3 if normalized else 4]),
        output_gain=draw.choice([None, 3, 4]),
        starts=draw.choice([None, tuple(sorted(time for time in range(length) if draw.random() < 0.3))]),
        lengths=draw.choice([None, tuple(draw.choice([0, draw.randint(0, length), length]) for _ in range(batch))]),
        state=draw.random() < 0.6,
        seed=seed,
        # Channels that each have their own λ share no normaliser; DPLR and the delta rule take weights of either sign.
        structure=draw.choice(("scalar", "key_diagonal") if normalized else STRUCTURES),
        log_normalizer=not normalized and draw.random() < 0.3,
    )
    if draw.random() < 0.3:
        case = replace(case, **_rotation_fields(case, draw))
    return replace(case, **fixed)


def _rotation_fields(case: Case, draw: random.Random) -> dict[str, object]:
    """Draw what makes a case one with constant eigenvalues, half of the time with constant factors or maps too."""
    fields: dict[str, object] = {"structure": draw.choice(ROTATIONS), "decay": draw.choice(RADII)}
    if draw.random() < 0.3:
        gains = {"input_gain": None, "output_gain": None, "normalized": False, "log_normalizer": False}
        alone = {"groups_B": 1, "groups_C": 1, **gains}
        return fields | alone | {"heads": 1, "maps": True}
    if draw.random() < 0.5:
        fields["broadcasts"] = tuple({*case.broadcasts, *CONSTANT_FACTORS, "gain time"})
    # A rotating normaliser may be as near to 0 as it likes, too.
    return fields | {"normalized": case.normalized and fields["structure"] == "real_rotation"}
