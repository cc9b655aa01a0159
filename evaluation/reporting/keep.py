"""A study's report, kept as blocks for the page of all reports and written as Markdown beside them."""

from collections.abc import Sequence
from pathlib import Path

from dsf_models.hub.files import write_json, write_text
from evaluation.reporting.blocks import Block, Heading, Paragraph, blocks_to_json, to_markdown
from evaluation.reporting.sections import FINDINGS, REPORT


def findings_blocks(folder: Path) -> list[Block]:
    """What a person has concluded, from `findings.md` in the folder of the results; nothing before that is written."""
    file = folder / FINDINGS
    if not file.is_file():
        return []
    parts = file.read_text(encoding="utf-8").strip().split("\n\n")
    return [Heading(2, "Findings"), *(Paragraph(" ".join(part.split())) for part in parts)]


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
