"""The model that every architecture shares: embeddings, blocks, heads, on transformers' own base classes.

Letters: b batch, t time, d hidden_size, v vocabulary.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

from ..errors import did_you_mean, require
from .compat import CACHE_NAME, resolve_cache
from .configuration import DSFConfig
from .generation import DSFGenerationMixin
from .inspection import InspectionMixin
from .layers import (
    GatedChannelMixer,
    LearnedPositions,
    MLPChannelMixer,
    ShortConvolution,
    build_channel_mixer,
    build_norm,
    residual_std,
)
from .layout import TokenLayout, build_layout, recurrent_mask
from .loss import aligned_targets, causal_lm_loss
from .mixer import DSFMixer
from .persistence import PersistenceMixin
from .positions import DSFRotaryEmbedding
from .registry import get_architecture, mixer_class

__all__ = [
    "AttentionCapabilities",
    "DSFBlock",
    "DSFForCausalLM",
    "DSFForSequenceClassification",
    "DSFForTokenClassification",
    "DSFModel",
    "DSFPreTrainedModel",
]

logger = logging.get_logger(__name__)

ATTENTION_LAYER_TYPES = ("full_attention", "dsf_attention")
"""Cache layer types of layers that hold keys and values, and so need a causal mask."""


def _causal_mask(layer_type: str, config: DSFConfig, **kwargs: Any) -> Any:
    """Return the attention backend's causal mask for layers of one type, which transformers sizes by the first one."""
    return create_causal_mask(config=config, layer_idx=config.layer_types.index(layer_type), **kwargs)


_FORWARD_KEYWORDS = frozenset(TransformersKwargs.__annotations__)
_HINTED_KEYWORDS = sorted(
    _FORWARD_KEYWORDS
    | {"attention_mask", "inputs_embeds", "label_alignment", "labels", "logits_to_keep", "past_key_values"}
    | {"inputs_values", "position_ids", "seq_idx", "shift_labels", "use_cache"}
)


class _JoinMixin:
    """How a branch joins the stream it was taken from, where `dropout` and `residual` are set."""

    def _join(self, hidden: Tensor, branch: Tensor) -> Tensor:
        branch = self.dropout(branch) if self.training else branch
        return hidden + branch if self.residual else branch


class DSFBlock(_JoinMixin, GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + channel_mixer(norm(x)) where there is one; without "x +" if residual=False."""

    def __init__(self, config: DSFConfig, layer_idx: int) -> None:
        super().__init__()
        layer_config = config.layer_config(layer_idx)
        kind = mixer_class(layer_config)
        self.mixer_attribute = kind.block_attribute
        self.norm = build_norm(config, config.hidden_size)
        self.add_module(self.mixer_attribute, kind(layer_config, layer_idx))
        self.channel_mixer = build_channel_mixer(config, layer_idx + int(config.pre_channel_mixer))
        self.channel_norm = build_norm(config, config.hidden_size) if self.channel_mixer is not None else None
        self.dropout = nn.Dropout(config.dropout)
        self.residual = config.residual

    @property
    def token_mixer(self) -> DSFMixer:
        """The sequence mixer, whatever its attribute is called."""
        return getattr(self, self.mixer_attribute)

    def forward(self, hidden: Tensor, layout: TokenLayout, cache: Cache | None = None, **kwargs: Any) -> Tensor:
        """Map the residual stream (b, t, d) to (b, t, d)."""
        mixed, _ = self.token_mixer(self.norm(hidden), layout, cache=cache, **kwargs)
        hidden = self._join(hidden, mixed)
        if self.channel_mixer is not None:
            hidden = self._join(hidden, self.channel_mixer(self.channel_norm(hidden)))
        return hidden


class DSFInputMixer(_JoinMixin, nn.Module):
    """x + channel_mixer(norm(x)) before the first block; without "x +" if residual=False."""

    def __init__(self, config: DSFConfig) -> None:
        super().__init__()
        self.norm = build_norm(config, config.hidden_size)
        self.channel_mixer = build_channel_mixer(config, 0)
        self.dropout = nn.Dropout(config.dropout)
        self.residual = config.residual

    def forward(self, hidden: Tensor) -> Tensor:
        """Map the embeddings (b, t, d) to (b, t, d)."""
        return self._join(hidden, self.channel_mixer(self.norm(hidden)))


class DSFPreTrainedModel(InspectionMixin, PersistenceMixin, PreTrainedModel):
    """What all models share with transformers: names, capabilities and the one place of initialisation."""

    config: DSFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DSFBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "cache"]
    _can_compile_fullgraph = True
    _supports_sdpa = True

    @property
    def _can_record_outputs(self) -> dict[str, type[nn.Module]]:
        kinds = {mixer_class(self.config.layer_config(i)) for i in range(self.config.num_hidden_layers)}
        shared = any(kind.shares_transfer_matrix for kind in kinds)
        return {"hidden_states": DSFBlock} | ({"attentions": DSFMixer} if shared else {})

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # In code from outside transformers, modules without parameters of their own are passed over, lest loaded
        # weights be overwritten. Here all goes through transformers.initialization, which spares them.
        super()._initialize_weights(module)

    def _resolve_parallel_plans(self, distributed_config: Any) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        tp_plan, ep_plan, fsdp_plan = super()._resolve_parallel_plans(distributed_config)
        # FSDP2 wants one dtype in a group. transformers gives a mixer, for its Λ in float32, a group of its own.
        inner = {
            f"{name}.{part}": "free_full_weight"
            for name, module in self.named_modules()
            if name in fsdp_plan and isinstance(module, DSFMixer)
            for part, child in module.named_children()
            if any(True for _ in child.parameters())
        }
        return tp_plan, ep_plan, inner | fsdp_plan

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DSFMixer | ShortConvolution):
            module.init_parameters()
        if self.config.initialization == "as_released":
            if isinstance(module, DSFMixer):
                module.init_as_released()
            elif isinstance(module, MLPChannelMixer | GatedChannelMixer):
                init.normal_(module.down_proj.weight, std=residual_std(self.config))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay must leave alone: those of Λ, every norm and every bias."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim < 2}
        for prefix, module in self.named_modules():
            if isinstance(module, DSFMixer):
                names |= {f"{prefix}.{name}" for name in module.transition_parameters}
        return names


class AttentionCapabilities:
    """What transformers may ask of a model that may hold attention layers; stands before the model among the bases."""

    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class DSFModel(DSFPreTrainedModel):
    """Embeddings, blocks and final norm: token ids in, hidden states out."""

    def __init__(self, config: DSFConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_values = nn.Linear(config.input_size, config.hidden_size) if config.input_size is not None else None
        self.embed_positions = self.rotary_emb = None
        if config.position_embedding == "learned":
            self.embed_positions = LearnedPositions(config.max_position_embeddings, config.hidden_size)
        elif config.position_embedding == "rope":
            self.rotary_emb = DSFRotaryEmbedding(config.rotary_config)
        self.dropout = nn.Dropout(config.dropout)
        self.input_mixer = None
        if config.pre_channel_mixer and config.channel_mixer_depths[0]:
            self.input_mixer = DSFInputMixer(config)
        self.layers = nn.ModuleList(DSFBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = build_norm(config, config.hidden_size)
        self.uses_positions = config.position_embedding != "none" or any(
            block.token_mixer.uses_positions for block in self.layers
        )
        # Read once: attribute access on a configuration costs microseconds, and decoding counts them.
        self.embedding_scale = config.embedding_scale
        self.layer_types = config.layer_types
        self.looks_ahead = config.looks_ahead
        self.keeps_keys = bool(set(self.layer_types) & set(ATTENTION_LAYER_TYPES))
        self.attends = self.keeps_keys or "dsf_sliding" in self.layer_types
        self.gradient_checkpointing = False
        self._keep_transition_parameters_in_float32()
        self.post_init()

    def init_parallel_plans(self) -> None:
        """Collect the tensor-parallel plan of transformers from what the modules declare."""
        super().init_parallel_plans()
        plan = {"embed_tokens": "embedding_rowwise"}
        for name, module in self.named_modules():
            if hasattr(module, "tp_plan") and module is not self:
                generic = replace_layer_number_by_wildcard(name)
                rules = {f"{generic}.{part}": style for part, style in module.tp_plan().items()}
                plan |= {replace_layer_number_by_wildcard(key): style for key, style in rules.items()}
        self._tp_plan = plan | self._tp_plan

    def _keep_transition_parameters_in_float32(self) -> None:
        """Keep the parameters of Λ in at least float32, however the model is built or loaded.

        With them go the other parameters that their mixer holds itself: FSDP2 shards parameters of one dtype together.
        """
        self._keep_in_fp32_modules_strict = set()
        for mixer in (block.token_mixer for block in self.layers):
            for name, parameter in mixer.named_parameters(recurse=False) if mixer.transition_parameters else ():
                self._keep_in_fp32_modules_strict.add(name)
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        seq_idx: Tensor | None = None,
        inputs_values: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute hidden states.

        Args:
            input_ids: (b, t); or give inputs_embeds.
            attention_mask: 1 for real tokens and 0 for pads, (b, past + t); pads may stand anywhere.
            position_ids: (b, t); default: counted over real tokens. Without a mask, jumps start documents.
            past_key_values: the state of the past, a transformers Cache built with this config; updated in place.
            inputs_embeds: (b, t, d) in place of input_ids.
            use_cache: whether to return the state. Default: config.use_cache, but not in training and not for packed
                documents.
            cache: the same as past_key_values, under the name that transformers >= 5.24 uses.
            seq_idx: (b, t) number of the packed document of each token.
            inputs_values: (b, t, input_size) real numbers in place of input_ids, for a model with config.input_size.
            kwargs: transformers' keywords: cu_seq_lens_q (offsets of packed documents; cu_seq_lens_k, max_length_q and
                max_length_k repeat them, and only FlashAttention reads those), output_hidden_states,
                output_attentions, return_dict; num_items_in_batch has no effect here.

        Returns:
            last_hidden_state (b, t, d) and, if asked for, the cache and hidden states.

        Raises:
            ValueError: inputs missing, doubled or of sizes that do not fit, or a cache for a model that looks ahead;
                the message says which.
            TypeError: an unknown keyword; the closest one is offered.
        """
        _check_keywords(kwargs)
        hidden = self._embed(input_ids, inputs_embeds, inputs_values)
        cache = resolve_cache(past_key_values, cache)
        if self.looks_ahead:
            use_cache = self._refuse_cache(cache, use_cache)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache, use_cache = self._without_cache(cache, use_cache)
        masks, full_mask = self._masks_given(hidden, attention_mask)
        layout = build_layout(
            hidden,
            masks["dsf_state"],
            full_mask,
            position_ids,
            cache,
            seq_idx=seq_idx,
            cu_seq_lens=kwargs.get("cu_seq_lens_q"),
            infer_documents=attention_mask is None and self._positions_tell_documents(cache),
            count_positions=self.uses_positions,
        )
        if not self.attends and kwargs.get("output_attentions", self.config.output_attentions):
            kwargs["with_transfer_matrix"] = _without_past(cache)
        if cache is None and self._wants_cache(use_cache, layout):
            cache = DynamicCache(config=self.config)
        if self.keeps_keys:
            self._add_causal_masks(masks, hidden, full_mask, cache, layout)
        if self.attends and layout.documents is not None:
            kwargs = self._varlen_keywords(layout, full_mask) | kwargs
        angles = self.rotary_emb(hidden, layout.position_ids) if self.rotary_emb is not None else None
        hidden = self._before_blocks(hidden, layout)
        for block, layer_type in zip(self.layers, self._layer_types_run(), strict=False):
            hidden = block(
                hidden, layout, cache, attention_mask=masks.get(layer_type), position_embeddings=angles, **kwargs
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{CACHE_NAME: cache})

    def _before_blocks(self, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """Map embeddings (b, t, d) to the input of the first block."""
        if self.embedding_scale != 1:
            hidden = hidden * self.embedding_scale
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(layout.position_ids)
        hidden = self.dropout(hidden) if self.training else hidden
        return hidden if self.input_mixer is None else self.input_mixer(hidden)

    def _layer_types_run(self) -> list[str]:
        """Return the types of the layers that run: early exit lowers config.num_hidden_layers for a while."""
        return self.layer_types[: self.config.num_hidden_layers]

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, inputs_values: Tensor | None) -> Tensor:
        """Return (b, t, d) of the one input that is given."""
        if sum(given is not None for given in (input_ids, inputs_embeds, inputs_values)) != 1:
            raise ValueError("give exactly one of input_ids, inputs_embeds and inputs_values.")
        if inputs_embeds is not None:
            return inputs_embeds
        if input_ids is not None:
            return self.embed_tokens(input_ids)
        size = self.config.input_size
        if size is None or inputs_values.ndim != 3 or inputs_values.shape[-1] != size:
            raise ValueError(
                f"inputs_values of shape {tuple(inputs_values.shape)} with input_size={size}: build the model with "
                "input_size=k and give (batch, time, k)."
            )
        return self.embed_values(inputs_values.to(self.embed_values.weight.dtype))

    def _refuse_cache(self, cache: Cache | None, use_cache: bool | None) -> bool:
        """Return False for use_cache where a mixer is two-sided, or raise where a cache was asked for."""
        for name, value in ((CACHE_NAME, cache), ("use_cache", use_cache or None)):
            if value is not None:
                raise ValueError(
                    f"{name} is given, but bidirectional=True: outputs depend on later tokens, so there is no state to "
                    "go on from; leave it out, or build the model with bidirectional=False."
                )
        return False

    def _without_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[None, bool]:
        """Drop the cache where blocks are recomputed in backward, which would write it twice."""
        if cache is not None or use_cache:
            logger.warning_once("activation checkpointing recomputes the blocks, so the cache is not used in training.")
        return None, False

    def _wants_cache(self, use_cache: bool | None, layout: TokenLayout) -> bool:
        if use_cache is None:
            return self.config.use_cache and not self.training and layout.starts is None
        return use_cache

    def _positions_tell_documents(self, cache: Cache | None) -> bool:
        """Whether jumps of position_ids count; a compiled graph cannot see that a cached segment has none of them."""
        return not (self.keeps_keys and cache is not None and torch.compiler.is_compiling())

    def _masks_given(
        self, hidden: Tensor, attention_mask: Tensor | dict[str, Tensor | None] | None
    ) -> tuple[dict[str, Tensor | None], Tensor | None]:
        """Return the masks by layer type (as far as they are known) and the 2D mask over past and segment."""
        if isinstance(attention_mask, dict):
            return {"dsf_state": None, **attention_mask}, None
        if attention_mask is not None and attention_mask.ndim != 2:
            only_attention = set(self.layer_types) <= {"full_attention"}
            if attention_mask.ndim != 4 or not only_attention:
                raise ValueError(
                    f"attention_mask has {attention_mask.ndim} dimensions: give a padding mask (batch, length); "
                    "recurrent layers and short convolutions cannot follow an arbitrary attention pattern."
                )
            return {"dsf_state": None, "full_attention": attention_mask}, None
        return {"dsf_state": recurrent_mask(self.config, hidden, attention_mask)}, attention_mask

    def _add_causal_masks(
        self,
        masks: dict[str, Tensor | None],
        hidden: Tensor,
        full_mask: Tensor | None,
        cache: Cache | None,
        layout: TokenLayout,
    ) -> None:
        for layer_type in sorted(set(self._layer_types_run()) & set(ATTENTION_LAYER_TYPES)):
            if layer_type in masks:
                continue
            if layout.documents is not None and cache is not None:
                raise ValueError(
                    "softmax attention cannot cache packed documents: pass use_cache=False, or one document a row."
                )
            same_document = packed_sequence_mask_function(layout.documents) if layout.documents is not None else None
            masks[layer_type] = _causal_mask(
                layer_type,
                self.config,
                inputs_embeds=hidden,
                attention_mask=full_mask,
                position_ids=None,
                and_mask_function=same_document,
                **{CACHE_NAME: cache},
            )

    def _varlen_keywords(self, layout: TokenLayout, full_mask: Tensor | None) -> dict[str, Any]:
        """Return how FlashAttention is told of documents: it takes no mask function, only offsets of flattened rows."""
        # Other backends have the documents in their masks, and what no backend can do is refused before it goes wrong.
        if "flash" not in self.config._attn_implementation:  # trf-ignore: TRF051
            return {}
        if full_mask is not None and not bool((full_mask != 0).all()):
            raise ValueError(
                "FlashAttention takes packed documents or pads, not both: leave the pads out, or use "
                'attn_implementation="sdpa".'
            )
        offsets, longest = layout.document_offsets(), layout.documents.shape[1]
        return {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}


class DSFForCausalLM(DSFPreTrainedModel, DSFGenerationMixin):
    """Language model: a `DSFModel` and a linear head over the vocabulary.

    Raises:
        ValueError: the configuration is that of a model that looks ahead (bidirectional=True).
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}
    _pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]]] = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: DSFConfig) -> None:
        require(
            not config.looks_ahead,
            "bidirectional",
            True,
            "a causal language model must not see later tokens, and cannot generate if it does; use the sequence or "
            "token classification model, or bidirectional=False.",
        )
        super().__init__(config)
        self.model = base_model_class(type(self))(config)
        self.vocab_size = config.vocab_size
        self.logit_softcap = config.logit_softcap
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_function = causal_lm_loss
        if config.label_alignment == "same":
            # By the name Trainer tells whether the first label of a row counts in num_items_in_batch.
            self.loss_type = "ForTokenClassification"
        self.post_init()

    @staticmethod
    def create_masks_for_generate(
        config: DSFConfig, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> dict[str, Tensor | None]:
        """Return the masks of all layer types, which `generate` prepares ahead of a compiled decoding step.

        Args:
            config: the model's configuration.
            inputs_embeds: (b, t, any), for sizes only.
            attention_mask: padding mask of past and segment (b, past + t), or None.
            kwargs: the cache, and what masks of other models need.
        """
        inputs = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            CACHE_NAME: kwargs[CACHE_NAME],
        }
        attending = set(config.layer_types) & set(ATTENTION_LAYER_TYPES)
        masks = {layer_type: _causal_mask(layer_type, config, **inputs) for layer_type in attending}
        return masks | {"dsf_state": recurrent_mask(config, inputs_embeds, attention_mask)}

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss where labels are given.

        Arguments that `DSFModel.forward` has too are explained there. Further ones:

        * labels: (b, t), -100 where nothing is scored. Pads are never scored, and predict nothing.
        * logits_to_keep: number of last positions (0: all), their indices, or a boolean mask (b, t) of single outputs,
          with which logits are (n, v); only these are scored.
        * shift_labels: (b, t) labels that stand where they are predicted, as sequence parallelism makes them; they take
          the place of labels, which may be given too.
        * label_alignment: "next" scores the output at t against labels[t + 1], "same" against labels[t]; default: the
          configuration's.
        * num_items_in_batch: the number of labels over accumulated batches, to weight the loss by tokens.

        Returns:
            loss (), logits (b, t, v) and, if asked for, the cache and hidden states.

        Raises:
            ValueError: an unknown label_alignment, or what `DSFModel.forward` raises.
        """
        # No parameter: Trainer takes every parameter with "label" in its name for labels that a batch must hold.
        alignment, shift_labels = kwargs.pop("label_alignment", None), kwargs.pop("shift_labels", None)
        if shift_labels is not None:
            labels, alignment = shift_labels, "same"
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **{CACHE_NAME: resolve_cache(past_key_values, cache)},
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        if (cap := self.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            mask = recurrent_mask(self.config, labels, attention_mask) if isinstance(attention_mask, Tensor) else None
            targets = aligned_targets(labels, alignment or self.config.label_alignment, mask)
            targets = slice_logits_to_keep(targets[..., None], logits_to_keep)[..., 0]
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, shift_labels=targets, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def _get_name(self) -> str:
        """Return the class's name, marked where labels are aligned: by it Trainer shifts them for smoothing."""
        name = super()._get_name()
        return name if self.config.label_alignment == "next" else f"{name}[{self.config.label_alignment}]"


class DSFForSequenceClassification(DSFPreTrainedModel):
    """Classifier or regressor over whole sequences: a linear head on the last real token."""

    accepts_loss_kwargs = False
    """Tells Trainer that the loss is a mean over the batch, to be divided by the number of accumulated batches."""

    def __init__(self, config: DSFConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = base_model_class(type(self))(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_values: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Compute one row of logits a sequence, and the loss where labels are given.

        Arguments that `DSFModel.forward` has too are explained there. Labels are (b,) classes, or (b,) / (b, labels)
        floats for regression, or (b, labels) for several labels at once. The loss is a mean over rows:
        num_items_in_batch has no effect.

        Returns:
            loss (), logits (b, labels) and, if asked for, the cache and hidden states.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            inputs_values=inputs_values,
            return_dict=True,
            **{CACHE_NAME: resolve_cache(past_key_values, cache)},
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        last = self._last_real_token(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        loss = None
        if labels is not None:
            scored = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = self.loss_function(logits=scored, labels=labels, pooled_logits=scored, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def _last_real_token(self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the slot of each row's last real token: by the mask, else by pad_token_id, else the last slot."""
        batch, length = hidden.shape[:2]
        if attention_mask is not None and attention_mask.ndim == 2:
            real = attention_mask[:, -length:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        else:
            return torch.full((batch,), length - 1, device=hidden.device)
        slots = torch.arange(length, device=hidden.device)
        return (slots * real).amax(dim=1)


class DSFForTokenClassification(DSFPreTrainedModel):
    """Classifier of every token: a linear head on each hidden state."""

    def __init__(self, config: DSFConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = base_model_class(type(self))(config)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Compute logits for every token, and the loss where labels (b, t) are given.

        Arguments are those of `DSFModel.forward`, and num_items_in_batch, as for `DSFForCausalLM`; the state is not
        returned, so that use_cache has no effect.

        Returns:
            loss (), logits (b, t, labels) and, if asked for, hidden states.
        """
        outputs = self.model(input_ids=input_ids, return_dict=True, **kwargs)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, config=self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def base_model_class(head_class: type[DSFPreTrainedModel]) -> type[DSFModel]:
    """Return the base model class that belongs to a head class: the one registered for its configuration class."""
    return get_architecture(head_class.config_class.model_type.removeprefix("dsf_")).model_class


def _without_past(cache: Cache | None) -> bool:
    """Return True, or raise where a cache holds tokens: Φ is that of a whole sequence."""
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"output_attentions=True with a cache that holds {int(cache.get_seq_length())} tokens: the state has "
            "merged them, so that no weight of theirs is left; pass the whole sequence without a cache."
        )
    return True


def _check_keywords(kwargs: dict[str, Any]) -> None:
    for name in kwargs:
        if name not in _FORWARD_KEYWORDS:
            hint = did_you_mean(name, _HINTED_KEYWORDS) or "leave it out."
            if name in _HINTED_KEYWORDS:
                hint = "only a model with another head has it."
            raise TypeError(f"forward got an unknown keyword {name!r}; {hint}")
    if kwargs.get("output_router_logits"):
        raise ValueError("output_router_logits=True: no architecture here has routers; leave output_router_logits out.")
    if kwargs.get("is_causal") is False:
        raise ValueError(
            "is_causal=False: the configuration says whether outputs depend on later tokens; leave is_causal out."
        )
