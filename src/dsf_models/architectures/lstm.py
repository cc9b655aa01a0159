"""LSTM: the nonlinear control. Its state is no linear function of the past state, so it has no (Λ, B, C, D).

    c_i = σ(f_i) * c_{i-1} + σ(k_i) * tanh(g_i)        h_i = σ(o_i) * tanh(c_i)        y_i = h_i
    (k_i, f_i, g_i, o_i) = W u_i + b_W + R h_{i-1} + b_R

It is torch's fused LSTM of one layer, in the block that all architectures share.

Sources: Hochreiter and Schmidhuber 1997; Sieber et al. 2024 (arXiv 2405.15731), whose qLSTM drops R and the tanhs.
"""

from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import (
    Architecture,
    CacheShapes,
    DSFConfig,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFMixer,
    DSFModel,
    DSFStateLayer,
    TokenLayout,
    register_architecture,
)
from ..engine import Flops, full_precision, scan_steps
from ..errors import NotADynamicalSystemError

__all__ = [
    "LSTMConfig",
    "LSTMForCausalLM",
    "LSTMForSequenceClassification",
    "LSTMForTokenClassification",
    "LSTMMixer",
    "LSTMModel",
]

SATURATED = 1e4
"""Pre-activation at which a gate is exactly 0 or 1, whatever is added to it."""


@strict
class LSTMConfig(DSFConfig):
    """Configuration of the LSTM; see `DSFConfig` for the shared fields.

    The inner width expand · hidden_size is the number of cells; there are no heads, and one state (c) a channel.
    """

    model_type: ClassVar[str] = "dsf_lstm"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1, "state_size": 1}

    num_heads: int = 1
    """No heads: 1."""
    state_size: int = 1
    """States per channel: 1, the cell c."""


class LSTMMixer(DSFMixer):
    """Runs torch's fused LSTM over the normed hidden states; h and c are the cached state."""

    shares_transfer_matrix: ClassVar[bool] = False
    no_interventions: ClassVar[str | None] = (
        "an LSTM has no Λ: its state is no linear function of the past state, so that there is nothing to change"
    )

    def __init__(self, config: LSTMConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        rows = 4 * config.inner_size
        self.weight_ih = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, config.inner_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))

    @classmethod
    def conv_width(cls, config: LSTMConfig) -> int:
        """Channels of the input itself."""
        return config.hidden_size

    @classmethod
    def cache_shapes(cls, config: LSTMConfig, length: int) -> CacheShapes:
        """Return h and c (2, d), and the convolution's window."""
        return CacheShapes([(2, config.inner_size)], cls.window_shapes(config))

    def lead_in(self, hidden: Tensor, layout: TokenLayout) -> None:
        """Convolve: the projections belong to the core, which is torch's."""
        self.convolve(hidden, layout)

    @classmethod
    def core_flops(cls, config: LSTMConfig, length: int, context: int = 0) -> Flops:
        """Return what W u_i, R h_{i-1} and the gates cost."""
        d = config.inner_size
        return Flops(matmul=8 * d * (config.hidden_size + d), elementwise=17 * d) * length

    def init_parameters(self) -> None:
        """Draw W and R as torch does, uniformly within 1 / √d; biases are 0, that of the forget gates 1.

        There is no spectrum to intend; forget gates near σ(1) = 0.73 give the cells a memory of a few tokens at first.
        """
        bound = self.inner_size**-0.5
        init.uniform_(self.weight_ih, -bound, bound)
        init.uniform_(self.weight_hh, -bound, bound)
        init.zeros_(self.bias_hh)
        init.copy_(self.bias_ih, _by_gate(self.bias_ih, 0.0, 1.0)[:, 0])

    def mix(self, gathered: Tensor, layout: TokenLayout, layer: DSFStateLayer | None = None) -> Tensor:
        """Return h_i of gathered hidden states (b, t, hidden_size): (b, t, d); reads and writes the cached state."""
        inputs = self.convolve(gathered, layout, layer)
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        weights = [x.to(dtype) for x in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)]
        state = None if layer is None else layer.read_state()
        if state is None:
            state = inputs.new_zeros(inputs.shape[0], 2, self.inner_size, dtype=dtype)
        with full_precision(inputs.device.type):
            y, state = evaluate_lstm(inputs.to(dtype), state, weights, layout)
        if layer is not None:
            layer.write_state(state, gathered.shape[1])
        return y.to(gathered.dtype)

    def system(self, conv_out: Tensor, rest: Any) -> NoReturn:
        """Raise: an LSTM has no system.

        Raises:
            NotADynamicalSystemError: always.
        """
        self._refuse()

    def observed_system(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: an LSTM has no system.

        Raises:
            NotADynamicalSystemError: always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotADynamicalSystemError(
            f"layer {self.layer_idx} is an LSTM: its gates depend on h_{{i-1}}, so that h_i = Λ_i h_{{i-1}} + B_i u_i "
            "holds for no Λ_i, B_i of the input. Ask a layer of another architecture."
        )


# ---- torch's fused kernel, with documents and pads ------------------------------------------------------------------


def evaluate_lstm(inputs: Tensor, state: Tensor, weights: list[Tensor], layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Run the LSTM over gathered tokens: fresh at document starts, its state that at the last real token.

    Args:
        inputs: (b, t, e).
        state: h and c, (b, 2, d).
        weights: W (4d, e), R (4d, d), b_W and b_R (4d,), in the dtype of inputs and state.
        layout: numbers of real tokens, and document starts.

    Returns:
        h_i (b, t, d), and h and c at each row's last real token (b, 2, d).
    """
    if layout.lengths is None and layout.starts is None:
        return _fused_lstm(inputs, state, *weights)
    batch, length, _ = inputs.shape
    steps = torch.arange(length, device=inputs.device)
    real = torch.ones(batch, length, dtype=torch.bool, device=inputs.device)
    if layout.lengths is not None:
        real = steps < layout.lengths[:, None]
    starts = torch.zeros_like(real) if layout.starts is None else layout.starts & real
    evaluate = evaluate_spread if torch.compiler.is_compiling() else evaluate_split
    return evaluate(inputs, state, weights, real, starts)


def evaluate_split(
    inputs: Tensor, state: Tensor, weights: list[Tensor], real: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate with every document in a row of its own, without its pads: as torch's packed sequences.

    Args:
        inputs: (b, t, e).
        state: h and c, (b, 2, d).
        weights: W, R, b_W and b_R.
        real: (b, t) True at real tokens, which come first in each row.
        starts: (b, t) True where a document starts, at real tokens only.
    """
    steps = torch.arange(inputs.shape[1], device=inputs.device)
    opens = starts | (steps == 0)
    document = opens.flatten().long().cumsum(0).view_as(opens) - 1
    position = steps - torch.where(opens, steps, 0).cummax(1).values
    begin = state.new_zeros(int(document[-1, -1]) + 1, *state.shape[1:])
    begin = begin.index_copy(0, document[:, 0], state.masked_fill(starts[:, :1, None], 0.0))
    # The kernel takes the documents longest first, and their tokens position by position.
    lengths = torch.bincount(document[real], minlength=begin.shape[0])
    longest_first = lengths.argsort(descending=True, stable=True)
    order = (position * begin.shape[0] + longest_first.argsort()[document])[real].argsort()
    running = longest_first[: int((lengths > 0).sum())]
    if running.numel() == 0:
        return state.new_zeros(*real.shape, state.shape[2]), state
    h, c = (x[None].contiguous() for x in begin[running].unbind(1))
    sizes = torch.bincount(position[real]).cpu()
    y, h, c = torch.lstm(inputs[real][order], sizes, (h, c), weights, True, 1, 0.0, False, False)
    last = begin.index_copy(0, running, torch.stack([h[0], c[0]], dim=1))
    y = state.new_zeros(*real.shape, state.shape[2]).index_put((real,), y[order.argsort()])
    return y, last[document[:, -1]]


def evaluate_spread(
    inputs: Tensor, state: Tensor, weights: list[Tensor], real: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Evaluate as `evaluate_split` does, in shapes that do not depend on the number of documents: for compiled graphs.

    A step of its own stands before each document, at which the input and forget gates are shut (c = 0, so h = 0). At
    pads the forget gate is open and the input gate shut (c stays as it is).
    """
    batch, length, width = inputs.shape
    slots = torch.arange(length, device=inputs.device) + starts.cumsum(1)
    empty = torch.zeros(batch, 2 * length, dtype=torch.bool, device=inputs.device)
    resets = empty.scatter(1, (slots - 1).clamp(min=0), starts)
    pads = ~(empty.scatter(1, slots, real) | resets)
    spread = inputs.new_zeros(batch, 2 * length, width)
    spread = spread.scatter(1, slots[..., None].expand_as(inputs), inputs)
    flags = torch.stack([pads, resets], dim=-1).to(inputs.dtype)
    gates = [_by_gate(weights[0], -SATURATED, f) for f in (SATURATED, -SATURATED)]
    W = torch.cat([weights[0], *gates], dim=1)
    y, last = _fused_lstm(torch.cat([spread, flags], dim=-1), state, W, *weights[1:])
    y = y.gather(1, slots[..., None].expand(-1, -1, y.shape[-1]))
    lengths = real.sum(1)
    final = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, -1, y.shape[-1])
    h = torch.where((lengths > 0)[:, None], y.gather(1, final)[:, 0], state[:, 0])
    return y, torch.stack([h, last[:, 1]], dim=1)


def _by_gate(like: Tensor, k: float, f: float) -> Tensor:
    """Return a column (4d, 1): k at the input gates, f at the forget gates, 0 at g and the output gates."""
    values = torch.tensor([k, f, 0.0, 0.0], dtype=like.dtype, device=like.device)
    return values.repeat_interleave(like.shape[0] // 4)[:, None]


def _fused_lstm(
    inputs: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Return h_i (b, t, d) and the last h and c (b, 2, d), by torch's kernel."""
    if torch.compiler.is_exporting():
        return _exported_lstm(inputs, state, weight_ih, weight_hh, bias_ih, bias_hh)
    kernel = _compiled_lstm if torch.compiler.is_compiling() else _run_lstm
    return kernel(inputs, state, weight_ih, weight_hh, bias_ih, bias_hh)


def _run_lstm(inputs: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    h, c = (x[None].contiguous() for x in state.unbind(1))
    y, h, c = torch.lstm(inputs, (h, c), weights, True, 1, 0.0, False, False, True)
    return y, torch.stack([h[0], c[0]], dim=1)


def _exported_lstm(
    inputs: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the same step by step: a graph that leaves this process cannot count on operators of this package."""
    driven = F.linear(inputs, weight_ih, bias_ih + bias_hh)
    if not torch.is_grad_enabled():
        driven, state, weight_hh = driven.detach(), state.detach(), weight_hh.detach()

    def step(state: Tensor, driven: list[Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state.unbind(1)
        k, f, g, o = (driven[0] + h @ weight_hh.T).chunk(4, dim=-1)
        c = f.sigmoid() * c + k.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return torch.stack([h, c], dim=1), h

    return scan_steps(step, state, [driven])


# ---- under torch.compile --------------------------------------------------------------------------------------------

# Compilers unroll torch's kernel over time, or fail in its backward pass. As an operator of its own it is left whole.


@torch.library.custom_op("dsf_models::lstm", mutates_args=())
def _compiled_lstm(
    inputs: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    y, last = _run_lstm(inputs, state, weight_ih, weight_hh, bias_ih, bias_hh)
    return y.contiguous(), last  # torch's kernel lays y out by time, on some devices


@_compiled_lstm.register_fake
def _(inputs: Tensor, state: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.new_empty(*inputs.shape[:2], state.shape[2]), state.new_empty(state.shape)


@torch.library.custom_op("dsf_models::lstm_backward", mutates_args=())
def _compiled_lstm_backward(grad_y: Tensor, grad_state: Tensor, arguments: list[Tensor]) -> list[Tensor]:
    """Backpropagation through time: the gradients of all arguments of `_compiled_lstm`, from gates computed again."""
    inputs, _, weight_ih, weight_hh, _, _ = arguments
    steps = _gates(*arguments)
    grad_h, grad_c = grad_state.unbind(1)
    rows: list[Tensor] = []
    for (k, f, g, o, c_before, c, _), grad in zip(reversed(steps), reversed(grad_y.unbind(1)), strict=True):
        grad_h, tanh_c = grad_h + grad, c.tanh()
        grad_c = grad_c + grad_h * o * (1 - tanh_c**2)
        by_gate = [grad_c * g * k * (1 - k), grad_c * c_before * f * (1 - f), grad_c * k * (1 - g**2)]
        rows.append(torch.cat([*by_gate, grad_h * tanh_c * o * (1 - o)], dim=-1))
        grad_h, grad_c = rows[-1] @ weight_hh, grad_c * f
    grad_gates = torch.stack(rows[::-1], dim=1)
    h_before = torch.stack([step[-1] for step in steps], dim=1)
    grad_bias = grad_gates.sum((0, 1))
    return [
        grad_gates @ weight_ih,
        torch.stack([grad_h, grad_c], dim=1),
        grad_gates.flatten(0, 1).T @ inputs.flatten(0, 1),
        grad_gates.flatten(0, 1).T @ h_before.flatten(0, 1),
        grad_bias,
        grad_bias.clone(),
    ]


def _gates(
    inputs: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> list[tuple[Tensor, ...]]:
    """Return σ(k), σ(f), tanh(g), σ(o), c_{i-1}, c_i and h_{i-1} of every step."""
    steps, (h, c) = [], state.unbind(1)
    for driven in F.linear(inputs, weight_ih, bias_ih + bias_hh).unbind(1):
        k, f, g, o = (driven + h @ weight_hh.T).chunk(4, dim=-1)
        k, f, g, o = k.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_before, c = c, f * c + k * g
        steps.append((k, f, g, o, c_before, c, h))
        h = o * c.tanh()
    return steps


@_compiled_lstm_backward.register_fake
def _(grad_y: Tensor, grad_state: Tensor, arguments: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in arguments]


def _save_arguments(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor, ...]:
    return tuple(_compiled_lstm_backward(grad_y, grad_state, list(ctx.saved_tensors)))


_compiled_lstm.register_autograd(_backward, setup_context=_save_arguments)


# ---- Hugging Face classes -------------------------------------------------------------------------------------------


class LSTMModel(DSFModel):
    """LSTM without a head."""

    config: LSTMConfig


class LSTMForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """LSTM language model."""

    config: LSTMConfig


class LSTMForSequenceClassification(DSFForSequenceClassification):
    """LSTM sequence classifier."""

    config: LSTMConfig


class LSTMForTokenClassification(DSFForTokenClassification):
    """LSTM token classifier."""

    config: LSTMConfig


register_architecture(
    Architecture(
        config_class=LSTMConfig,
        mixer_class=LSTMMixer,
        model_class=LSTMModel,
        causal_lm_class=LSTMForCausalLM,
        sequence_classification_class=LSTMForSequenceClassification,
        token_classification_class=LSTMForTokenClassification,
        transition="none: the gates depend on h_{i-1}, so that the state is not linear in the past state",
        input_matrix="none",
        output_matrix="none",
        feed_through="none",
        state_size="2·d",
    )
)
