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
    """Sizes of all models, and every metric with a column for each model."""
    suite = results["suite"]
    parts = [f"{suite['name']}, split: {suite['split']}. {results['interval']}"]
    for header, rows in (model_rows(results), metric_rows(results)):
        parts.append(markdown_table(rows, header, code=False))
    return "\n\n".join(parts)


def model_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of the models."""
    header = ("model", "architecture", "parameters", "state, bytes", "after tokens", "type")
    rows = [
        (
            model["label"],
            model["architecture"].removeprefix("dsf_"),
            f"{model['parameters']:,}",
            state_cell(model),
            f"{model['state']['after_tokens']:,}",
            model["dtype"],
        )
        for model in results["models"]
    ]
    return header, rows


def metric_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of all metrics: value and interval of each model, and the baselines, where known."""
    models = [{m["name"]: Metric.from_dict(m) for m in model["metrics"]} for model in results["models"]]
    names = list(dict.fromkeys(name for own in models for name in own))
    header = ["metric", *(model["label"] for model in results["models"]), "chance", "best trivial rule"]
    rows = []
    for name in names:
        known = next(own[name] for own in models if name in own)
        values = [value_cell(own[name]) if name in own else "–" for own in models]
        rows.append((name, *values, known.shown(known.chance), known.shown(known.best_trivial)))
    # A column of dashes says nothing.
    used = [i for i in range(len(header)) if i <= len(models) or any(row[i] != "–" for row in rows)]
    return tuple(header[i] for i in used), [tuple(row[i] for i in used) for row in rows]


def value_cell(metric: Metric) -> str:
    """A value with its interval in brackets."""
    if metric.interval is None:
        return metric.shown(metric.value)
    ends = (metric.shown(end).removesuffix(" %") for end in metric.interval)
    return f"{metric.shown(metric.value)} ({' to '.join(ends)})"


def state_cell(model: Mapping[str, Any]) -> str:
    """Bytes of state per sequence, and a dash where there is none."""
    size = model["state"]["bytes_per_sequence"]
    return "–" if size is None else f"{size:,}"


def _share(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
