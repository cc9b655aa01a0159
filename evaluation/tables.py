"""The main numbers of an evaluation as Markdown, from its results alone."""

from collections.abc import Mapping
from typing import Any

from dsf_models.analysis import markdown_table
from dsf_models.hub.metric import Metric


def table(results: Mapping[str, Any]) -> str:
    """The main numbers of any evaluation.

    Args:
        results: the content of `results.json`.
    """
    return task_table(results) if "accuracy" in results["models"][0] else metric_table(results)


def task_table(results: Mapping[str, Any]) -> str:
    """Accuracies on one task, beside its baselines."""
    suite = results["suite"]
    lines = [
        f"{suite['name']}, {suite['num_examples']:,} {suite['split']} examples; accuracy in % with 95 % interval; "
        f"chance {100 * suite['chance']:.2f}, best trivial rule {100 * suite['best_trivial']:.2f}",
        "",
        "| model | parameters | state, bytes | accuracy | whole examples |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in results["models"]:
        shares = " | ".join(_share(model[key]) for key in ("accuracy", "row_accuracy"))
        lines.append(f"| {model['label']} | {model['parameters']:,} | {state_cell(model)} | {shares} |")
    return "\n".join(lines)


def metric_table(results: Mapping[str, Any]) -> str:
    """Every metric of every model, one row each."""
    header, rows = metric_rows(results)
    suite = results["suite"]
    return f"{suite['name']}, {suite['split']} split. {results['interval']}\n\n" + markdown_table(
        rows, header, code=False
    )


def metric_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table of all metrics."""
    header = ("model", "parameters", "state, bytes", "metric", "value", "95 % interval", "chance", "best trivial rule")
    rows = []
    for model in results["models"]:
        for content in model["metrics"]:
            metric = Metric.from_dict(content)
            interval = "–" if metric.interval is None else " to ".join(map(metric.shown, metric.interval))
            sizes = (model["label"], f"{model['parameters']:,}", state_cell(model))
            baselines = metric.shown(metric.chance), metric.shown(metric.best_trivial)
            rows.append((*sizes, metric.name, metric.shown(metric.value), interval, *baselines))
    return header, rows


def state_cell(model: Mapping[str, Any]) -> str:
    """Bytes of state per sequence, and a dash where there is none."""
    size = model["state"]["bytes_per_sequence"]
    return "–" if size is None else f"{size:,}"


def _share(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
