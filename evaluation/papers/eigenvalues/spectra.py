"""Eigenvalues of six mixers before and after training on four tasks, in the manner of arXiv 2510.09379.

    python evaluation/papers/eigenvalues/spectra.py mqar --size small --hours 1
    python scripts/reviews.py && python evaluation/papers/eigenvalues/spectra.py text --size small
    python scripts/fashion_mnist.py && python evaluation/papers/eigenvalues/spectra.py pixels --size small
    python evaluation/papers/eigenvalues/spectra.py mqar --size small --report

Each task is a sweep of training runs; the report is on all tasks that have results. The same command goes on after an
interruption, also on another machine: what has finished is kept under evaluation/results/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.papers.command import EXIT, add_sweep_options
from evaluation.papers.eigenvalues.observed import observed_spectra
from evaluation.papers.eigenvalues.report import TASKS, write_report
from evaluation.papers.study import ROOT
from evaluation.papers.sweeps import carry_out, observe, sweep_folder


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: carry out the study of a task, or say in one line why not; see `EXIT`."""
    try:
        sys.exit(EXIT[main(arguments)])
    except UsageError as error:
        sys.exit(f"spectra.py: error: {error}")


def main(arguments: Sequence[str] | None = None) -> str:
    """Train and look at what is left of a task as far as the time goes, then report on all tasks.

    Returns:
        "finished", "failed" or "left".

    Raises:
        UsageError: naming what is wrong and how to put it right.
    """
    options = _options(arguments)
    state = "finished"
    if not options.report:
        config, kept = config_of(options.task, options.size), results_of(options.size) / options.task
        state = carry_out(config, kept, options.hours, options.parallel)
        observe(sweep_folder(config), kept, observed_spectra)
    try:
        print(write_report(results_of(options.size)))
    except UsageError:
        if options.report or state == "finished":
            raise
        print("No run has finished yet, so that there is nothing to report: go on later.")
    return state


def config_of(task: str, size: str) -> Path:
    """The file of a task's sweep."""
    return ROOT / "configs" / "papers" / "eigenvalues" / f"{task}_{size}.yaml"


def results_of(size: str) -> Path:
    """The folder of all tasks' results, which is kept under version control."""
    return ROOT / "evaluation" / "results" / f"eigenvalues_{size}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="spectra.py", description=__doc__)
    parser.add_argument("task", choices=list(TASKS), help="which task")
    add_sweep_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    setup()
