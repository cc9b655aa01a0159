"""Tasks beyond what a model was trained on: longer, and more to hold, by factors of the trained sizes.

The trained sizes are those of the checkpoint's task record. Along each axis of its task (`AXES`) one thing grows by
`factors` and what it needs to fit grows with it; the rest stays as trained. Every point has examples of its own and
its own baselines. Where a task or a model has no room for a factor, the point says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel

from dsf_models.errors import suggest
from dsf_models.hub.metric import Metric
from dsf_models.hub.usage import UsageError
from evaluation.config import EvaluationConfig
from evaluation.results import Curve, Point, measured
from evaluation.scoring import INTERVAL
from evaluation.suites.base import Suite
from evaluation.suites.task import (
    Examples,
    Scores,
    agreed,
    check_vocabulary,
    facet_curves,
    fraction,
    load_record,
    make_examples,
    score,
    state_facts,
    task_metrics,
    what_is_asked,
)

Sizes = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        name: of the curve, behind "accuracy by".
        size: the size of the task that names a place on the axis.
        label: what that size counts.
        grow: (trained sizes, factor) -> the sizes that change.
    """

    name: str
    size: str
    label: str
    grow: Callable[[Sizes, float], Sizes]


def times(sizes: Sizes, name: str, factor: float) -> int:
    """A size times a factor, rounded, at least 1."""
    return max(1, round(factor * sizes[name]))


def even(number: int) -> int:
    """The nearest even number from above."""
    return number + number % 2


def longer(sizes: Sizes, factor: float) -> Sizes:
    """A longer row of the same contents; even, as pairs and slots need."""
    return {"sequence_length": even(times(sizes, "sequence_length", factor))}


def more_pairs(sizes: Sizes, factor: float) -> Sizes:
    """More key-value pairs, in a row that grows with them."""
    return {"num_pairs": times(sizes, "num_pairs", factor), **longer(sizes, max(1.0, factor))}


def more_pairs_only(sizes: Sizes, factor: float) -> Sizes:
    """More key-value pairs in a row of the trained length."""
    return {"num_pairs": times(sizes, "num_pairs", factor)}


def more_recalled(sizes: Sizes, factor: float) -> Sizes:
    """More key-value pairs in front of one query."""
    return {"sequence_length": 2 * max(1, round(factor * (sizes["sequence_length"] // 2))) + 1}


def longer_string(sizes: Sizes, factor: float) -> Sizes:
    """Strings of exactly the longest trained length times a factor, in a row that grows by as much."""
    longest = times(sizes, "max_length", factor)
    shown = 2 if sizes["form"] in ("copy", "duplicate") else 1
    length = sizes["sequence_length"] + shown * (longest - sizes["max_length"])
    return {"min_length": longest, "max_length": longest, "sequence_length": length}


def more_tokens(sizes: Sizes, factor: float) -> Sizes:
    """More tokens to copy, in a row that grows with them."""
    return {"num_tokens": times(sizes, "num_tokens", factor), **longer(sizes, max(1.0, factor))}


def more_needles(sizes: Sizes, factor: float) -> Sizes:
    """More needles in a row that grows with them."""
    return {"num_needles": times(sizes, "num_needles", factor), **longer(sizes, max(1.0, factor))}


def longer_word(sizes: Sizes, factor: float) -> Sizes:
    """Rows of exactly the longest trained length times a factor."""
    return _exactly(sizes, factor, sizes.get("tokens_per_element", 1))


def longer_expression(sizes: Sizes, factor: float) -> Sizes:
    """The same where a symbol, an operator and a digit, takes two tokens."""
    return _exactly(sizes, factor, 2)


def _exactly(sizes: Sizes, factor: float, width: int) -> Sizes:
    symbols = max(1, round(factor * sizes["sequence_length"] / width))
    return {"sequence_length": width * symbols, "min_symbols": symbols}


def more_updates(sizes: Sizes, factor: float) -> Sizes:
    """More overwritten keys, in a row that grows with them."""
    return {"num_updates": times(sizes, "num_updates", factor), **longer(sizes, max(1.0, factor))}


LENGTH = Axis("length", "sequence_length", "tokens in a row", longer)
PAIRS = Axis("pairs and length", "num_pairs", "pairs, in a row that grows with them", more_pairs)
PAIRS_ONLY = Axis("pairs", "num_pairs", "pairs, in a row of the trained length", more_pairs_only)
UPDATES = Axis("updates and length", "num_updates", "updates, in a row that grows with them", more_updates)
WORD = Axis("length", "sequence_length", "tokens in a row", longer_word)
EXPRESSION = Axis("length", "sequence_length", "tokens in a row", longer_expression)

AXES = MappingProxyType(
    {
        "mqar": (LENGTH, PAIRS_ONLY, PAIRS),
        "mqar_update": (LENGTH, PAIRS, UPDATES),
        "associative_recall": (Axis("length", "sequence_length", "tokens in a row", more_recalled),),
        "in_context_recall": (LENGTH,),
        "noisy_recall": (LENGTH,),
        "fuzzy_recall": (LENGTH,),
        "induction_heads": (LENGTH,),
        "input_copying": (Axis("string length", "max_length", "letters of the string", longer_string),),
        "selective_copying": (LENGTH, Axis("tokens", "num_tokens", "tokens to copy, in a longer row", more_tokens)),
        "needle": (LENGTH, Axis("needles", "num_needles", "needles, in a longer row", more_needles)),
        "parity": (WORD,),
        "even_pairs": (WORD,),
        "cycle_navigation": (WORD,),
        "modular_arithmetic": (EXPRESSION,),
        "word_problem": (WORD,),
    }
)
"""What grows, by task."""


class Selection(Suite):
    """The task of the checkpoints, and the same at multiples of its trained length and difficulty."""

    uses = frozenset({"split", "seed", "num_examples", "batch_size", "factors"})
    heads = ("CausalLM", "TokenClassification")
    interval = INTERVAL

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        asked = what_is_asked(config, name=_recorded_task(config))
        if asked.name not in AXES:
            raise UsageError(
                f"--suite selection knows nothing that grows in {asked.name}: {suggest(asked.name, list(AXES))}"
            )
        self.asked = asked
        self.trained = self._examples({})
        self.facts = {**self.trained.facts, "factors": list(config.factors)}

    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Accuracy as trained, along each axis, and by the facets as trained."""
        check_vocabulary(model, name, self.trained)
        try:
            scores = score(model, self.trained, self.config.batch_size)
        except ValueError as error:
            raise UsageError(f"--model {name} does not take the examples of {self.asked.name}: {error}") from error
        metrics, curves = task_metrics(scores, self.facts), []
        for axis in AXES[self.asked.name]:
            curve, farthest = self._curve(model, axis)
            curves.append(curve)
            if farthest is not None:
                metrics.append(farthest)
        curves += facet_curves(scores, self.facts)
        return {"state": state_facts(model, self.trained.input_ids), **measured(metrics, curves)}

    def _curve(self, model: PreTrainedModel, axis: Axis) -> tuple[Curve, Metric | None]:
        """Accuracy along an axis, and as a metric that of its farthest point beyond the trained one."""
        trained = self.trained.facts["sizes"]
        points: dict[float, Point] = {}
        farthest = None
        for factor in sorted({1.0, *self.config.factors}):
            changes = axis.grow(trained, factor) if factor != 1 else {}
            place = {**trained, **changes}[axis.size]
            if place in points:
                continue
            points[place], scores, examples = self._point(model, place, changes, factor)
            if scores is not None and factor > 1:
                name = f"accuracy by {axis.name}, {factor:g} times the trained {axis.size.replace('_', ' ')}"
                facts = examples.facts
                baselines = {"chance": facts["chance"], "best_trivial": facts["best_trivial"]}
                farthest = fraction(name, scores.accuracy, facts["split"], **baselines)
        curve = Curve(
            name=f"accuracy by {axis.name}",
            y="accuracy",
            x=axis.label,
            points=[points[place] for place in sorted(points)],
            trained_at=trained[axis.size],
        )
        return curve, farthest

    def _point(
        self, model: PreTrainedModel, place: float, changes: Sizes, factor: float
    ) -> tuple[Point, Scores | None, Examples | None]:
        try:
            examples = self._examples(changes)
            # Fewer rows at a time where they are longer, so that memory stays what it was.
            scores = score(model, examples, max(1, int(self.config.batch_size / max(1.0, factor))))
        except (UsageError, ValueError, IndexError) as error:
            return Point(x=place, value=None, note=str(error).split("\n")[0]), None, None
        found, facts = scores.accuracy, examples.facts
        point = Point(
            x=place,
            value=found.value,
            interval=(found.low, found.high),
            count=found.examples,
            chance=facts["chance"],
            best_trivial=facts["best_trivial"],
        )
        return point, scores, examples

    def _examples(self, changes: Mapping[str, Any]) -> Examples:
        asked = self.asked
        return make_examples(asked.name, {**asked.sizes, **changes}, self.config.split, asked.seed, asked.num_examples)


def _recorded_task(config: EvaluationConfig) -> str:
    """The task that the checkpoints were trained on."""
    records = [record for model in config.model if (record := load_record(model)) is not None]
    name = agreed(records, "model", lambda record: record.name)
    if name is None:
        raise UsageError(
            "--suite selection needs a checkpoint with a task.json, which says what it was trained on: train one with "
            "training/train.py, or evaluate a task by its name."
        )
    return name
