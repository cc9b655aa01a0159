"""Hybrid: the mixer of a registered architecture in each layer, by its name.

    Λ_i, B_i, C_i, D_i of layer l: those of the architecture mixers[l]

Sources: De et al. 2024 (arXiv 2402.19427) and Lieber et al. 2024 (arXiv 2403.19887), among many that mix architectures.
"""

import copy
import functools
from inspect import get_annotations
from typing import Any, ClassVar, Literal, get_origin

from huggingface_hub.dataclasses import strict
from transformers.modeling_rope_utils import RopeParameters

from ..backbone import (
    Architecture,
    AttentionCapabilities,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFModel,
    get_architecture,
    list_architectures,
    register_architecture,
)
from ..errors import did_you_mean, require, suggest

__all__ = [
    "HybridConfig",
    "HybridForCausalLM",
    "HybridForSequenceClassification",
    "HybridForTokenClassification",
    "HybridModel",
]


@strict
class HybridConfig(DSFConfig):
    """Configuration of a hybrid; see `DSFConfig` for the shared fields.

    Fields of the block and of the model are those of all layers. Fields of the mixer that are None here have each
    architecture's own default; others hold for every layer that leaves a choice, unless mixer_options says otherwise.

    Raises:
        ValueError: a name or an option is unknown (the closest ones are offered), or a layer's fields do not fit
            together; the message names the architecture, the field, its value and the remedy.
    """

    model_type: ClassVar[str] = "dsf_hybrid"
    uses_rope: ClassVar[bool] = True

    mixers: list[str] | tuple[str, ...] | None = ("ssd", "ssd", "ssd", "softmax_attention")
    """Architecture of each layer, by name."""
    mixer_options: dict[str, dict[str, Any]] | None = None
    """Fields of the architectures' own configurations, by the architecture's name."""
    num_hidden_layers: int | None = None
    """Number of blocks: one for each name in mixers."""

    num_heads: int | None = None
    """Heads h of the mixers."""
    expand: int | float | None = None
    """Inner width over hidden_size."""
    state_size: int | None = None
    """States per channel n: the width of keys and queries (B and C) per head."""
    conv_kernel: int | None = None
    """Taps of the short causal convolution; 0 for none."""
    conv_bias: bool | None = None
    """Whether the short convolution has a bias."""
    gate: str | None = None
    """Activation of the multiplicative output gate; "none" for no gate."""
    output_norm: Literal["none", "rmsnorm"] | None = None
    """Norm between the mixer's core and its output projection."""
    use_bias: bool | None = None
    """Whether the mixers' projections have biases."""
    rope_parameters: RopeParameters | dict | None = None
    """Rotary settings of transformers for layers that rotate queries and keys, with position_embedding="rope"."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_attn_implementation_internal":
            # transformers writes it to the model's configuration; attention layers read it from their own.
            for config in self.__dict__.get("_configs", {}).values():
                setattr(config, name, value)

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields, and tuples by lists, as JSON gives them back."""
        require(
            bool(self.mixers),
            "mixers",
            self.mixers,
            'name one architecture for each layer, as in ["ssd", "softmax_attention"]; choose from '
            f"{', '.join(self._choices())}.",
        )
        self.mixers = list(self.mixers)
        self.mixer_options = dict(self.mixer_options or {})
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.mixers)
        self._validate_names()
        super().fill_defaults()

    def _fill_head_dim(self) -> None:
        """Leave it to the configurations of the layers."""

    def _fit_head_dim(self) -> None:
        """Leave it to the configurations of the layers."""

    def layer_config(self, layer_idx: int) -> DSFConfig:
        """Return the configuration of one layer, an instance of its architecture's own class."""
        return self._layer_configs()[self.mixers[layer_idx]]

    @property
    def layer_types(self) -> list[str]:
        """Cache layer type of each layer; a property, so that it never reaches config.json."""
        configs = self._layer_configs()
        return [configs[name].cache_layer_type for name in self.mixers[: self.num_hidden_layers]]

    @property
    def rotary_config(self) -> DSFConfig:
        """The configuration of the layers that rotate queries and keys."""
        return self._rotary_configs()[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields; the layers' configurations follow from them."""
        return {key: value for key, value in super().to_dict().items() if key not in ("_configs", "_fields")}

    # ---- the layers' configurations ---------------------------------------------------------------------------------

    def _choices(self) -> list[str]:
        return [name for name in list_architectures() if get_architecture(name).config_class is not type(self)]

    def _layer_configs(self) -> dict[str, DSFConfig]:
        """Return the layers' configurations by name, brought up to date where a field has changed.

        Those that a model holds stay the same objects, so that a change of the attention backend finds them.
        """
        fields = {name: self.__dict__.get(name) for name in _own_fields(type(self))}
        if fields != self.__dict__.get("_fields"):
            held = self.__dict__.get("_configs", {})
            self._configs = {name: self._config_of(name) for name in dict.fromkeys(self.mixers)}
            for name in held.keys() & self._configs.keys():
                held[name].__dict__.update(self._configs[name].__dict__)
                self._configs[name] = held[name]
            self._fields = copy.deepcopy(fields)
        return self._configs

    def _config_of(self, name: str) -> DSFConfig:
        """Build the configuration of one architecture: what all layers share, and its options."""
        config_class = get_architecture(name).config_class
        fields = _own_fields(config_class)
        chosen = {key: getattr(self, key) for key in fields if key in _own_fields(type(self))}
        chosen = {key: copy.deepcopy(value) for key, value in chosen.items() if key not in MIXER_FIELDS}
        for key in MIXER_FIELDS & fields.keys() - config_class.fixed_fields.keys():
            if getattr(self, key) is not None:
                chosen[key] = copy.deepcopy(getattr(self, key))
        if self.position_embedding == "rope" and not config_class.uses_rope:
            chosen["position_embedding"] = "none"
        options = copy.deepcopy(self.mixer_options.get(name, {}))
        if not (chosen | options).get("conv_kernel", config_class.conv_kernel):
            chosen.pop("conv_bias", None)
        try:
            config = config_class(**chosen | options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        config._attn_implementation_internal = self.__dict__.get("_attn_implementation_internal")
        return config

    def _rotary_configs(self) -> list[DSFConfig]:
        configs = [self.layer_config(i) for i in range(self.num_hidden_layers)]
        return [config for config in configs if config.position_embedding == "rope"]

    # ---- validation -------------------------------------------------------------------------------------------------

    def _validate_mixer(self) -> None:
        """Raise where a name or an option is unknown, or a layer's configuration refuses its fields."""
        self._validate_names()
        self._layer_configs()

    def _validate_names(self) -> None:
        self._require_positive("num_hidden_layers")
        for name in self.mixers:
            require(name in self._choices(), "mixers", name, f"unknown; {suggest(name, self._choices())}")
        require(
            self.num_hidden_layers == len(self.mixers),
            "num_hidden_layers",
            self.num_hidden_layers,
            f"mixers names {len(self.mixers)} layers: leave num_hidden_layers out.",
        )
        for name, options in self.mixer_options.items():
            require(
                name in self.mixers,
                "mixer_options",
                name,
                f"no layer has this architecture; {suggest(name, list(dict.fromkeys(self.mixers)))}",
            )
            self._validate_options(name, options)

    def _validate_options(self, name: str, options: dict[str, Any]) -> None:
        fields = _own_fields(get_architecture(name).config_class)
        shared = fields.keys() & _own_fields(DSFConfig).keys() - MIXER_FIELDS
        for key, value in options.items():
            field = f"mixer_options[{name!r}][{key!r}]"
            require(key not in shared, field, value, f"all layers share it: set {key} on {type(self).__name__} itself.")
            known = fields.keys() - shared
            require(key in known, field, value, f"{name} has no such field; {did_you_mean(key, known)}".rstrip("; "))

    def _validate_rope_parameters(self) -> None:
        """Raise unless some layer rotates, and all that do share their angles."""
        configs = self._rotary_configs()
        require(
            bool(configs),
            "position_embedding",
            "rope",
            'no layer has queries and keys to rotate: use "none" or "learned".',
        )
        angles = [(config.state_size, config.rope_parameters) for config in configs]
        require(
            all(one == angles[0] for one in angles),
            "mixer_options",
            self.mixer_options,
            "layers that rotate queries and keys share their angles: give them one state_size and rope_parameters.",
        )


MIXER_FIELDS = {
    "num_heads",
    "head_dim",
    "expand",
    "state_size",
    "conv_kernel",
    "conv_bias",
    "gate",
    "output_norm",
    "use_bias",
    "rope_parameters",
}
"""Fields of the mixer, None in a hybrid for the architecture's own default."""


@functools.cache
def _own_fields(config_class: type[DSFConfig]) -> dict[str, Any]:
    """Return the project's own fields of a configuration class, with their types."""
    found: dict[str, Any] = {}
    for base in reversed(config_class.__mro__):
        if issubclass(base, DSFConfig):
            found |= get_annotations(base)
    return {key: hint for key, hint in found.items() if get_origin(hint) is not ClassVar}


class HybridModel(AttentionCapabilities, DSFModel):
    """Hybrid without a head."""

    config: HybridConfig


class HybridForCausalLM(AttentionCapabilities, DSFForCausalLM, DSFGenerationMixin):
    """Hybrid language model."""

    config: HybridConfig


class HybridForSequenceClassification(AttentionCapabilities, DSFForSequenceClassification):
    """Hybrid sequence classifier."""

    config: HybridConfig


class HybridForTokenClassification(AttentionCapabilities, DSFForTokenClassification):
    """Hybrid token classifier."""

    config: HybridConfig


register_architecture(
    Architecture(
        config_class=HybridConfig,
        mixer_class=None,
        model_class=HybridModel,
        causal_lm_class=HybridForCausalLM,
        sequence_classification_class=HybridForSequenceClassification,
        token_classification_class=HybridForTokenClassification,
        transition="that of each layer's architecture",
        input_matrix="that of each layer's architecture",
        output_matrix="that of each layer's architecture",
    )
)
