"""What every suite owes. Adding one = one file with a subclass of `Suite`, and its line in `registry.SUITES`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from dsf_models.hub.usage import UsageError
from evaluation.checkpoints import load_model
from evaluation.config import EvaluationConfig
from evaluation.figure import draw
from evaluation.results import curve_names, model_facts

_EVERYWHERE = {"model", "output_dir", "suite", "overwrite", "record"}
"""Fields of the configuration that every suite reads."""


class Suite(ABC):
    """One evaluation: what models are asked, and how their answers are scored."""

    uses: ClassVar[frozenset[str]]
    """Fields of `EvaluationConfig` that it reads besides those that all do: whole sections, or `section.field`."""

    heads: ClassVar[tuple[str, ...]] = ("CausalLM",)
    """Kinds of models that it takes, as their classes end."""

    recordable: ClassVar[bool] = True
    """Whether what is found belongs to the checkpoint, rather than to the machine."""

    interval: str
    """What its intervals are."""

    facts: dict[str, Any]
    """name, split, seed, data_hash and whatever else says what the models are asked."""

    def __init__(self, config: EvaluationConfig) -> None:
        refuse_unused(config, self.uses)
        self.config = config

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Measure one model.

        Args:
            model: on the device, in evaluation mode.
            name: what it was loaded from.

        Returns:
            `state`, `metrics` and `curves` of its entry in the results, and keys of the suite's own.

        Raises:
            UsageError: where the model does not fit the suite.
        """

    def run(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Load and measure models one after the other.

        Args:
            names: folders or ids on the Hub.

        Returns:
            Their entries in the results.
        """
        return [self._entry(load(name, self.heads), name) for name in names]

    def draw(self, results: Mapping[str, Any], folder: Path) -> None:
        """Draw one figure for each curve into the folder of the results."""
        for name in curve_names(results):
            draw(results, name, folder / f"{name.replace(' ', '_')}.png")

    def _entry(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        found = self.evaluate(model, name)
        return model_facts(model, name, found.pop("state")) | found


def load(name: str, heads: Sequence[str]) -> PreTrainedModel:
    """Load a model onto this machine's accelerator, or its CPU where there is none."""
    return load_model(name, heads).to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def refuse_unused(config: EvaluationConfig, uses: frozenset[str]) -> None:
    """Refuse what was given to a suite that does not read it.

    Raises:
        UsageError: naming the field.
    """
    default = flat(EvaluationConfig(model=[], output_dir=""))
    for name, given in flat(config).items():
        if given != default[name] and not {name, name.partition(".")[0]} & (_EVERYWHERE | uses):
            suite = "of the checkpoint's task" if config.suite is None else config.suite
            raise UsageError(f"--{name} is {given}, which the suite {suite} does not read: leave it out.")


def flat(config: EvaluationConfig) -> dict[str, Any]:
    """Every field by its name on the command line."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        else:
            found[field.name] = value
    return found
