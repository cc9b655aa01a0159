"""The command line of a paper's studies."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from dsf_models.hub.files import write_json, write_text
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.papers.figure import draw
from evaluation.papers.outcome import outcome
from evaluation.papers.study import Study
from evaluation.papers.sweeps import carry_out, observe, sweep_folder
from evaluation.reporting.blocks import Image, Picture, to_markdown
from evaluation.reporting.sections import OUTCOME, study_blocks

FIGURE = "figure.png"
EXIT = {"finished": 0, "failed": 1, "left": 3}
"""Exit code of each state of a study."""


def setup(studies: Mapping[str, Study], description: str | None, arguments: Sequence[str] | None = None) -> NoReturn:
    """Command line: carry out a study, or say in one line why not.

    Exits with 0 where it has finished, 1 where runs have failed, 3 where some are left.

    Args:
        studies: by name.
        description: of the program.
        arguments: words behind the program's name. Default: those of this process.
    """
    try:
        state = main(studies, description, arguments)
    except UsageError as error:
        sys.exit(f"error: {error}")
    sys.exit(EXIT[state])


def main(studies: Mapping[str, Study], description: str | None, arguments: Sequence[str] | None = None) -> str:
    """Carry out a study as far as the time goes, then report.

    Returns:
        "finished", "failed" or "left".

    Raises:
        UsageError: naming what is wrong and how to put it right.
    """
    options = _options(studies, description, arguments)
    study, size = studies[options.study], options.size
    state = "finished"
    if not options.report:
        state = carry_out(study.config(size), study.results(size), options.hours, options.parallel)
        if study.observe is not None:
            observe(sweep_folder(study.config(size)), study.results(size), study.observe)
    write_report(study, size)
    return state


def write_report(study: Study, size: str) -> None:
    """Write `outcome.json`, the figure and `report.md` from a study's kept files alone, and print the report."""
    folder = study.results(size)
    found = outcome(study, size)
    if not found["cells"]:
        print("No point of the study has all its seeds yet, so that there is nothing to report: go on later.")
        return
    write_json(folder / OUTCOME, found)
    draw(study, found, folder / FIGURE)
    # The figure stands for the pictures of the page, which draw the same.
    blocks = [block for block in study_blocks(found, folder) if not isinstance(block, Picture)]
    text = to_markdown(study.title, [Image(FIGURE, study.title), *blocks])
    write_text(folder / "report.md", text)
    print(text)


def _options(
    studies: Mapping[str, Study], description: str | None, arguments: Sequence[str] | None
) -> argparse.Namespace:
    parser = CommandParser(description=description)
    parser.add_argument("study", choices=list(studies), help="which study")
    add_sweep_options(parser)
    return parser.parse_args(arguments)


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add what every study that is a sweep can be told: its size, when to stop, how much at a time, or to report."""
    parser.add_argument("--size", choices=["small", "full"], default="small", help="default: %(default)s")
    parser.add_argument("--hours", type=float, help="stop after this time, to go on later (default: no limit)")
    parser.add_argument("--parallel", type=int, help="runs at a time (default: as many as there are cores or GPUs)")
    parser.add_argument("--report", action="store_true", help="run nothing: write report and figure anew")
