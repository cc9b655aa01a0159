"""The benchmark of the numerics bar covers every structure of Λ, and reports what the engine's errors are."""

from dsf_models.engine import CHUNKED_KERNELS, MODES
from evaluation.benchmarks.numerics import KINDS, Result, as_json, measure_regime, print_results, regimes
from evaluation.benchmarks.random_systems import Case


def test_every_structure_with_a_kernel_is_measured():
    cases = [Case(**kind.fields | fields) for kind in KINDS.values() for _, fields in regimes(kind)]
    measured = {type(case.system(case.tensors()).transition) for case in cases}
    assert measured == set(CHUNKED_KERNELS)


def test_results_of_one_regime():
    fields = KINDS["scalar"].fields | {"decay": "benign"}
    results = measure_regime("scalar", "benign", fields, length=9, seeds=2)
    assert [(result.mode, result.dtype) for result in results] == [
        (mode, dtype) for dtype in ("float32", "float64") for mode in MODES
    ]
    assert all(result.met for result in results)
    assert all(result.worst > 0 for result in results if result.dtype == "float32")


def test_what_is_beyond_a_bar_is_said(capsys):
    fields = {"structure": "scalar", "regime": "benign", "mode": "chunked", "dtype": "float32", "length": 9}
    result = Result(**fields, output=2e-6, state=0.0, gradient=float("inf"), worst_gradient="C", bar=1e-6)
    print_results([result])
    assert (
        "NOT MET  scalar, benign, 9 tokens, chunked, float32: y 2.0e-06, gradient of C inf" in capsys.readouterr().out
    )
    assert as_json(result)["gradient"] is None
    assert as_json(result)["met"] is False
