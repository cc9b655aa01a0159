"""One HTML page and one Markdown file from the JSON files of evaluations, sweeps and studies alone.

    python evaluation/report.py --results evaluation/results runs/demo/evaluation --output_dir runs/report

Nothing is computed anew and nothing is fetched: the page stands by itself, light or dark, on a phone or on paper.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsf_models.hub.files import new_folder, write_text
from dsf_models.hub.usage import CommandParser, UsageError
from evaluation.reporting.blocks import Block, Heading, Paragraph, to_html, to_markdown
from evaluation.reporting.sections import find_folders, section

PAGE, TEXT = "report.html", "report.md"
TITLE = "Results of dsf_models"


def setup(arguments: Sequence[str] | None = None) -> None:
    """Command line: write the report, or say in one line why not."""
    try:
        print(main(arguments))
    except UsageError as error:
        sys.exit(f"report.py: error: {error}")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the report.

    Args:
        arguments: words behind the program's name. Default: those of this process.

    Returns:
        The HTML page.

    Raises:
        UsageError: naming what is wrong; nothing is written then.
    """
    options = _options(arguments)
    target = options.output_dir
    if target.exists() and any(target.iterdir()) and not (target / PAGE).is_file():
        raise UsageError(f"--output_dir {target} holds something that is no report: give a new folder.")
    blocks = content(find_folders(options.results))
    with new_folder(target) as folder:
        write_text(folder / PAGE, to_html(options.title, blocks))
        write_text(folder / TEXT, to_markdown(options.title, blocks))
    return target / PAGE


def content(folders: Sequence[Path]) -> list[Block]:
    """The blocks of the report: one section for each folder, and what could not be shown."""
    blocks: list[Block] = [
        Paragraph(
            "Made from result files alone. Sentences behind “The paper” are what a paper states, in words; numbers are "
            "all measured by this project, with the machine, the seeds and the code that they come from."
        )
    ]
    unknown, sections = [], {}
    for folder in folders:
        try:
            sections[folder] = section(folder)
        except UsageError as error:
            unknown.append(str(error))
    titles = Counter(first.text for first, *_ in sections.values())
    for folder, (first, *rest) in sections.items():
        # Sections of one title are told apart by their folders.
        title = first.text if titles[first.text] == 1 else f"{first.text} ({folder.name})"
        blocks += [Heading(first.level, title), *rest]
    if unknown:
        blocks.append(Heading(2, "What is not shown"))
        blocks += [Paragraph(message, "warning") for message in unknown]
    return blocks


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="report.py",
        description=__doc__,
    )
    parser.add_argument(
        "--results", nargs="+", type=Path, required=True, help="folders, searched with their subfolders"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make; an earlier report is replaced")
    parser.add_argument("--title", default=TITLE, help="of the report (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    setup()
