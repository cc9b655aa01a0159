"""The follow-up's released computation of softmax eigenvalues, defects and all: for comparison with its figures only.

What that code does, and `dsf_models.analysis.spectrum` does not:

* the scores lack the factor 1/√m of the forward pass;
* masked scores are set to 0 and kept, so that each adds exp(0) = 1 to η_i;
* λ of a layer comes from the block's output, fed through the layer's projections without norm, convolution or rotary
  positions, not from what the mixer read;
* intervals are closed at both ends, so that a value on an edge counts twice;
* intervals of phases start at 0, so that negative phases count nowhere.

Everything here carries the label `LABEL`.

Source: the code released with Rickenbach et al. 2025 (arXiv 2510.09379), as the project's notes describe it.

Letters: b batch, t time, h heads, g groups of query heads, m width of keys.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbone import DSFPreTrainedModel, in_evaluation
from ..system import SoftmaxSystem
from ..transitions import causal_mask, expand_groups

__all__ = ["LABEL", "LegacyHistogram", "legacy_eigenvalues", "legacy_fractions", "legacy_spectrum"]

LABEL = "legacy (unscaled scores, masked scores kept, read at the block's output, closed intervals)"
"""What every figure and table of these numbers must say."""
RADII = ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1), (1, 10), (10, 100), (100, math.inf))
"""Intervals of |λ|, closed at both ends but for the last, which is open below."""
PHASES = ((0, 1), (1, 10), (10, 45), (45, 90), (90, 180), (180, math.inf))
"""Intervals of arg λ in degrees, closed likewise."""


@dataclass(frozen=True, eq=False)
class LegacyHistogram:
    """Fractions as the released code counts them: they need not sum to one."""

    fractions: Tensor
    """(layers, h, b, intervals of |λ|) in float64."""
    phase_fractions: Tensor
    """(layers, h, b, intervals of arg λ) in float64."""
    label: str = LABEL
    """Says that these are no eigenvalues of the model."""


def legacy_eigenvalues(q: Tensor, k: Tensor) -> Tensor:
    """Return what the released code takes for the λ of softmax attention, in float64.

        ν_i = Σ_{all j} exp(s_ij - m_i)    s_ij = q_i^T k_j (j <= i), 0 (j > i)    m_i = max_j s_ij
        λ_i = ν_{i-1} / ν_i · e^{m_{i-1} - m_i}

    Args:
        q: queries, (b, t, h, m).
        k: keys, (b, t, g, m); g divides h.

    Returns:
        (b, t-1, h).
    """
    k = expand_groups(k, q.shape[2])
    scores = torch.einsum("bihm,bjhm->bhij", q.double(), k.double())
    scores = scores.masked_fill(~causal_mask(q.shape[1], q.device), 0.0)
    most = scores.amax(-1)
    nu = (scores - most[..., None]).exp().sum(-1)
    values = nu[..., :-1] / nu[..., 1:] * (most[..., :-1] - most[..., 1:]).exp()
    return values.transpose(1, 2)


def legacy_fractions(values: Tensor, intervals: tuple[tuple[float, float], ...]) -> Tensor:
    """Return the fraction of the values (…, t) in each closed interval: (…, intervals); edges count twice."""
    shares = []
    for place, (low, high) in enumerate(intervals):
        above = values > low if place == len(intervals) - 1 else values >= low
        shares.append((above & (values <= high)).double().mean(-1))
    return torch.stack(shares, dim=-1)


@torch.no_grad()
def legacy_spectrum(model: DSFPreTrainedModel, input_ids: Tensor, **inputs: Any) -> LegacyHistogram:
    """Return the histogram that the released code would make of a model of softmax attention.

    Args:
        model: a model all of whose layers are softmax attention.
        input_ids: (b, t) tokens without pads.
        inputs: further arguments of the model's forward.

    Raises:
        ValueError: a layer is no softmax attention, the only kind that this mode reproduces.
    """
    with in_evaluation(model):
        systems = model.dsf_systems(input_ids, **inputs)
        outputs = _block_outputs(model, input_ids, inputs)
    for layer, system in enumerate(systems):
        if not isinstance(system, SoftmaxSystem):
            raise ValueError(
                f"layer={layer}: it is no softmax attention, and the legacy mode reproduces nothing else; use "
                "spectrum(model, input_ids)."
            )
    values = []
    for block, hidden in zip(model.base_model.layers, outputs, strict=True):
        mixer = block.token_mixer
        q, k, _ = mixer.heads(mixer.project(hidden)[0], None)
        values.append(legacy_eigenvalues(q, k).permute(2, 0, 1))
    found = torch.stack(values)
    # A positive λ has the phase 0, which the second interval does not hold.
    phases = torch.zeros_like(found)
    return LegacyHistogram(legacy_fractions(found, RADII), legacy_fractions(phases, PHASES))


def _block_outputs(model: DSFPreTrainedModel, input_ids: Tensor, inputs: dict[str, Any]) -> list[Tensor]:
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda block, args, output: outputs.append(output))
        for block in model.base_model.layers
    ]
    try:
        model.base_model(input_ids=input_ids, use_cache=False, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
