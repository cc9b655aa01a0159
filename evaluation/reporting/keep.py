"""A study's report, kept as blocks for the page of all reports and written as Markdown beside them."""

from collections.abc import Sequence
from pathlib import Path

from dsf_models.hub.files import write_json, write_text
from evaluation.reporting.blocks import Block, blocks_to_json, to_markdown
from evaluation.reporting.sections import REPORT


def keep_report(folder: Path, title: str, blocks: Sequence[Block]) -> str:
    """Write `report.json` and `report.md`.

    Args:
        folder: of the study's results.
        title: of the report.
        blocks: in their order; images are named by their files in the folder.

    Returns:
        The Markdown.
    """
    text = to_markdown(title, blocks)
    write_json(folder / REPORT, {"title": title, "blocks": blocks_to_json(blocks)})
    write_text(folder / "report.md", text)
    return text
