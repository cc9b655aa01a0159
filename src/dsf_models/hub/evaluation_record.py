"""`evaluations.json` in a checkpoint folder: what evaluations have found, carried into its card and its metadata.

evaluations.json            everything, one entry for each suite and data
README.md                   a section between two marks, and `model-index` in the front matter
.eval_results/*.yaml        the Hub's own form of evaluation results
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .files import write_json, write_text
from .metric import Metric
from .usage import UsageError

EVALUATIONS = "evaluations.json"
BEGIN, END = "<!-- evaluations: renewed by each recorded evaluation -->", "<!-- end of evaluations -->"
_CARD = "README.md"
_HASH = "data_hash"
"""Argument of a data set in `model-index` by which results of evaluations are told from those of training."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """What one evaluation of a checkpoint has found, and where it comes from."""

    suite: str
    """Name of the suite, or of the task."""

    dataset: str
    """Name of the task or of the text."""

    split: str
    """Split of the data."""

    data_hash: str
    """SHA-256 of the examples or documents."""

    seed: int | None
    """Seed that the examples were generated from; None where they were not generated."""

    metrics: Sequence[Metric]
    """What was measured."""

    interval: str
    """What the intervals are."""

    environment: Mapping[str, Any]
    """As `environment_facts` gives it."""

    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the task, or how the text was read."""

    @property
    def key(self) -> str:
        """Tells records of a folder apart: the same suite on the same data takes the place of the earlier record."""
        return re.sub(r"[^\w.-]+", "_", f"evaluation_{self.suite}_{self.dataset}_{self.data_hash[:8]}")

    @classmethod
    def load_all(cls, folder: Path) -> "tuple[EvaluationRecord, ...]":
        """Read the records of a checkpoint folder, none where it has none.

        Raises:
            UsageError: the file is damaged, naming it.
        """
        file = folder / EVALUATIONS
        if not file.is_file():
            return ()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))["evaluations"]
            return tuple(cls(**{**entry, "metrics": _metrics(entry)}) for entry in content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{file} holds no evaluations ({error}): remove it and evaluate again.") from error

    @classmethod
    def check(cls, folder: Path) -> None:
        """Refuse a checkpoint folder that a record could not be written into.

        Raises:
            UsageError: earlier records or the card's front matter are damaged, naming the file.
        """
        _renewed_card(folder, cls.load_all(folder))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self) | {"metrics": [metric.to_dict() for metric in self.metrics]}

    def save(self, folder: Path) -> None:
        """Write the record into a checkpoint folder: `evaluations.json`, `.eval_results/` and, if there, the card.

        Raises:
            UsageError: earlier records or the card's front matter are damaged; nothing is written then.
        """
        records = [record for record in self.load_all(folder) if record.key != self.key] + [self]
        text = _renewed_card(folder, records)
        (folder / ".eval_results").mkdir(exist_ok=True)
        write_text(folder / ".eval_results" / f"{self.key}.yaml", hub_results(self))
        write_json(folder / EVALUATIONS, {"evaluations": [record.to_dict() for record in records]})
        if text is not None:
            write_text(folder / _CARD, text)


def _renewed_card(folder: Path, records: "Sequence[EvaluationRecord]") -> str | None:
    card = folder / _CARD
    try:
        return with_evaluations(card.read_text(encoding="utf-8"), records) if card.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{card} has a damaged front matter ({error}): mend it first.") from error


def hub_results(record: EvaluationRecord) -> str:
    """Text of a file in `.eval_results/`, in YAML."""
    entries = [
        EvalResultEntry(
            dataset_id=record.dataset,
            task_id=f"{record.suite}_{metric.split}_{metric.name.replace(' ', '_')}",
            value=metric.value,
            notes=f"{metric.name} on the {metric.split} split{_interval_note(metric)}; chance "
            f"{metric.shown(metric.chance)}, best trivial rule {metric.shown(metric.best_trivial)}; data hash "
            f"{record.data_hash}",
        )
        for metric in record.metrics
    ]
    return yaml_dump(eval_result_entries_to_yaml(entries))


def with_evaluations(card: str, records: Sequence[EvaluationRecord]) -> str:
    """A model card with the results of evaluations, in place of those that it had.

    Args:
        card: text of a README.md, with or without front matter.
        records: all records of the checkpoint.

    Returns:
        The card with a section of these results, and with them in its metadata.
    """
    parsed = ModelCard(card, ignore_metadata_errors=False)
    data = parsed.data
    others = [result for result in data.eval_results or [] if _HASH not in (result.dataset_args or {})]
    data.eval_results = others + [result for record in records for result in _model_index(record)]
    data.model_name = data.model_name or _title(parsed.text)
    kinds = {metric.kind for record in records for metric in record.metrics}
    data.metrics = sorted({*(data.metrics or []), *kinds})
    parsed.text = _with_section(parsed.text, _section(records))
    return parsed.content


def _metrics(entry: Mapping[str, Any]) -> list[Metric]:
    return [Metric.from_dict(metric) for metric in entry["metrics"]]


def _model_index(record: EvaluationRecord) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=record.dataset,
            dataset_name=record.dataset,
            dataset_config=f"{record.suite}, data {record.data_hash[:8]}",
            dataset_split=record.split,
            dataset_args={_HASH: record.data_hash},
            metric_type=metric.kind,
            metric_name=metric.name,
            metric_value=metric.value,
            metric_args=None if metric.interval is None else {"interval_95": list(metric.interval)},
        )
        for metric in record.metrics
    ]


def _title(text: str) -> str:
    """The first heading of a card, by which the metadata name a model."""
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "model")


def _with_section(text: str, section: str) -> str:
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        return before + section + rest.split(END, 1)[1]
    place = text.find("\n## Use\n")
    if place < 0:
        return f"{text.rstrip()}\n\n{section}\n"
    return f"{text[:place]}\n{section}\n{text[place:]}"


def _section(records: Sequence[EvaluationRecord]) -> str:
    rows = ["| suite | data | metric | split | value | 95 % interval | chance | best trivial rule |", f"|{'---|' * 8}"]
    for record in records:
        for metric in record.metrics:
            value, chance, trivial = map(metric.shown, (metric.value, metric.chance, metric.best_trivial))
            cells = record.suite, record.dataset, metric.name, metric.split, value, _interval(metric), chance, trivial
            rows.append(f"| {' | '.join(cells)} |")
    notes = [f"* {record.suite} on {record.dataset}: {_provenance(record)}" for record in records]
    return "\n\n".join([BEGIN, "## Evaluation", "\n".join(rows), "\n".join(notes), END])


def _interval(metric: Metric) -> str:
    return "–" if metric.interval is None else " to ".join(map(metric.shown, metric.interval))


def _interval_note(metric: Metric) -> str:
    return "" if metric.interval is None else f", 95 % interval {_interval(metric)}"


def _provenance(record: EvaluationRecord) -> str:
    environment = record.environment
    commit = environment.get("commit") or "not under version control"
    changed = ", with uncommitted changes" if environment.get("uncommitted_changes") else ""
    seed = "" if record.seed is None else f"seed {record.seed}, "
    machine = environment.get("hardware", {})
    device = ", ".join(machine.get("accelerators") or []) or machine.get("cpu", "unknown")
    sizes = "".join(f"{name.replace('_', ' ')} {value}, " for name, value in record.sizes.items() if value is not None)
    return f"{sizes}{seed}data hash `{record.data_hash}`, commit `{commit}`{changed}, on {device}. {record.interval}"
