"""The report: from result files alone, one page that asks nobody for anything, with every number in it."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dsf_models.hub.usage import UsageError
from evaluation.report import PAGE, TEXT, main, setup
from evaluation.reporting.blocks import Heading, Image, Paragraph, Table, to_html, to_markdown
from evaluation.reporting.keep import findings_blocks, keep_report
from evaluation.reporting.svg import in_page
from tests.evaluation.helpers import evaluate, save_trained_on

SIZES = {"sequence_length": 16, "num_pairs": 2, "vocab_size": 16}
ENVIRONMENT = {
    "commit": "abcdef0123456789",
    "uncommitted_changes": True,
    "hardware": {"cpu": "a <fast> processor", "logical_cores": 2, "accelerators": []},
    "versions": {"torch": "2"},
}


class Page(HTMLParser):
    """The elements of a page, and whether each is closed."""

    void = {"meta", "link", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def result(seed: int, accuracy: float) -> dict:
    return {
        "seeds": {"run": seed, "data": 0},
        "data": {"test_hash": "0123456789abcdef0"},
        "seconds": 1800.0,
        "test": {"accuracy": accuracy},
        "environment": ENVIRONMENT,
    }


def point(rate: float, values: list[float]) -> dict:
    test = {"mean": sum(values) / len(values), "min": min(values), "max": max(values), "success_rate": 0.5}
    return {
        "axes": {"model.architecture": "ssd", "optimizer.learning_rate": rate},
        "validation": test["mean"],
        "test": test,
        "parameters": 1234,
        "state_bytes": None,
        "finished": len(values),
    }


def write_sweep(folder: Path) -> None:
    folder.mkdir(parents=True)
    points = [point(0.001, [0.5, 0.6]), point(0.01, [0.9, 1.0])]
    row = {
        "axes": {"model.architecture": "ssd"},
        "best": points[1],
        "points": points,
        "at_edge": True,
        "window": 0.5,
        "baselines": {"of": "accuracy", "chance": 0.1, "best_trivial": 0.25},
    }
    runs = [{"name": str(seed), "result": result(seed, 0.9)} for seed in (3, 4)] + [{"name": "x", "result": None}]
    (folder / "table.json").write_text(json.dumps([row]))
    (folder / "results.json").write_text(json.dumps({"tuned": [], "runs": runs}))


def cell(series: str, x: int, values: list[float]) -> dict:
    mean = sum(values) / 2
    accuracy = {
        "values": values,
        "mean": mean,
        "interval": [mean - 0.3, mean + 0.3],
        "min": values[0],
        "max": values[1],
    }
    sizes = {"parameters": 10, "state_bytes": 20, "success_rate": 0.5, "at_edge": x == 8}
    seen = [{"exponent": 1.25}, {"exponent": 0.75}]
    return {"panel": None, "series": series, "x": x, "accuracy": accuracy, "observations": seen, **sizes}


def write_study(folder: Path) -> None:
    folder.mkdir(parents=True)
    outcome = {
        "title": "A study",
        "paper": "tests",
        "size": "small",
        "stated": "The paper says so.",
        "unknown": "Its numbers are not known.",
        "runs": {"finished": 4, "planned": 4},
        "axes": {"panel": None, "series": {"label": "mixer"}, "x": {"label": "states"}},
        "cells": [cell("ssd", 4, [0.4, 0.6]), cell("ssd", 8, [0.9, 1.0])],
        "contrasts": [{"first": "ssd", "second": "s6", "panel": None, "x": 4, **cell("", 0, [0.1, 0.3])["accuracy"]}],
        "environments": [ENVIRONMENT],
    }
    (folder / "outcome.json").write_text(json.dumps(outcome))
    (folder / "findings.md").write_text("# Findings\n\nMore states help.")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on an evaluation, a sweep, a study and a file of no known form."""
    folder = tmp_path_factory.mktemp("report")
    models = [save_trained_on(folder / name, name, "mqar", **SIZES) for name in ("ssd", "softmax_attention")]
    evaluate(folder / "results" / "selection", *models, suite="selection", factors="[8]", num_examples=10)
    write_sweep(folder / "results" / "sweep_of_rates")
    write_study(folder / "results" / "study")
    (folder / "results" / "unknown").mkdir()
    (folder / "results" / "unknown" / "results.json").write_text('{"what": 1}')
    main(["--results", str(folder / "results"), "--output_dir", str(folder / "report"), "--title", "Some <results>"])
    return folder


def test_the_page_is_whole_and_asks_nobody(written: Path) -> None:
    text = (written / "report" / PAGE).read_text()
    page = Page(text)
    assert page.open == []
    assert {"main", "nav", "svg", "table", "details", "figure"} <= set(page.tags)
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith(("#", "data:,")) for value in addresses)
    assert not re.findall(r"url\((?!#)|@import", text)
    assert ("name", "viewport") in page.attributes
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)
    assert "<title>Some &lt;results&gt;</title>" in text
    assert "a &lt;fast&gt; processor" in text


@pytest.mark.parametrize("name", [PAGE, TEXT])
def test_both_files_say_the_same(written: Path, name: str) -> None:
    text = (written / "report" / name).read_text()
    results = json.loads((written / "results" / "selection" / "results.json").read_text())
    for statement in (
        "selection: mqar",
        results["suite"]["data_hash"][:16],
        "16 (as trained)",
        "Wilson score interval",
        f"{100 * results['models'][0]['metrics'][0]['value']:.2f} %",
        "2 of 3 training runs have finished",
        "95.0",
        "at the edge of the range",
        "Seeds 3, 4",
        "1.0 hours of training",
        "The paper says so.",
        "Its numbers are not known.",
        "ssd minus s6",
        "1.25; 0.75",
        "ssd at 8",
        "More states help.",
        "abcdef012345",
        "with uncommitted changes",
        "What is not shown",
        "unknown/results.json is no evaluation of this version",
    ):
        assert statement in text, statement


def test_figures_are_well_formed_and_follow_the_page(written: Path) -> None:
    figures = re.findall(r"<svg.*?</svg>", (written / "report" / PAGE).read_text(), re.DOTALL)
    assert len(figures) == 6  # three axes and the gap, the learning rates, the study
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("aria-label")
        assert root.get("width") is None
        assert "currentColor" in figure
        assert "#000000" not in figure
        assert ElementTree.tostring(root, encoding="unicode").count("<") > 20


def test_an_svg_keeps_the_ids_that_it_needs() -> None:
    svg = '<?xml?><svg width="1pt" height="2pt"><!-- x --><g id="figure_1"><use xlink:href="#m"/></g><g id="m"/></svg>'
    assert in_page(svg, 'a "b"') == (
        '<svg role="img" aria-label="a &quot;b&quot;"><g><use xlink:href="#m"/></g><g id="m"/></svg>'
    )


def test_the_same_files_make_the_same_report(written: Path, tmp_path: Path) -> None:
    words = ["--results", str(written / "results" / "study"), "--output_dir", str(tmp_path / "report")]
    pages = []
    for _ in range(2):  # an earlier report gives way
        main(words)
        pages.append([(tmp_path / "report" / name).read_text() for name in (PAGE, TEXT)])
    assert pages[0] == pages[1]


def test_text_is_escaped_and_code_is_code() -> None:
    blocks = [Heading(2, "A & b"), Paragraph("`x<y` & more", "ours"), Table(["a"], [["1.5"], ["<b>"]])]
    page, text = to_html("t", blocks), to_markdown("t", blocks)
    assert "<code>x&lt;y</code> &amp; more" in page
    assert '<td class="number">1.5</td>' in page
    assert "<td>&lt;b&gt;</td>" in page
    assert "**Measured here:** `x<y` & more" in text


def test_what_cannot_be_reported_is_refused(written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    out = ["--output_dir", str(tmp_path / "out")]
    for words, message in (
        (["--results", str(tmp_path / "none"), *out], "does not exist"),
        (["--results", str(tmp_path / "empty"), *out], r"There is no results\.json under"),
        (["--results", str(written / "results"), "--output_dir", str(tmp_path / "other")], "no report"),
        (["--result", str(written), *out], "unrecognized arguments|required"),
    ):
        with pytest.raises(UsageError, match=message):
            main(words)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"^report\.py: error: .*none does not exist"):
        setup(["--results", str(tmp_path / "none"), *out])


def test_a_report_that_a_study_has_kept_becomes_a_section(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    picture = b"\x89PNG of a figure"
    (folder / "figure.png").write_bytes(picture)
    (folder / "findings.md").write_text("It grows,\nslowly.\n\nAnd then it stops.\n")
    table = Table(("a", "b"), [("1", "x | y")], "A caption.")
    blocks = [Paragraph("It is so.", "paper"), Image("figure.png", "A figure."), Heading(2, "Numbers"), table]
    text = keep_report(folder, "A <study>", [*blocks, *findings_blocks(folder)])
    assert (folder / "report.md").read_text() == text
    assert "![A figure.](figure.png)" in text
    assert text.endswith("## Findings\n\nIt grows, slowly.\n\nAnd then it stops.\n")
    page = main(["--results", str(tmp_path), "--output_dir", str(tmp_path / "out")]).read_text()
    assert f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"' in page
    for part in ("A &lt;study&gt;</h2>", "Numbers</h3>", "<td>x | y</td>", "A caption.", "And then it stops."):
        assert part in page
    assert findings_blocks(tmp_path) == []


def test_a_damaged_report_of_a_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"title": "A", "blocks": [{"kind": "hologram"}]}')
    text = main(["--results", str(tmp_path), "--output_dir", str(tmp_path / "out")]).with_name(TEXT).read_text()
    assert "What is not shown" in text
    assert "write it again" in text
