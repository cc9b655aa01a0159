"""Measures what this project promises about exactness: every mode beside the float64 reference, for every Λ.

    python evaluation/benchmarks/numerics.py [--only scalar dplr] [--lengths 128 512] [--output FILE.json]

For each structure of Λ, each regime of its decays, each mode and dtype: the relative errors ‖x - x*‖ / ‖x*‖ of outputs,
of the last state and of every gradient, where x* is what `evaluate_sequential` computes in float64 from the same,
already rounded numbers. The worst is printed beside the bar of its dtype, met or not.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsf_models.engine import evaluate, evaluate_sequential, modes_of
from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from evaluation.benchmarks.random_systems import CONSTANT_FACTORS, DECAYS, RADII, Case, outcome, relative_error

BARS = {torch.float32: 1e-6, torch.float64: 1e-10}
"""Largest relative error that is promised, by dtype."""

SIZES = {"batch": 2, "heads": 2, "groups_B": 1, "groups_C": 1, "states": 8, "width": 4}
CONSTANT = {"broadcasts": CONSTANT_FACTORS}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One structure of Λ, with the decays that it can have."""

    fields: dict[str, object]
    """What makes a `Case` one of this kind."""
    regimes: tuple[str | None, ...] = DECAYS
    """Regimes of its decays; None where it has none."""
    signs: bool = False
    """Whether it may also be negative (for the delta rule: have β up to 2, and so the eigenvalue -1)."""


KINDS = {
    "identity": Kind(fields={"decay": None}, regimes=(None,)),
    "identity, normalised": Kind(fields={"decay": None, "normalized": True, "input_gain": 3}, regimes=(None,)),
    "scalar": Kind(fields={"structure": "scalar"}, signs=True),
    "key_diagonal": Kind(fields={"structure": "key_diagonal"}, signs=True),
    "elementwise": Kind(fields={"structure": "elementwise"}, signs=True),
    "factored": Kind(fields={"structure": "factored"}),
    "diagonal": Kind(fields={"structure": "diagonal"}, signs=True),
    "delta_rule": Kind(fields={"structure": "delta_rule"}, signs=True),
    "delta_rule_at_B": Kind(fields={"structure": "delta_rule_at_B"}, signs=True),
    "dplr": Kind(fields={"structure": "dplr"}),
    "rotation": Kind(fields={"structure": "rotation", **CONSTANT}, regimes=RADII),
    "real_rotation": Kind(fields={"structure": "real_rotation", **CONSTANT}, regimes=RADII, signs=True),
    "rotation with maps": Kind(fields={"structure": "rotation", "maps": True, "heads": 1}, regimes=RADII),
}
"""Every structure of Λ that the engine has a kernel for."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The worst relative errors of one mode over all seeds."""

    structure: str
    regime: str
    mode: str
    dtype: str
    length: int
    output: float
    state: float
    gradient: float
    worst_gradient: str
    """Whose gradient has the error above."""
    bar: float

    @property
    def worst(self) -> float:
        """Return the largest of the three errors."""
        return max(self.output, self.state, self.gradient)

    @property
    def met(self) -> bool:
        """Whether the bar is."""
        return self.worst <= self.bar


def regimes(kind: Kind) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the name of each regime with the fields of a `Case` that make it."""
    for regime in kind.regimes:
        yield regime or "none", {"decay": regime}
        if kind.signs:
            yield f"{regime}, signed", {"decay": regime, "signed": True}


def measure(case: Case, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Return the relative error of every quantity, by mode."""
    tensors = case.tensors(dtype)
    reference = outcome(case, {name: value.double() for name, value in tensors.items()}, evaluate_sequential)
    errors = {}
    for mode in modes_of(case.system(tensors)):
        found = outcome(case, tensors, lambda system, state, mode=mode: evaluate(system, mode, state))
        errors[mode] = {name: relative_error(found[name], value) for name, value in reference.items()}
    return errors


def measure_regime(structure: str, regime: str, fields: dict[str, object], length: int, seeds: int) -> list[Result]:
    """Return a result for each mode and dtype."""
    results = []
    for dtype, bar in BARS.items():
        drawn = [measure(Case(**SIZES | {"length": length, "seed": seed} | fields), dtype) for seed in range(seeds)]
        for mode in drawn[0]:
            worst = {name: max(errors[mode][name] for errors in drawn) for name in drawn[0][mode]}
            gradients = {name: error for name, error in worst.items() if name.startswith("gradient")}
            name = max(gradients, key=gradients.__getitem__)
            results.append(
                Result(
                    structure=structure,
                    regime=regime,
                    mode=mode,
                    dtype=str(dtype).removeprefix("torch."),
                    length=length,
                    output=worst["y"],
                    state=worst["state"],
                    gradient=gradients[name],
                    worst_gradient=name.removeprefix("gradient of "),
                    bar=bar,
                )
            )
    return results


def print_results(results: Sequence[Result]) -> None:
    """Print the worst error by mode and dtype for each structure and regime, and then whatever exceeds a bar."""
    columns = list(dict.fromkeys((result.mode, result.dtype) for result in results))
    rows = list(dict.fromkeys((result.structure, result.regime, result.length) for result in results))
    table = {(r.structure, r.regime, r.length, r.mode, r.dtype): r.worst for r in results}
    print(f"\n{'structure of Λ':<22}{'regime':<21}{'tokens':>6}", *(f"{mode:>12}" for mode, _ in columns), sep="")
    print(" " * 49, *(f"{dtype:>12}" for _, dtype in columns), sep="")
    for structure, regime, length in rows:
        cells = (table.get((structure, regime, length, *column)) for column in columns)
        print(f"{structure:<22}{regime:<21}{length:>6}", *(f"{_shown(cell):>12}" for cell in cells), sep="")
    missed = sorted((result for result in results if not result.met), key=lambda result: -result.worst / result.bar)
    print(f"\n{len(results) - len(missed)} of {len(results)} met: at most", end=" ")
    print(" and ".join(f"{bar:g} in {str(dtype).removeprefix('torch.')}" for dtype, bar in BARS.items()))
    for result in missed:
        errors = {"y": result.output, "state": result.state, f"gradient of {result.worst_gradient}": result.gradient}
        beyond = ", ".join(f"{name} {_shown(error)}" for name, error in errors.items() if not error <= result.bar)
        print(
            f"NOT MET  {result.structure}, {result.regime}, {result.length} tokens, {result.mode}, {result.dtype}: "
            f"{beyond}"
        )


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def as_json(result: Result) -> dict[str, object]:
    """Return a result as JSON can express it: an error that is not finite is null, and its bar is not met."""
    fields = {key: None if value == math.inf else value for key, value in asdict(result).items()}
    return fields | {"met": result.met}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="structures of Λ")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512], help="tokens of the sequences")
    parser.add_argument("--seeds", type=int, default=2, help="systems drawn for each regime; the worst counts")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    results = []
    for structure in arguments.only:
        for regime, fields in regimes(KINDS[structure]):
            for length in arguments.lengths:
                chosen = KINDS[structure].fields | fields
                results += measure_regime(structure, regime, chosen, length, arguments.seeds)
        print(f"{structure}: measured", file=sys.stderr, flush=True)
    print_results(results)
    if arguments.output is not None:
        content = {
            "sizes": SIZES,
            "seeds": arguments.seeds,
            "bars": {str(dtype).removeprefix("torch."): bar for dtype, bar in BARS.items()},
            "results": [as_json(result) for result in results],
            **environment_facts(),
        }
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
