"""The backbone: everything that architectures share, knowing none of them by name."""

from .cache import DSFAttentionLayer, DSFSlidingLayer, DSFStateLayer, DSFStaticAttentionLayer, checked_layer
from .configuration import DSFConfig, bounds
from .generation import DSFGenerationMixin
from .inspection import in_evaluation
from .layers import activation_function
from .layout import TokenLayout
from .lora import lora_config
from .mixer import CacheShapes, DSFMixer, Intervention, init_log_uniform, init_time_step_bias
from .modeling import (
    AttentionCapabilities,
    DSFBlock,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFModel,
    DSFPreTrainedModel,
)
from .positions import rotate
from .recall import RecallConstructionMixin
from .registry import Architecture, get_architecture, list_architectures, register_architecture
from .time_invariant import TimeInvariantConfig, TimeInvariantMixer

__all__ = [
    "Architecture",
    "AttentionCapabilities",
    "CacheShapes",
    "DSFAttentionLayer",
    "DSFBlock",
    "DSFConfig",
    "DSFForCausalLM",
    "DSFForSequenceClassification",
    "DSFForTokenClassification",
    "DSFGenerationMixin",
    "DSFMixer",
    "DSFModel",
    "DSFPreTrainedModel",
    "DSFSlidingLayer",
    "DSFStateLayer",
    "DSFStaticAttentionLayer",
    "Intervention",
    "RecallConstructionMixin",
    "TimeInvariantConfig",
    "TimeInvariantMixer",
    "TokenLayout",
    "activation_function",
    "bounds",
    "checked_layer",
    "get_architecture",
    "in_evaluation",
    "init_log_uniform",
    "init_time_step_bias",
    "list_architectures",
    "lora_config",
    "register_architecture",
    "rotate",
]
