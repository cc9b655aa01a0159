"""Figures as SVG that stands inside a page: its text is text, its colours follow the page, light or dark."""

import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from evaluation.figure import draw_curve

_INK = "#010203"
"""Stands for the colour of the page's text, which matplotlib does not know."""
_FOLLOWS = {_INK: "currentColor", "#000000": "currentColor", "#e6e6e6": "var(--grid)"} | dict.fromkeys(
    ("#595959", "#b3b3b3"), "var(--soft)"
)
_LOOK = {
    "svg.fonttype": "none",
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), _INK
    ),
}


def curve_svg(results: Mapping[str, Any], name: str, alt: str) -> str:
    """One curve of an evaluation, of all models that have it.

    Args:
        results: the content of `results.json`, or what has the same `suite`, `models` and their `curves`.
        name: of the curve.
        alt: what the figure shows, for who cannot see it.

    Returns:
        An svg element; it fetches nothing.
    """
    with matplotlib.rc_context(_LOOK | {"svg.hashsalt": alt}):
        figure = Figure(figsize=(4.8, 3.5), layout="constrained")
        axes = figure.subplots()
        draw_curve(axes, results, name)
        _, labels = axes.get_legend_handles_labels()
        columns = 1 if max(map(len, labels), default=0) > 34 else 2
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return in_page(written.getvalue(), alt)


def in_page(svg: str, alt: str) -> str:
    """An SVG file as an element of a page: no prolog, no fixed size, no ids but those that it refers to.

    Args:
        svg: text of the file.
        alt: what it shows.
    """
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", " ".join(re.findall(r'(?:href="|url\()#[\w.-]+', element))))
    element = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", element)
    for colour, follows in _FOLLOWS.items():
        element = element.replace(colour, follows)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head, rest = element.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}">{rest.strip()}'
