"""What works with which architecture, gathered from the outcomes of the tests that are marked with a feature.

A test marked `@pytest.mark.feature("Beam search")` speaks for the architecture in its argument `name`, or for all of
them where it has no such argument. `pytest.skip(reason)` in such a test is a "no" with its reason.

    pytest -m "slow or not slow" --compatibility docs/compatibility.json
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from dsf_models import list_architectures

ALL = "every architecture"
FAILED = "its test fails"

Outcomes = Mapping[str, Mapping[str, str]]
"""By feature and architecture: "" for yes, else why not."""


class Gatherer:
    """Keeps the outcomes of one run, in the process that all reports come to."""

    def __init__(self) -> None:
        self.passed: dict[str, set[str]] = defaultdict(set)
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of features, and note on each what it speaks for."""
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("feature") is None])
        items[:] = [item for item in items if item.get_closest_marker("feature") is not None]
        for item in items:
            name = item.callspec.params.get("name", ALL) if hasattr(item, "callspec") else ALL
            for marker in item.iter_markers("feature"):
                item.user_properties.append(("feature", [marker.args[0], name]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome: of the call, or of a set-up that did not come to it."""
        if report.when != "call" and not (report.when == "setup" and not report.passed):
            return
        for key, value in report.user_properties:
            if key != "feature":
                continue
            title, name = value
            if report.passed:
                self.passed[title].add(name)
            elif report.skipped:
                self.reasons[title].setdefault(name, report.longrepr[2].removeprefix("Skipped: "))
            else:
                self.reasons[title][name] = FAILED

    def outcomes(self) -> Outcomes:
        """Return every feature's outcomes, in the order of their titles."""
        return {title: dict(self._row(title)) for title in sorted(self.passed.keys() | self.reasons.keys())}

    def _row(self, title: str) -> Iterable[tuple[str, str]]:
        passed, reasons = self.passed[title], self.reasons[title]
        for name in list_architectures():
            found = [reasons[key] for key in (name, ALL) if key in reasons]
            if FAILED in found or not passed & {name, ALL}:
                yield name, (FAILED if FAILED in found else (found or ["no test asks for it"])[0])
            else:
                yield name, f"in part: {found[0]}" if found else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs the tests of features alone and writes what works."""
    parser.addoption("--compatibility", type=Path, metavar="FILE", help="run the tests of features, write what works")


def pytest_configure(config: pytest.Config) -> None:
    """Gather where that was asked for."""
    if config.getoption("--compatibility"):
        config.pluginmanager.register(Gatherer(), "compatibility")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the outcomes, once: workers send theirs to the process that started them."""
    gatherer = session.config.pluginmanager.get_plugin("compatibility")
    if gatherer is not None and not hasattr(session.config, "workerinput"):
        content = json.dumps(gatherer.outcomes(), indent=2, ensure_ascii=False)
        session.config.getoption("--compatibility").write_text(content + "\n", encoding="utf-8")
