"""What a conversion is: a family of transformers' models, an architecture here, and the way between the two.

A family only says which field becomes which and which parameter becomes which. That nothing is lost is checked here,
for all of them alike: a configuration is converted there and back, and a field that comes back with another value is
refused by name, unless the family says that it does no harm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ...backbone import DSFConfig, get_architecture
from ..usage import UsageError

__all__ = ["Family", "Rule"]

_CARRIED = ("dtype", "id2label", "label2id", "problem_type", "output_hidden_states", "return_dict")
"""Fields of every configuration, which keep their meaning."""
_HARMLESS = frozenset({"architectures", "transformers_version", "chunk_size_feed_forward"})
"""Fields of every configuration that change no output of a causal decoder here or there."""
_READ_FROM_ANY_CONFIGURATION = frozenset(
    {"quantization_config", "sliding_window", "layer_types", "attention_chunk_size", "num_kv_shared_layers"}
)
"""Keys that transformers obeys although the configuration's class does not declare them."""


@dataclass(frozen=True)
class Rule:
    """Parameters that hold the same numbers: the sources one below the other are the targets one below the other."""

    source: tuple[str, ...]
    """Names in transformers' model."""
    target: tuple[str, ...]
    """Names in the model here."""
    transposed: bool = False
    """Whether one is the transpose of the other."""
    offset: float = 0.0
    """What is added on the way here; parameters with an offset are held in at least float32 here."""

    def reversed(self) -> "Rule":
        """Return the rule for the way back."""
        return Rule(self.target, self.source, self.transposed, -self.offset)

    def applied(self, tensors: list[Tensor], wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the wanted parameters (names and shapes of the targets) from those of the sources."""
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if self.transposed:
            whole = whole.t().contiguous()
        if self.offset:
            whole = whole.to(torch.promote_types(whole.dtype, torch.float32)) + self.offset
        if len(wanted) == 1:
            return {name: whole.reshape(shape) for name, shape in wanted.items()}
        parts = whole.split([shape[0] for shape in wanted.values()])
        # Files hold storages, and parts of one must not share theirs.
        return {name: part.clone().reshape(wanted[name]) for name, part in zip(wanted, parts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of transformers' causal language models that is one of the architectures here."""

    title: str
    """Name of the family, for messages."""
    source_config: type[PreTrainedConfig]
    """Its configuration class."""
    architecture: str
    """Name of the architecture here."""
    to_dsf: Callable[[Any], dict[str, Any]]
    """Fields here, from a configuration there."""
    to_source: Callable[[Any], dict[str, Any]]
    """Fields there, from a configuration here."""
    rules: Callable[[int], list[Rule]]
    """All rules of a model with so many layers; those whose parameters a model lacks (a bias) do not apply to it."""
    harmless: frozenset[str] = frozenset()
    """Fields there that change no logit: how weights are drawn, or how the same numbers are computed."""
    unused: Callable[[Any], frozenset[str]] = lambda source: frozenset()
    """Fields there that a configuration leaves without effect, since no layer of it reads them."""
    harmless_here: frozenset[str] = frozenset()
    """Fields here of the same kind."""
    stale: tuple[str, ...] = ()
    """Ends of names of buffers that old checkpoints hold and no release reads."""

    # ---- configurations --------------------------------------------------------------------------------------------

    def dsf_config(self, source: PreTrainedConfig) -> DSFConfig:
        """Return the configuration here that computes the same function.

        Raises:
            UsageError: a setting cannot be expressed here; the message names it.
        """
        if source.is_heterogeneous:
            raise UsageError("per_layer_config is set: models whose layers differ cannot be converted.")
        for name in sorted(_READ_FROM_ANY_CONFIGURATION & vars(source).keys()):
            if getattr(source, name) is not None:
                raise UsageError(
                    f"{name}={getattr(source, name)!r}: the conversion of {self.title} does not support it; "
                    "convert a model without."
                )
        config = self._build(self._dsf_class, self.to_dsf(source) | _carried(source))
        back = self._build(self.source_config, self.to_source(config) | _carried(config))
        self._check(source, back, self.harmless | self.unused(source), f"the architecture {self.architecture}")
        return config

    def source_config_of(self, config: DSFConfig) -> PreTrainedConfig:
        """Return transformers' configuration that computes the same function.

        Raises:
            UsageError: a setting cannot be expressed there; the message names it.
        """
        source = self._build(self.source_config, self.to_source(config) | _carried(config))
        back = self._build(self._dsf_class, self.to_dsf(source) | _carried(source))
        self._check(config, back, self.harmless_here, f"transformers' {self.title}")
        return source

    @property
    def _dsf_class(self) -> type[DSFConfig]:
        return get_architecture(self.architecture).config_class

    def _build(self, config_class: type[PreTrainedConfig], values: dict[str, Any]) -> PreTrainedConfig:
        try:
            return config_class(**values)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise UsageError(f"{self.title}: {' '.join(str(error).split())}") from error

    def _check(self, config: PreTrainedConfig, back: PreTrainedConfig, harmless: frozenset[str], where: str) -> None:
        for field in fields(config):
            value, other = getattr(config, field.name), getattr(back, field.name)
            if field.name in harmless | _HARMLESS or _same(value, other):
                continue
            raise UsageError(f"{field.name}={value!r}: {where} can only express {other!r} here; convert another model.")

    # ---- weights ---------------------------------------------------------------------------------------------------

    def dsf_weights(self, weights: Mapping[str, Tensor], source: PreTrainedConfig) -> dict[str, Tensor]:
        """Return transformers' weights under the names here.

        Raises:
            UsageError: a parameter is missing, unknown or of another shape; the message names it.
        """
        kept = {name: value for name, value in weights.items() if not name.endswith(self.stale)}
        given, wanted = self._shapes(source), self._shapes(self.dsf_config(source))
        return _translated(_untied(kept, given), given, wanted, self.rules(source.num_hidden_layers))

    def source_weights(self, weights: Mapping[str, Tensor], config: DSFConfig) -> dict[str, Tensor]:
        """Return the weights of a model here under transformers' names.

        Raises:
            UsageError: a parameter is missing, unknown or of another shape; the message names it.
        """
        given, wanted = self._shapes(config), self._shapes(self.source_config_of(config))
        back = [rule.reversed() for rule in self.rules(config.num_hidden_layers)]
        return _translated(_untied(weights, given), given, wanted, back)

    def _shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter that a file holds: of those that are tied, the embedding."""
        with torch.device("meta"):
            model = self.model_class(config)(config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
        if config.tie_word_embeddings:
            del shapes["lm_head.weight"]
        return shapes

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """Return the class of the causal language model that a configuration describes, here or there."""
        return AutoModelForCausalLM._model_mapping[type(config)]


def _carried(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _CARRIED}


def _same(one: Any, other: Any) -> bool:
    return _plain(one) == _plain(other)


def _plain(value: Any) -> Any:
    """Return a field's value in the form that it has in config.json."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, tuple) else value


def _untied(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the weights without a copy of the embedding that stands in for a tied head."""
    kept = dict(weights)
    if "lm_head.weight" in kept and "lm_head.weight" not in shapes:
        head = kept.pop("lm_head.weight")
        if not any(head.shape == value.shape and torch.equal(head, value) for value in kept.values()):
            raise UsageError(
                "lm_head.weight differs from the embedding, but tie_word_embeddings=True: set it to false in "
                "config.json, or remove lm_head.weight from the file."
            )
    return kept


def _translated(
    weights: Mapping[str, Tensor],
    given: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    rules: list[Rule],
) -> dict[str, Tensor]:
    """Return the weights under other names.

    Args:
        weights: what a file holds.
        given: shapes of what it should hold.
        wanted: shapes of what is to come out.
        rules: from the one to the other.

    Raises:
        UsageError: `weights` are not those of `given`.
    """
    for name in sorted(weights.keys() ^ given.keys()):
        problem = "is missing from the checkpoint" if name in given else "is no parameter of such a model"
        raise UsageError(f"{name} {problem}: config.json and the weights do not belong together.")
    for name, shape in given.items():
        if tuple(weights[name].shape) != shape:
            raise UsageError(f"{name} has shape {tuple(weights[name].shape)}, but config.json asks for {shape}.")
    translated: dict[str, Tensor] = {}
    for rule in rules:
        targets = {name: wanted[name] for name in rule.target if name in wanted}
        if targets and rule.source[0] in weights:
            translated |= rule.applied([weights[name] for name in rule.source], targets)
    for name in sorted(wanted.keys() - translated.keys()):
        # A bias of 0 is as good as none; without a rule for any other parameter the family would be incomplete.
        if not name.endswith(".bias"):
            raise UsageError(f"{name} has no counterpart: such a model cannot be converted.")
        translated[name] = next(iter(weights.values())).new_zeros(wanted[name])
    return translated
