"""Regression of smooth functions of the most important tokens: how fast the error falls with the number of examples.

    python evaluation/papers/token_selection/regression.py oracle
    python evaluation/papers/token_selection/regression.py networks --size small --hours 1
    python evaluation/papers/token_selection/regression.py all --size small --report

`oracle` fits least squares that knows the smoothness; `networks` trains an SSM stack and a Transformer through
training/sweep.py, and goes on after an interruption; `all` does both. What has finished is kept under
evaluation/results/token_selection_regression/, from where `--report` writes report and figure alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from dsf_models.hub.files import write_json
from dsf_models.hub.provenance import environment_facts
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.papers.command import add_sweep_options
from evaluation.papers.study import ROOT
from evaluation.papers.sweeps import carry_out, read_json
from evaluation.papers.token_selection.networks import network_outcome
from evaluation.papers.token_selection.oracle import OracleStudy, plain, run_oracle
from evaluation.papers.token_selection.regression_report import FIGURE, TITLE, draw, report
from evaluation.reporting.keep import keep_report

RESULTS = ROOT / "evaluation" / "results" / "token_selection_regression"
ORACLE, NETWORKS = "oracle.json", "networks.json"
_EXIT = {"finished": 0, "failed": 1, "left": 3}


def setup(arguments: Sequence[str] | None = None) -> NoReturn:
    """Command line; exits with 0 where all has finished, 1 where runs have failed, 3 where some are left."""
    try:
        state = main(_options(arguments), RESULTS)
    except UsageError as error:
        sys.exit(f"regression.py: error: {error}")
    sys.exit(_EXIT[state])


def main(options: argparse.Namespace, results: Path) -> str:
    """Carry out what is asked for as far as the time goes, then report.

    Args:
        options: of the command line.
        results: folder that keeps what comes out.

    Returns:
        "finished", "failed" or "left".

    Raises:
        UsageError: the sweep is refused, or there is nothing to report.
    """
    state = "finished"
    kept = results / options.size
    if not options.report:
        if options.part == "networks":
            read_json(results / ORACLE)  # which the report will need
        if options.part != "networks":
            carry_out_oracle(OracleStudy(), results / ORACLE)
        if options.part != "oracle":
            state = carry_out(config_of(options.size), kept, options.hours, options.parallel)
    write_report(results, options.size)
    return state


def config_of(size: str) -> Path:
    """The file of the networks' sweep."""
    return ROOT / "configs" / "papers" / "token_selection" / f"regression_{size}.yaml"


def carry_out_oracle(study: OracleStudy, file: Path) -> None:
    """Compute the study of the oracle, unless the file has it."""
    if file.is_file() and read_json(file)["config"] == plain(study):
        return
    environment = environment_facts()  # of the code that is at work, whatever is committed meanwhile
    found = run_oracle(study)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**found, "environment": environment})


def write_report(results: Path, size: str) -> None:
    """Write report, figure and, for networks, `networks.json` from the kept files alone, and print the report.

    Raises:
        UsageError: there are none.
    """
    kept = results / size
    oracle = read_json(results / ORACLE)
    networks = None
    folder = results
    if (kept / "results.json").is_file():
        networks, folder = network_outcome(read_json(kept / "results.json")), kept
        write_json(folder / NETWORKS, networks)
    draw(oracle, networks, folder / FIGURE)
    print(keep_report(folder, TITLE, list(report(oracle, networks, size, folder))))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("part", choices=["oracle", "networks", "all"], nargs="?", default="all", help="what to run")
    add_sweep_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    setup()
