"""S5: one time-invariant system with a diagonal, complex Λ that all channels drive and read.

    h_i = Λ h_{i-1} + B̄ u_i,  y_i = 2 Re(C h_i) + D * u_i        λ_k = exp(Δ_k a_k)        B̄ = diag((λ - 1) / a) B

That is zero-order hold; "bilinear" has λ = (1 + Δa/2) / (1 - Δa/2), B̄ = diag(Δ / (1 - Δa/2)) B. Of each conjugate pair
of eigenvalues one is kept. The poles a start as those of blocks of HiPPO-LegS's normal part, A = V diag(a) V^{-1}, with
B and C turned into their basis.

Source: Smith et al. 2023, "Simplified State Space Layers for Sequence Modeling" (arXiv 2208.04933).
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..backbone import (
    Architecture,
    DSFForCausalLM,
    DSFForSequenceClassification,
    DSFForTokenClassification,
    DSFGenerationMixin,
    DSFModel,
    TimeInvariantConfig,
    TimeInvariantMixer,
    init_log_uniform,
    register_architecture,
)
from ..errors import require
from ..system import DSFSystem
from ..transitions import discretize, hippo_legs_eigenvectors

__all__ = [
    "S5Config",
    "S5ForCausalLM",
    "S5ForSequenceClassification",
    "S5ForTokenClassification",
    "S5Mixer",
    "S5Model",
]


@strict
class S5Config(TimeInvariantConfig):
    """Configuration of S5; see `TimeInvariantConfig` for the shared fields."""

    model_type: ClassVar[str] = "dsf_s5"
    fixed_fields: ClassVar[dict[str, int]] = {"num_heads": 1}

    num_heads: int = 1
    """Always 1: all channels drive all states."""
    state_size: int = 256
    """Size N of the whole state, conjugate eigenvalues included; even."""
    # Blocks of a matrix, and not layers.
    # trf-ignore: TRF023
    num_blocks: int | None = None
    """Blocks of the HiPPO matrix at initialisation. Default: 8, or as many of 4, 2, 1 as make blocks of even size."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """From the poles to Λ: zero-order hold, or the bilinear transform."""
    time_step_min: float | int = 0.001
    """Smallest Δ at initialisation."""
    time_step_max: float | int = 0.1
    """Largest Δ at initialisation."""

    def fill_defaults(self) -> None:
        """Replace None by the default that depends on other fields."""
        super().fill_defaults()
        if self.num_blocks is None:
            self.num_blocks = next((blocks for blocks in (8, 4, 2) if self.state_size % (2 * blocks) == 0), 1)

    def validate_architecture(self) -> None:
        """Raise where sizes or options do not fit together."""
        super().validate_architecture()
        self._require_order("time_step_min", "time_step_max")
        self._require_pairs()
        require(
            self.num_blocks > 0 and self.state_size % (2 * self.num_blocks) == 0,
            "num_blocks",
            self.num_blocks,
            f"must cut state_size={self.state_size} into blocks of even size.",
        )


class S5Mixer(TimeInvariantMixer):
    """Projects to d channels that drive N states together; Λ, B, C, D do not depend on the input."""

    shares_transfer_matrix: ClassVar[bool] = False
    transition_parameters: ClassVar[tuple[str, ...]] = ("A_re_log", "A_im", "log_dt", "D")

    def __init__(self, config: S5Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.discretization = config.discretization
        pairs, width = config.state_size // 2, config.inner_size
        self.in_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.A_re_log = nn.Parameter(torch.empty(pairs))
        self.A_im = nn.Parameter(torch.empty(pairs))
        self.log_dt = nn.Parameter(torch.empty(pairs))
        self.B = nn.Parameter(torch.empty(pairs, 2, width))
        self.C = nn.Parameter(torch.empty(width, pairs, 2))
        self.C_reverse = nn.Parameter(torch.empty_like(self.C)) if config.bidirectional else None
        self.D = nn.Parameter(torch.empty(width))

    @classmethod
    def conv_width(cls, config: S5Config) -> int:
        """All channels."""
        return config.inner_size

    def init_parameters(self) -> None:
        """Set poles and bases of the HiPPO blocks; draw Δ log-uniformly from [time_step_min, time_step_max], D normal.

        B and C are normal with variance 1 / fan-in before they are turned: V^{-1} B and C V.

        Intended spectrum at step 0, with the defaults: |λ| = exp(-Δ/2) in [0.951, 0.9995], angles Δ Im a.
        """
        config = self.config
        frequencies, V = hippo_legs_eigenvectors(config.state_size // config.num_blocks)
        V = torch.block_diag(*[V] * config.num_blocks)
        init.constant_(self.A_re_log, math.log(0.5))
        init.copy_(self.A_im, frequencies.repeat(config.num_blocks))
        init_log_uniform(self.log_dt, config.time_step_min, config.time_step_max)
        width, size = config.inner_size, config.state_size
        B = torch.randn(size, width, dtype=torch.float64) / math.sqrt(width)
        init.copy_(self.B, torch.view_as_real(V.mH @ B.to(V.dtype)).movedim(-1, 1))
        for parameter in self.read_outs():
            C = torch.randn(width, size, dtype=torch.float64) / math.sqrt(size)
            init.copy_(parameter, torch.view_as_real(C.to(V.dtype) @ V))
        init.normal_(self.D)

    def project(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return u for the convolution."""
        return self.in_proj(hidden), None

    def system(self, conv_out: Tensor, rest: None) -> DSFSystem:
        """Return constant Λ, B, C, D, with dense B and C over pairs of real states."""
        delta, decay, frequency = self.log_dt.exp()[None], -self.A_re_log.exp()[None], self.A_im[None]
        discretized = discretize(self.discretization, delta, decay, frequency)
        re, im = discretized.gain_re[0, :, None], discretized.gain_im[0, :, None]
        b_re, b_im = self.B.unbind(1)
        return DSFSystem(
            u=conv_out[:, :, None],
            input_map=torch.stack([re * b_re - im * b_im, re * b_im + im * b_re], dim=1).flatten(0, 1),
            output_map=_output_map(self.C),
            transition=discretized.transition,
            D=self.D[None],
        )

    def reverse(self, system: DSFSystem) -> DSFSystem:
        """Return the system of the pass from the end: its own C, no D."""
        return replace(system, output_map=_output_map(self.C_reverse), D=None)


def _output_map(C: Tensor) -> Tensor:
    """Return 2 Re(C ·) as a map of pairs of real states: (d, N / 2, 2) -> (d, N)."""
    c_re, c_im = C.unbind(-1)
    return 2 * torch.stack([c_re, -c_im], dim=-1).flatten(1)


class S5Model(DSFModel):
    """S5 without a head."""

    config: S5Config


class S5ForCausalLM(DSFForCausalLM, DSFGenerationMixin):
    """S5 language model."""

    config: S5Config


class S5ForSequenceClassification(DSFForSequenceClassification):
    """S5 sequence classifier."""

    config: S5Config


class S5ForTokenClassification(DSFForTokenClassification):
    """S5 token classifier."""

    config: S5Config


register_architecture(
    Architecture(
        config_class=S5Config,
        mixer_class=S5Mixer,
        model_class=S5Model,
        causal_lm_class=S5ForCausalLM,
        sequence_classification_class=S5ForSequenceClassification,
        token_classification_class=S5ForTokenClassification,
        transition="constant: diag(exp(Δ_k a_k)), complex; bilinear by choice",
        input_matrix="constant and dense: diag((λ - 1) / a) B",
        output_matrix="constant and dense: 2 Re(C ·)",
        feed_through="diag(D), learned",
        state_size="n",
    )
)
