"""What a report is made of, and the two ways of writing it: one HTML page that needs nothing else, and Markdown."""

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsf_models.analysis import markdown_table

ORIGINS = {"paper": "The paper", "ours": "Measured here", "warning": "Note"}
"""Where a paragraph's statement comes from, as it is shown in front of it."""


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or more, which the contents name."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text; `origin` is a key of `ORIGINS`."""

    text: str
    origin: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of plain text; `folded` ones open at a click."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure in SVG, and the same numbers as a table, which alone stands in Markdown."""

    svg: str
    caption: str
    numbers: Table


@dataclass(frozen=True)
class Image:
    """A figure as a PNG file beside the report."""

    file: str
    caption: str


Block = Heading | Paragraph | Table | Picture | Image

_KINDS = {"heading": Heading, "paragraph": Paragraph, "table": Table, "image": Image}


def blocks_to_json(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Blocks as plain values; pictures in SVG are drawn anew from numbers instead of being kept."""
    names = {kind: name for name, kind in _KINDS.items()}
    return [{"kind": names[type(block)], **asdict(block)} for block in blocks]


def blocks_from_json(content: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Blocks back from `blocks_to_json`.

    Raises:
        KeyError, TypeError: they are of another form.
    """
    return [_KINDS[block["kind"]](**{key: value for key, value in block.items() if key != "kind"}) for block in content]


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report as one Markdown file; tables stand for its figures.

    Args:
        title: of the report.
        blocks: in their order.
    """
    parts = [f"# {title}"]
    for block in blocks:
        parts += _markdown(block)
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The report as one HTML page without scripts, fonts or anything else that is fetched.

    Args:
        title: of the report.
        blocks: in their order; the files of images are read and become part of the page.
    """
    body, contents, number = [], [], 0
    for block in blocks:
        if isinstance(block, Heading):
            number += 1
            if block.level == 2:
                contents.append(f'<li><a href="#s{number}">{_text(block.text)}</a></li>')
            body.append(f'<h{block.level} id="s{number}">{_text(block.text)}</h{block.level}>')
        else:
            body += _html(block)
    nav = f"<nav><details open><summary>Contents</summary><ul>{''.join(contents)}</ul></details></nav>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{_icon()}'
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head>{head}<title>{_text(title)}</title>',
        f"<style>{_STYLE}</style>",
    ]
    parts += [f"</head><body><main><h1>{_text(title)}</h1>", nav, *body, "</main></body></html>"]
    return "\n".join(parts) + "\n"


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"{'#' * block.level} {block.text}"
        case Paragraph():
            yield f"**{ORIGINS[block.origin]}:** {block.text}" if block.origin else block.text
        case Table():
            if block.caption:
                yield f"*{block.caption}*"
            yield markdown_table([tuple(row) for row in block.rows], tuple(block.header), code=False)
        case Picture():
            yield f"*{block.caption}*"
            yield markdown_table([tuple(row) for row in block.numbers.rows], tuple(block.numbers.header), code=False)
        case Image():
            yield f"![{block.caption}]({block.file})"


def _html(block: Paragraph | Table | Picture | Image) -> Iterator[str]:
    match block:
        case Paragraph():
            label = f'<b class="origin">{ORIGINS[block.origin]}</b> ' if block.origin else ""
            yield f'<p class="{block.origin or "plain"}">{label}{_text(block.text)}</p>'
        case Table():
            yield _table(block)
        case Picture():
            yield f"<figure>{block.svg}<figcaption>{_text(block.caption)}</figcaption></figure>"
            yield _table(block.numbers)
        case Image():
            content = base64.b64encode(Path(block.file).read_bytes()).decode()
            image = f'<img alt="{_text(block.caption)}" src="data:image/png;base64,{content}">'
            yield f"<figure class=wide>{image}<figcaption>{_text(block.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    header = "".join(f"<th>{_text(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    inside = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    caption = _text(table.caption)
    if table.folded:
        return f"<details><summary>{caption or 'Numbers'}</summary>{inside}</details>"
    return f"{f'<p class=caption>{caption}</p>' if caption else ''}{inside}"


def _cell(cell: str) -> str:
    kind = ' class="number"' if _NUMBER.fullmatch(cell) else ""
    return f"<td{kind}>{_text(cell)}</td>"


def _text(text: str) -> str:
    """Escaped, with `code` set as such; hashes and paths may break anywhere."""
    return _CODE.sub(r"<code>\1</code>", html.escape(text))


def _icon() -> str:
    """An empty icon, so that a browser asks nobody for one."""
    return '<link rel="icon" href="data:,">'


_CODE = re.compile(r"`([^`]*)`")
_NUMBER = re.compile(r"[-–−+±\d.,%\s]*(?:(?:to|e|x)[-+\d.,%\s]*)?")
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --back: #ffffff; --soft: #5c5c5c; --line: #dddddd; --mark: #0b62a8;
  --paper: #8a4b00; --panel: #f5f6f7; --grid: #e3e3e3; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #16181b; --soft: #a5a9ad; --line: #3a3d41;
  --mark: #7cb8f2; --paper: #f0b070; --panel: #202327; --grid: #33363a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 56rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .6rem 0; max-width: 46rem; }
a { color: var(--mark); }
nav ul { margin: .4rem 0; padding-left: 1.2rem; }
nav li { padding: .15rem 0; }
summary { cursor: pointer; padding: .3rem 0; color: var(--mark); }
p.plain { color: var(--text); } p.caption { color: var(--soft); margin-bottom: .2rem; }
p.paper, p.ours, p.warning { border-left: 3px solid var(--mark); padding: .1rem 0 .1rem .8rem; }
p.paper { border-color: var(--paper); } p.warning { border-color: var(--soft); color: var(--soft); }
.origin { color: var(--mark); } .paper .origin { color: var(--paper); } .warning .origin { color: var(--soft); }
.scroll { overflow-x: auto; max-width: 100%; margin: .4rem 0 1rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: left; vertical-align: top; overflow-wrap: normal; }
th { background: var(--panel); font-weight: 600; white-space: nowrap; }
td { min-width: 7rem; } td:first-child { min-width: 9rem; } td.number { min-width: 4rem; white-space: nowrap; }
tbody tr + tr td { border-top: 1px solid var(--line); }
figure { margin: 1rem 0 .4rem; max-width: 36rem; }
figure.wide { max-width: 100%; }
figure svg, figure img { width: 100%; height: auto; display: block; color: var(--text); }
figure img { background: #ffffff; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
@media print { nav { display: none; } .scroll { overflow: visible; } }
"""
