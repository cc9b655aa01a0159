"""qLSTM: the LSTM without what makes it nonlinear in its state, and its variant with a reversed forget gate.

    Λ_i = diag(σ(f_i))        B_i = diag(σ(i_i)) W_u        C_i = diag(σ(o_i))        D = 0        f, i, o = W u + b
    reversed sigmoid: Λ_i = diag(σ(-f_i)^a) = diag(exp(-a softplus(f_i))), the transition of S6 and SSD, a learned

The default is the released block (convolution over x, gates read from its output, GELU gate). `QLSTMConfig.minimal` is
the strict form of the DSF paper: gates read from the mixer's input, nothing around the system.

Source: Sieber et al. 2024 (arXiv 2405.15731).
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import (
    Architecture,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFMixer,
    DSFModel,
    register_architecture,
)
from ..engine import compute_dtype
from ..errors import require
from ..system import DSFSystem
from ..transitions import ElementwiseDecay

__all__ = [
    "QLSTMConfig",
    "QLSTMForCausalLM",
    "QLSTMForSequenceClassification",
    "QLSTMForTokenClassification",
    "QLSTMMixer",
    "QLSTMModel",
]


@strict
class QLSTMConfig(DSFConfig):
    """Configuration of qLSTM; see `DSFConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_qlstm"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1, "state_size": 1}

    num_heads: int = 1
    """Always 1: every channel has its own λ and its own gates, and nothing is shared by heads."""
    state_size: int = 1
    """Always 1: each channel has one state."""
    expand: int | float = 2
    """Inner width over hidden_size."""
    conv_kernel: int = 4
    """Taps of the short causal convolution over x; 0 for none."""
    gate: str = "gelu"
    """Activation of the output gate."""
    gates_from: Literal["inner", "hidden"] = "inner"
    """What f, i, o are projections of: the inner input x behind its convolution, or the mixer's own input."""
    reversed_sigmoid: bool = False
    """Whether λ = σ(-f)^a instead of σ(f)."""
    learn_exponent: bool | None = None
    """Whether the exponent a >= 0 of the reversed sigmoid is learned (from 1) or stays 1. Default: reversed_sigmoid."""

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields."""
        super().fill_defaults()
        if self.learn_exponent is None:
            self.learn_exponent = self.reversed_sigmoid

    @classmethod
    def minimal(cls, **fields: Any) -> "QLSTMConfig":
        """Return the strict form of the DSF paper: gates read from the mixer's input, nothing around the system."""
        return cls(**{"expand": 1, "conv_kernel": 0, "gate": "none", "gates_from": "hidden", **fields})

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        require(
            self.reversed_sigmoid or not self.learn_exponent,
            "learn_exponent",
            self.learn_exponent,
            "only the reversed sigmoid has an exponent: set reversed_sigmoid=True, or leave learn_exponent out.",
        )


class QLSTMMixer(DSFMixer):
    """Maps u to x by one projection and a short convolution, and to the gates f, i, o; Λ = σ(f) or σ(-f)^a."""

    shares_transfer_matrix: ClassVar[bool] = False

    def __init__(self, config: QLSTMConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gates_from = config.gates_from
        self.reversed_sigmoid = config.reversed_sigmoid
        self.in_proj = nn.Linear(config.hidden_size, config.inner_size, bias=config.use_bias)
        source = config.inner_size if config.gates_from == "inner" else config.hidden_size
        self.gates_proj = nn.Linear(source, 3 * config.inner_size)
        self.alpha = nn.Parameter(torch.empty(1)) if config.learn_exponent else None
        self.transition_parameters = ("alpha",) if config.learn_exponent else ()

    @classmethod
    def conv_width(cls, config: QLSTMConfig) -> int:
        """Channels of x."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Set the exponent to 1.

        Intended spectrum at step 0: f is near 0, since the gates' weights are small and their biases 0, so that λ is
        near 1/2 with either sigmoid.
        """
        if self.alpha is not None:
            init.ones_(self.alpha)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x for the convolution, and the raw gates (b, t, 3d) where they are read from the mixer's input."""
        return self.in_proj(hidden), self.gates_proj(hidden) if self.gates_from == "hidden" else None

    def system(self, conv_out: Tensor, rest: Tensor | None) -> DSFSystem:
        """Return Λ_i = diag(λ(f_i)), B_i = diag(σ(i_i)) and C_i = diag(σ(o_i)) at x_i."""
        gates = self.gates_proj(conv_out) if rest is None else rest
        forget, write, read = gates.unflatten(-1, (3, 1, self.head_dim)).unbind(2)
        one = conv_out.new_ones(1, 1, 1, 1)
        return DSFSystem(
            u=conv_out.unflatten(-1, (1, self.head_dim)),
            B=one,
            C=one,
            transition=ElementwiseDecay(self.decay(forget.to(compute_dtype(forget.dtype)))),
            input_gain=write.sigmoid(),
            output_gain=read.sigmoid(),
        )

    def decay(self, forget: Tensor) -> Tensor:
        """Return λ = σ(f), or σ(-f)^a with a = relu(alpha), in f's shape."""
        if not self.reversed_sigmoid:
            return forget.sigmoid()
        if self.alpha is None:
            return (-forget).sigmoid()
        return (self.alpha.relu() * F.logsigmoid(-forget)).exp()


class QLSTMModel(DSFModel):
    """qLSTM without a head."""

    config: QLSTMConfig


class QLSTMForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """qLSTM language model."""

    config: QLSTMConfig


class QLSTMForSequenceClassification(DSFForSequenceClassification):
    """qLSTM sequence classifier."""

    config: QLSTMConfig


class QLSTMForTokenClassification(DSFForTokenClassification):
    """qLSTM token classifier."""

    config: QLSTMConfig


register_architecture(
    Architecture(
        config_class=QLSTMConfig,
        mixer_class=QLSTMMixer,
        model_class=QLSTMModel,
        causal_lm_class=QLSTMForCausalLM,
        sequence_classification_class=QLSTMForSequenceClassification,
        token_classification_class=QLSTMForTokenClassification,
        transition="diag(σ(f_i)), f_i = W_f u_i + b_f; reversed sigmoid: diag(σ(-f_i)^a), a = relu(alpha)",
        input_matrix="diag(σ(W_i u_i + b_i))",
        output_matrix="diag(σ(W_o u_i + b_o))",
        state_size="d",
    )
)
