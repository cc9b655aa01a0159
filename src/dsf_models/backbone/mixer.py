"""DSFMixer: from hidden states to a system and back. Subclasses choose (Λ, B, C, D); everything else is here.

    hidden -> project -> short convolution -> system -> engine -> gate, norm -> output projection

Letters: b batch, t time, h heads, p head width, d inner width h·p.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache
from transformers import initialization as init

from .. import engine
from ..filters import FilterSystem
from ..system import DSFSystem, SoftmaxSystem
from .cache import checked_layer
from .configuration import DSFConfig
from .layers import (
    GroupRMSNorm,
    ShortConvolution,
    activation_function,
    gathered_plan,
    residual_std,
    segment_length,
)
from .layout import TokenLayout

__all__ = ["CacheShapes", "DSFMixer", "Intervention"]

Intervention = Callable[[DSFSystem | FilterSystem], DSFSystem | FilterSystem]
"""Returns the system that is evaluated in place of the one that a mixer made."""


class CacheShapes(NamedTuple):
    """Shapes of what the cache holds of one layer for one sequence, without the batch dimension."""

    states: list[tuple[int, ...]]
    """Recurrent states, held in at least float32."""
    activations: list[tuple[int, ...]]
    """Convolution window, keys and values, held in the model's dtype."""


class _Carry:
    """Window and state between the segments of one forward pass: a cache layer through which gradients flow."""

    def __init__(self, layer: Any = None) -> None:
        self.window = layer.read_window() if layer is not None else None
        self.state = layer.read_state() if layer is not None else None

    def read_window(self) -> Tensor | None:
        return self.window

    def write_window(self, window: Tensor) -> None:
        self.window = window

    def read_state(self) -> Tensor | None:
        return self.state

    def write_state(self, state: Tensor, num_tokens: int) -> None:
        self.state = state

    def store(self, layer: Any, num_tokens: int) -> None:
        """Write what is left at the end to a cache layer."""
        if self.window is not None:
            layer.write_window(self.window)
        layer.write_state(self.state, num_tokens)


class DSFMixer(nn.Module):
    """Sequence mixer given by its system.

    A subclass implements `project` (hidden -> what the convolution sees, and the rest), `system` (the parametrisation
    of Λ, B, C, D) and `init_parameters` (with the intended spectrum in its docstring), and sets `conv_width`.
    """

    block_attribute: ClassVar[str] = "mixer"
    """Name of the mixer in its block; softmax attention uses another, so that parallel plans can tell them apart."""
    conv_activation: ClassVar[str | None] = None
    """Activation after the short convolution."""
    streams: bool = True
    """Whether a long sequence may be mixed in segments: not where outputs depend on later tokens."""
    norm_before_gate: ClassVar[bool] = False
    """Whether the output norm comes before the gate."""
    uses_positions: ClassVar[bool] = False
    """Whether the mixer needs the layout's positions, so that the model counts them where they are not given."""
    transition_parameters: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters of Λ and their like: kept in float32, never decayed, saved whole by adapters."""
    shares_transfer_matrix: ClassVar[bool] = True
    """Whether the channels of a head have one Φ (b, h, t, t), which output_attentions then returns."""
    time_invariant: ClassVar[bool] = False
    """Whether Λ, B, C and D are the same at every step (`TimeInvariantMixer`), so that the mixer is a filter."""
    released_zeros: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that initialization="as_released" sets to zero: biases of projections in that code."""
    no_interventions: ClassVar[str | None] = None
    """Why the system cannot be changed on its way to the engine; None where it can."""

    def __init__(self, config: DSFConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        # Sizes are read once: attribute access on a configuration costs microseconds, and decoding counts them.
        self.num_heads, self.head_dim, self.state_size = config.num_heads, config.head_dim, config.state_size
        self.inner_size = config.inner_size
        self.intervention: Intervention | None = None
        self.conv = None
        if config.conv_kernel:
            self.conv = ShortConvolution(
                self.conv_width(config), config.conv_kernel, config.conv_bias, self.conv_activation
            )
        self.gate_proj = None
        if config.gate != "none":
            self.gate_proj = nn.Linear(config.hidden_size, config.inner_size, bias=config.use_bias)
            self.gate_activation = activation_function(config.gate)
        self.output_norm = None
        if config.output_norm == "rmsnorm":
            self.output_norm = GroupRMSNorm(config.inner_size, self.norm_groups(config), config.norm_eps)
        self.out_proj = nn.Linear(config.inner_size, config.hidden_size, bias=config.use_bias)

    # ---- what an architecture chooses ------------------------------------------------------------------------------

    @classmethod
    def conv_width(cls, config: DSFConfig) -> int:
        """Number of channels that the short convolution sees."""
        raise NotImplementedError(f"{cls.__name__} must say how many channels its convolution sees.")

    @classmethod
    def norm_groups(cls, config: DSFConfig) -> int:
        """Groups of the output norm."""
        return 1

    def project(self, hidden: Tensor) -> tuple[Tensor, Any]:
        """Project hidden (b, t, hidden_size) to the convolution's input (b, t, conv_width) and the rest."""
        raise NotImplementedError(f"{type(self).__name__} must implement project(hidden) -> (conv_in, rest).")

    def system(self, conv_out: Tensor, rest: Any) -> DSFSystem:
        """Return the system (Λ, B, C, D) at these inputs."""
        raise NotImplementedError(f"{type(self).__name__} must implement system(conv_out, rest) -> DSFSystem.")

    def init_parameters(self) -> None:
        """Initialise the parameters of Λ and whatever is not a projection, convolution or norm."""

    def init_as_released(self) -> None:
        """Draw every projection anew, out_proj with std initializer_range / √(2 · num_hidden_layers); biases zero.

        Source: the code released with Sieber et al. 2024, whose model-wide initialisation overrides that of the mixers.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=self.config.initializer_range)
                if module.bias is not None:
                    init.zeros_(module.bias)
        init.normal_(self.out_proj.weight, std=residual_std(self.config))
        for name in self.released_zeros:
            init.zeros_(getattr(self, name))

    def tp_plan(self) -> dict[str, str]:
        """Return the tensor-parallel style of each projection, by name.

        Rows are sharded and outputs gathered, so that convolution, Λ and norm see all channels on every rank.
        """
        return gathered_plan(self)

    # ---- what it costs ---------------------------------------------------------------------------------------------

    @classmethod
    def sketch(cls, config: DSFConfig) -> DSFSystem:
        """Return the system of one token, without data (on the meta device): its sizes and the structure of its Λ."""
        with torch.device("meta"):
            mixer = cls(config, layer_idx=0)
            return mixer.observed_system(torch.empty(1, 1, config.hidden_size), mixer._one_token())

    @staticmethod
    def _one_token() -> TokenLayout:
        return TokenLayout(position_ids=torch.empty(1, 1, dtype=torch.long))

    @classmethod
    def cache_shapes(cls, config: DSFConfig, length: int) -> CacheShapes:
        """Return what the cache holds of a layer behind `length` tokens: the system's state and the window."""
        return CacheShapes([cls.sketch(config).state_shape[1:]], cls.window_shapes(config))

    @classmethod
    def window_shapes(cls, config: DSFConfig) -> list[tuple[int, ...]]:
        """Return the shape (K - 1, width) of the convolution's window, where there is one."""
        return [(config.conv_kernel - 1, cls.conv_width(config))] if config.conv_kernel else []

    @classmethod
    def token_flops(cls, config: DSFConfig) -> engine.Flops:
        """Return what a layer costs for each token outside its core: what leads to the system and away from it."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            mixer = cls(config, layer_idx=0)
            hidden = torch.empty(1, 1, config.hidden_size)
            mixer.lead_in(hidden, mixer._one_token())
            mixer.finish(torch.empty(1, 1, mixer.inner_size), hidden)
        taps = 0 if mixer.conv is None else mixer.conv.weight.numel()
        return engine.Flops(matmul=counter.get_total_flops(), elementwise=2 * taps)

    def lead_in(self, hidden: Tensor, layout: TokenLayout) -> None:
        """Do, for each token, what leads to the core of the layer."""
        self.observed_system(hidden, layout)

    @classmethod
    def core_flops(cls, config: DSFConfig, length: int, context: int = 0) -> engine.Flops:
        """Return what the core of a layer costs for `length` new tokens of a sequence behind `context` earlier ones."""
        return engine.kernel_flops(cls.sketch(config), length)

    # ---- what all share --------------------------------------------------------------------------------------------

    def forward(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        cache: Cache | None = None,
        with_transfer_matrix: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix tokens over time.

        Args:
            hidden: normed hidden states (b, t, hidden_size).
            layout: positions, padding and documents.
            cache: holds window and state of the past; updated in place.
            with_transfer_matrix: whether to return Φ, too.
            kwargs: what only attention uses (its mask, rotary angles, backend options).

        Returns:
            (b, t, hidden_size), and Φ (b, h, t, t) where asked for, else None.
        """
        weights = self.attention_weights(hidden, layout) if with_transfer_matrix else None
        layer = checked_layer(cache, self.layer_idx) if cache is not None else None
        if layer is not None and layer.record_past:
            return layer.history.walk(layer, self.step, self.advance, layout, hidden)[0], weights
        return self.step(hidden, layout, layer)[0], weights

    def step(self, hidden: Tensor, layout: TokenLayout, layer: Any = None) -> tuple[Tensor]:
        """Return the mixer's output (b, t, hidden_size), alone in a tuple; reads and writes the cached state."""
        gathered = layout.gather(hidden)
        size = segment_length(gathered, self.inner_size)
        if gathered.shape[1] > size and self.streams:
            return (layout.scatter(self.mix_segments(gathered, layout, layer, size)),)
        return (layout.scatter(self.finish(self.mix(gathered, layout, layer), gathered)),)

    def advance(self, hidden: Tensor, layout: TokenLayout, layer: Any) -> None:
        """Move the cached state on as `step` does, without its output."""
        self.mix(layout.gather(hidden), layout, layer)

    def attention_weights(self, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """Return Φ (b, h, t, t) in slot order, in the dtype of hidden (b, t, hidden_size).

        Raises:
            ValueError: the channels of a head do not share Φ.
            NotADynamicalSystemError: the mixer has no system.
        """
        phi = self.observed_system(hidden, layout).transfer_matrix()
        if phi.ndim != 4:
            raise ValueError(
                f"output_attentions=True: the channels of a head of {type(self).__name__} do not share one transfer "
                "matrix, so that there is no (batch, heads, time, time); ask model.transfer_matrix(layer) for all of "
                "them, or leave output_attentions out."
            )
        return layout.scatter_matrix(phi).to(hidden.dtype)

    def mix_segments(self, gathered: Tensor, layout: TokenLayout, layer: Any, size: int) -> Tensor:
        """Mix a long sequence in segments of `size` tokens, the window and state carried from one to the next.

        What a mixer makes on its way is then as large as a segment, not as the sequence. Gradients flow through what is
        carried, also where a cache keeps the last of it.
        """
        carry, outputs = _Carry(layer), []
        for start in range(0, gathered.shape[1], size):
            part = gathered[:, start : start + size]
            outputs.append(self.finish(self.mix(part, layout.segment(start, part.shape[1]), carry), part))
        if layer is not None:
            carry.store(layer, gathered.shape[1])
        return torch.cat(outputs, dim=1)

    def mix(self, gathered: Tensor, layout: TokenLayout, layer: Any = None) -> Tensor:
        """Return the core's output at gathered hidden states, (b, t, d); reads and writes the cached state."""
        system = self.evaluated_system(gathered, layout, layer)
        if layer is None:
            y, _ = engine.evaluate(system)
        else:
            y, state = engine.evaluate(system, state=layer.read_state(), overwrite_state=True)
            layer.write_state(state, gathered.shape[1])
        return y.flatten(2)

    def evaluated_system(self, gathered: Tensor, layout: TokenLayout, layer: Any = None) -> DSFSystem | FilterSystem:
        """Return what the engine evaluates: `system_at`, changed by the intervention where there is one."""
        system = self.system_at(gathered, layout, layer)
        return system if self.intervention is None else self.intervention(system)

    def system_at(self, gathered: Tensor, layout: TokenLayout, layer: Any = None) -> DSFSystem | FilterSystem:
        """Return the system at gathered hidden states, documents and lengths written into it; advances the window."""
        conv_in, rest = self.project(gathered)
        system = self.system(self.convolve(conv_in, layout, layer), rest)
        return system.with_layout(layout.starts, layout.lengths)

    def convolve(self, conv_in: Tensor, layout: TokenLayout, layer: Any = None) -> Tensor:
        """Apply the short convolution (if any) to gathered tokens, reading and writing the cached window."""
        conv = self.conv
        if conv is None:
            return conv_in
        if layer is None:
            return conv(conv_in, layout)[0]
        out, window = conv(conv_in, layout, layer.read_window())
        layer.write_window(window)
        return out

    def finish(self, y: Tensor, hidden: Tensor) -> Tensor:
        """Apply gate, output norm and output projection to the core's output y (b, t, d)."""
        gate, norm = self.gate_proj, self.output_norm
        if norm is not None and self.norm_before_gate:
            y = norm(y)
        if gate is not None:
            y = y * self.gate_activation(gate(hidden))
        if norm is not None and not self.norm_before_gate:
            y = norm(y)
        return self.out_proj(y)

    def observed_system(
        self, hidden: Tensor, layout: TokenLayout, **kwargs: Any
    ) -> DSFSystem | SoftmaxSystem | FilterSystem:
        """Return the system that `forward` would evaluate at these arguments (real tokens first in each row)."""
        return self.evaluated_system(layout.gather(hidden), layout)


def init_log_uniform(parameter: nn.Parameter, low: float, high: float) -> None:
    """Draw the logarithm of a number that is log-uniform in [low, high]."""
    init.uniform_(parameter, math.log(low), math.log(high))


def init_time_step_bias(bias: nn.Parameter, low: float, high: float, floor: float = 0.0) -> None:
    """Draw b_Δ so that Δ = softplus(b_Δ) is log-uniform in [low, high]; smaller values are raised to `floor`."""
    init_log_uniform(bias, low, high)
    init.copy_(bias, softplus_inverse(bias.exp().clamp(min=floor)))


def softplus_inverse(x: Tensor) -> Tensor:
    """Return y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))
