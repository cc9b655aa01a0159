"""The configuration that every architecture shares: sizes, block structure, positions, initialisation."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from packaging.version import Version
from transformers import GenerationConfig, PreTrainedConfig
from transformers import __version__ as transformers_version
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters
from transformers.utils import logging

from ..errors import did_you_mean, require
from ..portable import auto_map, is_own, is_portable, write_code
from ..version import __version__
from .compat import CLASS_NAMES, register_with_peft
from .migrations import VERSION_FIELD, is_newer, migrate, read_version

__all__ = ["MAX_LABELS", "MAX_LAYERS", "MAX_SIZE", "DSFConfig", "bounds"]

logger = logging.get_logger(__name__)

MAX_SIZE = 2**24
"""Largest value of any size in a configuration (16,777,216), so that no file can ask for memory beyond all reason."""
MAX_LAYERS = 4096
"""Most blocks of a model, and most hidden layers of a channel mixer."""
MAX_LABELS = 2**20
"""Most labels of a classifier (1,048,576)."""

_LIMITS = {
    "num_hidden_layers": MAX_LAYERS,
    "channel_mixer_depth": MAX_LAYERS,
    # Nothing of these sizes is made, or what is made has a limit of its own.
    "max_position_embeddings": math.inf,
    "sliding_window": math.inf,
    "order": math.inf,
}
_CLOSE = 0.8
"""How similar to a field a keyword of from_pretrained must be to count as misspelt and not as meant for another."""

# Keys without a field of their own that transformers itself writes into config.json or passes to the constructor.
_TRANSFORMERS_KEYS = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "decoder_start_token_id",
        "experts_implementation",
        "finetuning_task",
        "is_decoder",
        "layer_types",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "quantization_config",
        "sep_token_id",
        "task_specific_params",
        "tie_last_hidden_states",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_return_dict",
    }
)


@strict
class DSFConfig(PreTrainedConfig):
    """Fields that all architectures share; each architecture adds its own in its file.

    Inner width d = num_heads · head_dim; the state of a layer holds N = d · state_size numbers, unless the
    architecture says otherwise.

    Raises:
        ValueError: a field is unknown (the closest names are offered), or a value makes no sense; the message names
            the field, the value and the remedy.
        StrictDataclassFieldValidationError: a value is of the wrong type.
    """

    model_type: ClassVar[str] = "dsf"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads"}
    uses_rope: ClassVar[bool] = False
    """Whether the architecture can rotate queries and keys (position_embedding="rope")."""
    base_model_tp_plan: ClassVar[dict[str, str] | None] = {}
    """Tensor-parallel plan of the base model; empty, since each model adds what its own modules declare."""
    fixed_fields: ClassVar[dict[str, int]] = {}
    """Shared fields that leave the architecture no choice, with their only value (which is their default)."""

    vocab_size: int = 32000
    """Number of tokens in the vocabulary."""
    hidden_size: int = 256
    """Width of the residual stream."""
    input_size: int | None = None
    """Numbers per token of real-valued input (`inputs_values`), embedded by a linear map; None for token ids alone."""
    num_hidden_layers: int = 4
    """Number of blocks, each a sequence mixer and (unless "none") a channel mixer."""

    num_heads: int = 4
    """Heads h of the mixer."""
    head_dim: int | None = None
    """Head width p (values). Default: expand · hidden_size / num_heads."""
    expand: int | float = 1
    """Inner width over hidden_size; num_heads · head_dim must equal expand · hidden_size."""
    state_size: int = 64
    """States per channel n: the width of keys and queries (B and C) per head."""
    conv_kernel: int = 0
    """Taps of the short causal convolution in front of the system; 0 for none."""
    conv_bias: bool = True
    """Whether the short convolution has a bias."""
    gate: str = "none"
    """Activation of the multiplicative output gate, y * act(W_g x); "none" for no gate."""
    output_norm: Literal["none", "rmsnorm"] = "none"
    """Norm between the mixer's core and its output projection."""
    use_bias: bool = False
    """Whether the mixer's projections have biases."""

    channel_mixer: Literal["none", "mlp", "swiglu", "geglu"] = "none"
    """Token-wise network after the mixer: "mlp" (hidden_act), gated "swiglu" or "geglu", or "none"."""
    channel_mixer_depth: int | list[int] | tuple[int, ...] = 1
    """Hidden layers of the "mlp" channel mixers; or one number for each of them in order, 0 to leave that one out."""
    pre_channel_mixer: bool = False
    """Whether a channel mixer also stands before the first mixer (the theory's FNN ∘ SSM ∘ FNN ∘ SSM ∘ FNN)."""
    intermediate_size: int | None = None
    """Width of the channel mixer. Default: 4 · hidden_size."""
    hidden_act: str = "gelu"
    """Activation of the "mlp" channel mixer."""
    mlp_bias: bool = False
    """Whether the channel mixer's projections have biases."""

    position_embedding: Literal["none", "learned", "rope"] = "none"
    """Positions: none, a learned table added to the embeddings, or rotary queries and keys (attention only)."""
    max_position_embeddings: int | None = None
    """Longest sequence: the size of the learned table, and what evaluation tools read. None: no limit."""

    residual: bool = True
    """Whether each mixer and channel mixer is added to its input; if not, the network is their plain composition."""
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    """Norm in front of each mixer, of each channel mixer and of the head."""
    norm_eps: float | int = 1e-6
    """Added to the variance in every norm."""
    dropout: float | int = 0.0
    """Dropout of the embeddings and of each residual branch."""
    initializer_range: float | int = 0.02
    """Standard deviation of the weights of projections and embeddings at initialisation."""
    initialization: Literal["declared", "as_released"] = "declared"
    """"declared": what each source states. "as_released": what the DSF paper's code does, which draws every projection
    anew (so that every Δ starts at softplus(0)) and scales down those into the residual stream."""

    embedding_scale: float | int = 1.0
    """Factor of the token embeddings (Gemma's is √hidden_size)."""
    logit_softcap: float | int | None = None
    """Bound c of the language model's logits, c · tanh(logits / c); None for none."""
    tie_word_embeddings: bool = False
    """Whether the language-model head shares the embedding's weights."""
    label_alignment: Literal["next", "same"] = "next"
    """Target of the output at t: labels[t + 1] ("next", as in transformers) or labels[t] ("same", synthetic tasks)."""
    use_cache: bool = True
    """Whether the model returns its state by default (not in training mode unless asked, never if it looks ahead)."""
    pad_token_id: int | None = None
    """Padding token; its embedding is zero."""
    bos_token_id: int | None = None
    """Token that starts a sequence."""
    eos_token_id: int | list[int] | None = None
    """Token or tokens that end a generated sequence."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self.attribute_map.get(name, name) in ("hidden_size", "num_heads", "expand") and "_post_init_done" in vars(
            self
        ):
            self._fit_head_dim()

    def _fit_head_dim(self) -> None:
        """Let head_dim follow a changed size, as it must; where heads do not divide the width, validation says so."""
        inner = self.expand * self.hidden_size
        if inner % self.num_heads == 0:
            self.head_dim = int(inner // self.num_heads)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from what a file holds, written by this version or by an earlier one.

        Args:
            config_dict: the file's content; left as it is.
            kwargs: fields with the values that they shall have instead, and keywords of `PreTrainedConfig.from_dict`.

        Returns:
            The configuration; with return_unused_kwargs=True, and the keywords that are none of its attributes.

        Raises:
            ValueError: what the constructor refuses, a keyword that looks like a misspelt field, or a file that names
                code of the Hub to run.
        """
        fields = migrate(config_dict)
        _refuse_kernels(fields)
        own = cls.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys() | cls.attribute_map.keys()
        # Before construction and not after it, so that they are checked together and defaults follow from them.
        changes = {key: kwargs.pop(key) for key in own & kwargs.keys()}
        for key, value in kwargs.items():
            hint = "" if hasattr(cls, key) else did_you_mean(key, own, _CLOSE)
            require(not hint, key, value, f"{cls.__name__} has no field {key!r}; {hint}")
        return super().from_dict(fields | changes, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields with the version they belong to, and those attributes that can be read again."""
        # PEFT reads a model's configuration so, just before it looks its model_type up in its own table.
        register_with_peft(self.model_type)
        found = super().to_dict() | {VERSION_FIELD: __version__}
        return {key: value for key, value in found.items() if key in self.__dataclass_fields__ or self._allows(key)}

    @contextlib.contextmanager
    def carrying_code(self, carry: bool | None = True) -> Iterator[None]:
        """Let files that are saved meanwhile carry the code of the models with them (None: as the loaded files did).

        With the code, `from_pretrained(folder, trust_remote_code=True)` works where dsf_models is not installed; where
        it is, the code is not looked at.
        """
        earlier = vars(self).get("auto_map")
        if carry:
            self.auto_map = auto_map(self._auto_classes())
        elif carry is False and self.carries_code:
            del self.auto_map
        try:
            yield
        finally:
            vars(self).pop("auto_map", None)
            if earlier is not None:
                self.auto_map = earlier

    @property
    def carries_code(self) -> bool:
        """Whether files of this configuration carry the code of its models, as after loading a folder that does."""
        return is_portable(getattr(self, "auto_map", None))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and beside it the code where the configuration carries it."""
        if self.carries_code:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            layers = {type(self.layer_config(i)).__module__ for i in range(self.num_hidden_layers)}
            own = type(self).__module__
            write_code(Path(save_directory), [own, *sorted(layers - {own})], set(self._auto_classes().values()))
        # Anew, since the auto_map of a repository of the Hub names that.
        with self.carrying_code(self.carries_code or None):
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do what transformers does for classes of users; those of this package are saved by `carrying_code`."""
        if not is_own(cls.__module__):
            super().register_for_auto_class(auto_class)

    def _auto_classes(self) -> dict[str, str]:
        """Return the names of the classes of this architecture, by the Auto classes that ask for them."""
        models = {auto_class: names[self.model_type] for auto_class, names in CLASS_NAMES.items()}
        return {"AutoConfig": type(self).__name__} | models

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("layer_types", None)
        version = kwargs.pop(VERSION_FIELD, __version__)
        for alias, field in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, field, kwargs.pop(alias))
        self._refuse_unknown(kwargs, version)
        self._refuse_excess()
        self._refuse_wrong_labels(kwargs.get("num_labels"))
        self._refuse_wrong_dtype(self.dtype if self.dtype is not None else kwargs.get("torch_dtype"))
        self._require_positive("hidden_size")
        self.fill_defaults()
        super().__post_init__(**kwargs)
        # The strict base class runs the validators too, but wraps what they raise.
        self.validate_token_ids()
        self.validate_architecture()

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields, and tuples by lists, as JSON gives them back."""
        self._fill_head_dim()
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        for name in type(self).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys():
            if isinstance(getattr(self, name, None), tuple):
                setattr(self, name, list(getattr(self, name)))

    def _fill_head_dim(self) -> None:
        self._require_positive("num_heads", "expand")
        if self.head_dim is None:
            inner = self.expand * self.hidden_size
            require(
                inner % self.num_heads == 0,
                "num_heads",
                self.num_heads,
                f"does not divide expand · hidden_size = {inner:g}; choose a divisor, or set head_dim.",
            )
            self.head_dim = int(inner // self.num_heads)

    @property
    def inner_size(self) -> int:
        """Inner width d = num_heads · head_dim of the mixer."""
        return self.num_heads * self.head_dim

    @property
    def channel_mixer_depths(self) -> list[int]:
        """Hidden layers of each channel mixer, the one before the first mixer (if any) first."""
        depth, count = self.channel_mixer_depth, self.num_hidden_layers + int(self.pre_channel_mixer)
        return list(depth) if isinstance(depth, list | tuple) else [depth] * count

    @property
    def looks_ahead(self) -> bool:
        """Whether an output depends on later tokens, so that there is neither a cache nor generation."""
        layers = [self.layer_config(i) for i in range(self.num_hidden_layers)]
        return any(layer is not self and layer.looks_ahead for layer in layers)

    @property
    def layer_types(self) -> list[str]:
        """Cache layer type of each layer; a property, so that it never reaches config.json."""
        return [self.layer_config(i).cache_layer_type for i in range(self.num_hidden_layers)]

    @property
    def cache_layer_type(self) -> str:
        """Kind of cache that one layer of this architecture needs."""
        return "dsf_state"

    def layer_config(self, layer_idx: int) -> "DSFConfig":
        """Return the configuration of one layer: this one, unless layers differ."""
        return self

    @property
    def rotary_config(self) -> "DSFConfig":
        """The configuration of the layers that rotate queries and keys."""
        return self

    # ---- validation: every `validate_*` method runs at construction and before saving ------------------------------

    def validate_layer_type(self) -> None:
        """Accept the project's own cache layer types, which transformers' list does not hold."""

    def validate_rope(self) -> None:
        """Leave it to `_validate_positions`: transformers asks head_dim to be even, which is not what rotates here."""

    def validate_token_ids(self) -> None:
        """Raise where a special token lies outside the vocabulary."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            require(
                all(0 <= token < self.vocab_size for token in ids),
                name,
                value,
                f"give a token of the vocabulary (0 to {self.vocab_size - 1}), or None.",
            )

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        self._require_positive("vocab_size", "num_hidden_layers", "intermediate_size")
        self._validate_mixer()
        require(not self.is_encoder_decoder, "is_encoder_decoder", True, "every architecture here is a decoder.")
        self._require_activation("hidden_act")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "give a probability in [0, 1).")
        require(
            self.input_size is None or self.input_size > 0,
            "input_size",
            self.input_size,
            "give the positive number of real inputs per token, or None for token ids alone.",
        )
        self._require_positive("norm_eps", "initializer_range", "embedding_scale")
        require(
            self.logit_softcap is None or 0 < self.logit_softcap < math.inf,
            "logit_softcap",
            self.logit_softcap,
            "give a positive and finite bound, or None for none.",
        )
        self._validate_channel_mixers()
        self._validate_positions()

    def _validate_mixer(self) -> None:
        """Raise where the shared fields of the mixer do not fit together."""
        self._require_positive("head_dim", "state_size")
        for name, only in self.fixed_fields.items():
            value = getattr(self, name)
            require(value == only, name, value, f"{self.model_type} leaves no choice but {only}: leave {name} out.")
        require(
            self.inner_size == self.expand * self.hidden_size,
            "head_dim",
            self.head_dim,
            f"num_heads · head_dim = {self.inner_size} but expand · hidden_size = {self.expand * self.hidden_size:g}; "
            "change one of num_heads, head_dim, expand, or leave head_dim out.",
        )
        require(
            self.conv_kernel == 0 or self.conv_kernel >= 2,
            "conv_kernel",
            self.conv_kernel,
            "use 0 (none) or at least 2 taps.",
        )
        if not self.conv_kernel:
            self._require_default("there is no convolution (conv_kernel=0)", "conv_bias")
        self._require_activation("gate", allow_none=True)

    def _validate_channel_mixers(self) -> None:
        depth, count = self.channel_mixer_depth, self.num_hidden_layers + int(self.pre_channel_mixer)
        require(
            depth == 1 or self.channel_mixer == "mlp",
            "channel_mixer_depth",
            depth,
            f'only channel_mixer="mlp" has a depth of its own; channel_mixer is {self.channel_mixer!r}.',
        )
        if isinstance(depth, list):
            fits = len(depth) == count and all(number >= 0 for number in depth)
            require(
                fits,
                "channel_mixer_depth",
                depth,
                f"give one number for all, or {count}: one (or 0) for each channel mixer "
                "(num_hidden_layers, and one more with pre_channel_mixer).",
            )
        else:
            self._require_positive("channel_mixer_depth")
        require(
            not self.pre_channel_mixer or self.channel_mixer != "none",
            "pre_channel_mixer",
            True,
            'there is no channel mixer to put first: set channel_mixer to "mlp", "swiglu" or "geglu".',
        )
        if self.channel_mixer != "mlp":
            self._require_default(
                f'only channel_mixer="mlp" has it; channel_mixer is {self.channel_mixer!r}', "hidden_act"
            )
        if self.channel_mixer == "none":
            self._require_default('there is no channel mixer (channel_mixer="none")', "mlp_bias")
            require(
                self.intermediate_size == 4 * self.hidden_size,
                "intermediate_size",
                self.intermediate_size,
                'there is no channel mixer (channel_mixer="none"): leave intermediate_size out.',
            )

    def _validate_positions(self) -> None:
        limit = self.max_position_embeddings
        require(
            limit is None or limit > 0,
            "max_position_embeddings",
            limit,
            "give a positive length, or None for no limit.",
        )
        require(
            self.position_embedding != "learned" or limit is not None,
            "position_embedding",
            "learned",
            "a learned table needs its size: set max_position_embeddings.",
        )
        require(
            self.position_embedding != "learned" or limit <= MAX_SIZE,
            "max_position_embeddings",
            limit,
            f"a learned table can have at most {MAX_SIZE:,} rows.",
        )
        require(
            self.position_embedding != "rope" or self.uses_rope,
            "position_embedding",
            "rope",
            f'{self.model_type} has no queries and keys to rotate: use "none" or "learned".',
        )
        if self.position_embedding == "rope":
            self._validate_rope_parameters()
        elif self.uses_rope:
            given = {key: value for key, value in (self.rope_parameters or {}).items() if value is not None}
            require(
                given.items() <= {"rope_type": "default", "rope_theta": self.default_theta}.items(),
                "rope_parameters",
                given,
                'nothing rotates: set position_embedding="rope", or leave rope_parameters out.',
            )

    def _validate_rope_parameters(self) -> None:
        rope_type = self.rope_parameters["rope_type"]
        require(
            rope_type == "default" or rope_type in ROPE_INIT_FUNCTIONS,
            "rope_parameters",
            self.rope_parameters,
            f"unknown rope_type; choose one of {', '.join(['default', *ROPE_INIT_FUNCTIONS])}.",
        )
        self._validate_rope_keys(rope_type)
        require(
            self.max_position_embeddings is not None or rope_type in ("default", "linear", "proportional"),
            "max_position_embeddings",
            None,
            f"rope_type={rope_type!r} depends on the longest sequence: set it.",
        )
        share = self.rope_parameters.get("partial_rotary_factor") or 1.0
        require(
            int(self.state_size * share) % 2 == 0 and 0 < share <= 1,
            "state_size",
            self.state_size,
            f"rotary positions rotate pairs of features: choose an even width (partial_rotary_factor is {share}).",
        )

    def _validate_rope_keys(self, rope_type: str) -> None:
        parameters, known = self.rope_parameters, list(RopeParameters.__annotations__)
        for key, value in parameters.items():
            hint = did_you_mean(key, known) or f"its keys are {', '.join(known)}."
            require(key in known, "rope_parameters", parameters, f"unknown key {key!r}; {hint}")
            numbers = value if isinstance(value, list | tuple) else [value]
            lowest = 1.0 if key == "factor" else math.ulp(0.0)
            fits = all(isinstance(x, int | float) and lowest <= x < math.inf for x in numbers)
            fits = fits and not any(isinstance(x, bool) for x in numbers)
            remedy = f"{key} must be {'at least 1' if key == 'factor' else 'positive'} and finite."
            require(fits or value is None or key in ("rope_type", "truncate"), "rope_parameters", parameters, remedy)
        try:
            getattr(self, f"_validate_{rope_type}_rope_parameters")(
                parameters, ignore_keys=self.ignore_keys_at_rope_validation
            )
        except KeyError as error:
            require(False, "rope_parameters", parameters, f"{error.args[0]}: give them.")

    def _require_default(self, why: str, *names: str) -> None:
        """Raise where a field that would have no effect is not at its default."""
        for name in names:
            default = type(self).__dataclass_fields__[name].default
            require(getattr(self, name) == default, name, getattr(self, name), f"{why}: leave {name} out.")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "must be positive and finite.")

    def _require_range(self, name: str, kind: str, lowest: float, highest: float) -> None:
        value = getattr(self, name)
        if value is not None:
            ends = bounds(value)
            ordered = len(ends) == 2 and lowest <= ends[0] <= ends[1] <= highest
            require(ordered, name, value, f"give two {kind} numbers, the smaller first.")

    def _require_order(self, low: str, high: str) -> None:
        self._require_positive(low, high)
        lowest, highest = getattr(self, low), getattr(self, high)
        require(lowest <= highest, low, lowest, f"must be at most {high}={highest}.")

    def _require_activation(self, name: str, allow_none: bool = False) -> None:
        value = getattr(self, name)
        known = value in ACT2FN or (allow_none and value == "none")
        hint = did_you_mean(value, [*ACT2FN, "none"]) or "give a name that transformers knows, such as silu or gelu."
        require(known, name, value, f"unknown activation; {hint}")

    def _refuse_unknown(self, kwargs: dict[str, Any], version: object) -> None:
        """Raise where a keyword is neither a field nor one of transformers' own; `version` wrote the fields."""
        fields = type(self).__dataclass_fields__
        newer = is_newer(version)
        for key in kwargs:
            if self._allows(key):
                continue
            if key in GenerationConfig._get_default_generation_params():
                logger.warning_once(f"{key} has no effect in a configuration: set it on model.generation_config.")
                continue
            lists = f"`dsf-models fields {self.model_type.removeprefix('dsf_')}` lists its fields."
            hint = did_you_mean(key, fields) or lists
            if key == "per_layer_config":
                hint = 'where layers differ, use the architecture "hybrid" and its mixer_options.'
            elif newer:
                hint = f"the file was written by dsf_models {version}, and this is {__version__}: upgrade dsf_models."
            elif self._is_of_later_transformers(key, fields):
                logger.warning_once(f"{key}={kwargs[key]!r} is of a later transformers, and has no effect here.")
                continue
            raise ValueError(f"{key}={kwargs[key]!r}: {type(self).__name__} has no field {key!r}; {hint}")
        if newer:
            logger.warning_once(f"a file of dsf_models {version} is read by {__version__}: upgrade dsf_models.")

    def _is_of_later_transformers(self, key: str, fields: Any) -> bool:
        """Whether a key without a field was added by a version of transformers later than the one that reads it."""
        if self.transformers_version is None or did_you_mean(key, fields, _CLOSE):
            return False
        return read_version("transformers_version", self.transformers_version) > Version(transformers_version)

    def _refuse_excess(self) -> None:
        """Raise where a size is beyond all reason, before anything of that size is made."""
        for name in type(self).__dataclass_fields__:
            value, limit = getattr(self, name, None), _LIMITS.get(name, MAX_SIZE)
            sizes = value if isinstance(value, list | tuple) else [value]
            fits = all(size <= limit for size in sizes if isinstance(size, int) and not name.endswith("_token_id"))
            require(fits, name, value, f"must be at most {limit:,}.")

    def _refuse_wrong_labels(self, num_labels: object) -> None:
        """Raise where transformers would make too many labels, or stumble over their numbers."""
        fits = num_labels is None or (isinstance(num_labels, int) and 0 <= num_labels <= MAX_LABELS)
        require(fits, "num_labels", num_labels, f"give a number from 0 to {MAX_LABELS:,}.")
        names = {} if self.id2label is None else self.id2label
        fits = isinstance(names, dict) and all(str(key).isdecimal() for key in names)
        require(fits, "id2label", names, "give a dictionary from the numbers of the labels to their names.")

    def _refuse_wrong_dtype(self, dtype: object) -> None:
        known = dtype is None or isinstance(
            getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype
        )
        require(known, "dtype", dtype, 'give a type of torch by name, such as "bfloat16", or None.')

    def _allows(self, key: str) -> bool:
        """Whether a key without a field of its own is one of transformers'."""
        allowed = _TRANSFORMERS_KEYS | self._legacy_keys()
        return key == VERSION_FIELD or key in allowed or key.startswith("_") or key in self.attribute_map

    def _legacy_keys(self) -> set[str]:
        """Spellings that transformers' own conversions accept for fields of this configuration."""
        return {"rope_theta", "rope_scaling", "partial_rotary_factor"} if self.uses_rope else set()


def _refuse_kernels(fields: dict[str, Any]) -> None:
    """Raise where a file names a kernel of the Hub, which transformers would download and run."""
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        value = fields.get(key)
        names = value.values() if isinstance(value, dict) else [value]
        require(
            not any(isinstance(name, str) and ("/" in name or ":" in name) for name in names),
            key,
            value,
            f"a file cannot choose code of the Hub: remove {key}, and pass attn_implementation to from_pretrained.",
        )


def bounds(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return the ends of a range that a field gives, where one number stands for both."""
    return (value, value) if isinstance(value, float | int) else tuple(value)
