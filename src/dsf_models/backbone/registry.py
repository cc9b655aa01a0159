"""The registry: one entry for each architecture, made by its own file. Everything else looks architectures up here."""

from dataclasses import dataclass

import transformers
from transformers import AutoConfig

from ..errors import suggest
from ..portable import IS_COPY
from .compat import CLASS_NAMES
from .configuration import DSFConfig
from .mixer import DSFMixer

__all__ = ["Architecture", "get_architecture", "list_architectures", "mixer_class", "register_architecture"]


@dataclass(frozen=True)
class Architecture:
    """What an architecture file registers: configuration, mixer, Hugging Face classes, and its choice in a line."""

    config_class: type[DSFConfig]
    mixer_class: type[DSFMixer] | None
    """None where every layer has the mixer of another architecture."""
    model_class: type
    causal_lm_class: type
    sequence_classification_class: type
    token_classification_class: type
    transition: str
    """Λ_i in one line of plain text."""
    input_matrix: str
    """B_i in one line of plain text."""
    output_matrix: str
    """C_i in one line of plain text."""
    feed_through: str = "0"
    """D_i in one line of plain text; "0" for none."""
    state_size: str = "n·d"
    """Size N of the state, in n = state_size, d = inner width and numbers; "∞" where no finite state will do."""

    @property
    def name(self) -> str:
        """Name of the architecture: its model_type without "dsf_"."""
        return self.config_class.model_type.removeprefix("dsf_")

    @property
    def time_invariant(self) -> bool:
        """Whether Λ, B, C and D are the same at every position, so that Φ is a Toeplitz matrix: as the mixer says."""
        return self.mixer_class is not None and self.mixer_class.time_invariant


_ARCHITECTURES: dict[str, Architecture] = {}

_FIELDS = {
    "AutoModel": "model_class",
    "AutoModelForCausalLM": "causal_lm_class",
    "AutoModelForSequenceClassification": "sequence_classification_class",
    "AutoModelForTokenClassification": "token_classification_class",
}
"""Which class of an architecture each Auto class builds."""


def register_architecture(architecture: Architecture) -> None:
    """Add an architecture, and its classes to transformers' Auto classes.

    Raises:
        ValueError: the model_type does not start with "dsf_" or is taken, or a class is that of another configuration.
    """
    config_class, model_type = architecture.config_class, architecture.config_class.model_type
    if not model_type.startswith("dsf_"):
        raise ValueError(f'model_type={model_type!r}: an architecture\'s model_type is "dsf_" + its name.')
    if architecture.name in _ARCHITECTURES:
        raise ValueError(
            f"model_type={model_type!r} is taken by {_ARCHITECTURES[architecture.name].config_class.__name__}."
        )
    # Before the first mapping is written, so that a refused architecture leaves no trace.
    for name in _FIELDS.values():
        head_class = getattr(architecture, name)
        if head_class.config_class is not config_class:
            raise ValueError(
                f"{name}={head_class.__name__} is configured by {head_class.config_class.__name__}: "
                f"declare `config: {config_class.__name__}` in it."
            )
    if not IS_COPY:
        # The code of a checkpoint is transformers' to register: other checkpoints bring other copies.
        AutoConfig.register(model_type, config_class)
    for auto_class, name in _FIELDS.items():
        head_class = getattr(architecture, name)
        if not IS_COPY:
            getattr(transformers, auto_class).register(config_class, head_class)
        # By these names Trainer knows whose labels it must shift for label smoothing, and pipelines what they can run.
        CLASS_NAMES[auto_class][model_type] = head_class.__name__
    _ARCHITECTURES[architecture.name] = architecture


def list_architectures() -> list[str]:
    """Return the names of all registered architectures, sorted."""
    return sorted(_ARCHITECTURES)


def get_architecture(name: str) -> Architecture:
    """Return the registered architecture of this name.

    Raises:
        ValueError: no such architecture; the closest names are offered.
    """
    if name not in _ARCHITECTURES:
        raise ValueError(f"architecture={name!r} is unknown; {suggest(name, list_architectures())}")
    return _ARCHITECTURES[name]


def mixer_class(config: DSFConfig) -> type[DSFMixer]:
    """Return the mixer class of a layer's configuration."""
    return get_architecture(config.model_type.removeprefix("dsf_")).mixer_class
