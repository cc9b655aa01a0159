"""How fast least squares that knows the smoothness learns a smooth function: the rate without any network.

    theory: squared error on n examples ~ n^{-2a†/(2a†+1)}, a† = min_j a_j

The sorting sieve reads the tokens by rank of importance; the position-wise one reads the last tokens, as a model would
that cannot select. The generator, the sieve and this study are this project's own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from dsf_models.tasks.counter_rng import Floats, RowRandom
from dsf_models.tasks.smooth import (
    SmoothFunction,
    draw_examples,
    draw_smooth_function,
    position_content,
    ranked_content,
    rate_exponent,
    squared_distance,
    tuned_sieve,
    unit_variance,
)
from evaluation.papers.token_selection.rates import slope

_SCOPE = "papers/token_selection/oracle"


@dataclass(frozen=True, kw_only=True)
class OracleStudy:
    """What is computed."""

    exponents: Sequence[Sequence[float]] = ((1.0, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 5.0), (1.0, 3.0, 5.0, 7.0))
    """a_j of the variables, by decreasing importance."""

    sizes: Sequence[int] = (128, 256, 512, 1024, 2048, 4096)
    """Numbers of examples n."""

    tokens: int = 16
    """Tokens V of an example."""

    replicates: int = 16
    """Functions, each with examples of its own; the n examples of a size begin those of the next."""

    validation: int = 2000
    """Noisy examples that choose T."""

    levels: float = 9.0
    """The function has components up to γ = levels · a†, about 2^levels of them."""

    sigma: float = 0.3
    """Standard deviation of the noise; the functions have variance 1."""

    most: int = 256
    """Functions of the largest sieve that is tried, and a quarter of the examples at most; many more than ever win."""


@dataclass(frozen=True)
class _Sets:
    """One replicate's examples: importance and content (b, t), observed values (b,)."""

    importance: Floats
    content: Floats
    observed: Floats

    def variables(self, ranks: int, sorting: bool) -> Floats:
        """What the sieve reads, (b, j)."""
        if sorting:
            return ranked_content(self.importance, self.content, ranks)
        return position_content(self.content, ranks)


def run_oracle(study: OracleStudy) -> dict[str, Any]:
    """Fit both sieves to every size and replicate.

    Returns:
        `config`; `cases`, one for each choice of exponents: squared errors against the function without noise by sieve
        (replicates × sizes), slopes with bootstrap intervals, and theory; `seeds`; `data_hashes`, of the largest
        training sets.
    """
    cases, hashes = [], []
    for exponents in study.exponents:
        a = np.array(exponents)
        found: dict[str, list[list[float]]] = {"sorting": [], "position_wise": []}
        for seed in range(study.replicates):
            f = unit_variance(draw_smooth_function(seed, a, study.levels * a.min()))
            train = _draw(study, f, seed, "train", max(study.sizes))
            validation = _draw(study, f, seed, "validation", study.validation)
            hashes.append(sha256(b"".join(x.tobytes() for x in vars(train).values())).hexdigest())
            for name, errors in found.items():
                errors.append(_errors(study, f, train, validation, a, sorting=name == "sorting"))
        cases.append(_case(study, exponents, found))
    return {
        "config": plain(study),
        "cases": cases,
        "seeds": list(range(study.replicates)),
        "data_hashes": hashes,
    }


def plain(study: OracleStudy) -> dict[str, Any]:
    """What is computed, as JSON reads it back."""
    return json.loads(json.dumps(asdict(study)))


def _case(study: OracleStudy, exponents: Sequence[float], found: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """What is said of one choice of exponents."""
    slopes = {name: slope(study.sizes, errors).to_dict() for name, errors in found.items()}
    theory = -rate_exponent(np.array(exponents))
    return {"exponents": list(exponents), "theory": theory, "errors": dict(found), "slopes": slopes}


def _draw(study: OracleStudy, f: SmoothFunction, seed: int, split: str, count: int) -> _Sets:
    rng = RowRandom(seed, f"{_SCOPE}/{split}", np.arange(count, dtype=np.uint64))
    drawn = draw_examples(f, rng, study.tokens, "piecewise", sigma=study.sigma)
    return _Sets(drawn.importance, drawn.content, drawn.observed)


def _errors(
    study: OracleStudy, f: SmoothFunction, train: _Sets, validation: _Sets, a: Floats, *, sorting: bool
) -> list[float]:
    """Squared error of the tuned sieve for each size; the position-wise one's variables are independent of f's."""
    ranks = len(a)
    x, held = train.variables(ranks, sorting), (validation.variables(ranks, sorting), validation.observed)
    fits = [tuned_sieve((x[:n], train.observed[:n]), held, a, min(n // 4, study.most)) for n in study.sizes]
    return [squared_distance(f, fit) if sorting else _apart(f, fit, study.tokens) for fit in fits]


def _apart(f: SmoothFunction, fit: SmoothFunction, tokens: int) -> float:
    """E (f(ranked) - fit(last tokens))², estimated on 4,000 fresh examples without noise."""
    rng = RowRandom(0, f"{_SCOPE}/test", np.arange(4000, dtype=np.uint64))
    drawn = draw_examples(f, rng, tokens, "piecewise", sigma=0.0)
    return float(((drawn.target - fit(position_content(drawn.content, f.frequencies.shape[1]))) ** 2).mean())
