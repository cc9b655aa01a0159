"""The documents keep their promises: the Python in them runs, and what their commands and links name exists."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dsf_models import list_architectures
from tests.compatibility import FAILED

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w./*-]+\.(?:py|sh|ya?ml|toml|txt)")


def blocks(document: Path, language: str) -> list[re.Match]:
    """The fenced blocks of a document that are written in `language`."""
    return [block for block in BLOCK.finditer(document.read_text()) if block["language"] == language]


def each(documents: list[Path]) -> pytest.MarkDecorator:
    """Run a test once per document, under the document's name."""
    return pytest.mark.parametrize("document", documents, ids=lambda path: path.relative_to(ROOT).as_posix())


def python_script(document: Path) -> str:
    """All Python blocks as one script, each on the lines it has in the document, so that a traceback points there."""
    lines: list[str] = []
    for block in blocks(document, "python"):
        first_line = document.read_text().count("\n", 0, block.start("code"))
        lines += [""] * (first_line - len(lines)) + block["code"].splitlines()
    return "\n".join(lines) + "\n"


def commands(document: Path) -> list[list[str]]:
    """The words of every command in the bash blocks, continuation lines joined and comments left out."""
    code = "".join(block["code"] for block in blocks(document, "bash")).replace("\\\n", " ")
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


PROGRAMS = [document for document in DOCUMENTS if blocks(document, "python")]


@pytest.fixture(scope="module")
def statuses(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[int, str]]:
    """Exit status and output of the Python of each document."""
    scripts = {}
    for document in PROGRAMS:
        scripts[document] = tmp_path_factory.mktemp(document.stem) / f"{document.name}.py"
        scripts[document].write_text(python_script(document))
    command = [sys.executable, ROOT / "tests" / "forked_scripts.py", *scripts.values()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    return {document: (found[str(path)], Path(f"{path}.log").read_text()) for document, path in scripts.items()}


@each(PROGRAMS)
def test_python_blocks_run_in_one_fresh_process(document: Path, statuses: dict[Path, tuple[int, str]]) -> None:
    status, printed = statuses[document]
    assert status == 0, f"the Python in {document.name} does not run:\n{printed}"


@each(DOCUMENTS)
def test_commands_name_things_that_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
    for words in commands(document):
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"no such make target: {words}"
        if words[0].startswith("dsf-"):
            assert words[0] in scripts, f"not an entry point of pyproject.toml: {words}"
        for word in words:
            if FILE.fullmatch(word):
                assert any(ROOT.glob(word)), f"{word} does not exist: {words}"
            if word.startswith("scripts/"):
                assert os.access(ROOT / word, os.X_OK), f"{word} cannot be executed"


@each(DOCUMENTS)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"broken link in {document.name}: {target}"


def test_the_table_of_architectures_is_that_of_the_registry(capsys: pytest.CaptureFixture) -> None:
    from dsf_models.cli import main

    assert main(["list", "--markdown"]) == 0
    begin, end = "<!-- architectures: made by scripts/tables.py -->\n", "<!-- end of architectures -->"
    found = (ROOT / "README.md").read_text().split(begin)[1].split(end)[0]
    assert found == capsys.readouterr().out, "run scripts/tables.py"


def test_the_page_of_architectures_is_that_of_the_docstrings() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["architectures_page"]()
    assert (ROOT / "docs" / "architectures.md").read_text() == page, "run scripts/tables.py"


def test_the_page_of_tasks_is_that_of_the_registry() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["tasks_page"]()
    assert (ROOT / "docs" / "tasks.md").read_text() == page, "run scripts/tables.py"


def test_the_table_of_features_is_that_of_the_tests_results() -> None:
    tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))
    readme = (ROOT / "README.md").read_text()
    found = readme.split(tables["BEGIN_FEATURES"])[1].split(tables["END_FEATURES"])[0]
    assert found == tables["features_table"](), "run scripts/tables.py"


def test_every_feature_of_a_test_is_in_the_table() -> None:
    """Titles that no test bears any more, or that were never gathered, would be a table of another project."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    marked = {title for text in texts for title in re.findall(r'mark\.feature\(\s*"([^"]+)"', text)}
    outcomes = json.loads((ROOT / "docs" / "compatibility.json").read_text())
    gone = {title for title in outcomes if not any(json.dumps(title, ensure_ascii=False) in text for text in texts)}
    assert (marked - outcomes.keys(), gone) == (set(), set()), "run scripts/compatibility.sh"
    assert {name for row in outcomes.values() for name in row} == set(list_architectures())
    assert not [reason for row in outcomes.values() for reason in row.values() if reason == FAILED]
