"""Selection of one token by an inner product: what two filters with a token-wise network between them compute.

    hard: v_{j*} with j* = argmax_j s_j        soft: Σ_j e^{χ s_j} v_j / Σ_j e^{χ s_j}        s_j = <k_j, q>

A first filter (λ = 1, both ways) broadcasts q, a network makes (e^{χ s_j} v_j, e^{χ s_j}), a second filter (λ = 1) sums
both, a network divides. With the margin δ = s_{j*} - max_{j != j*} s_j over V tokens,

    ‖soft - hard‖ <= 2 (V - 1) e^{-χδ} max_j ‖v_j‖

The statement and its proof are this project's own; it plays the part that a selection lemma plays in Nishikawa & Suzuki
2025 (arXiv 2405.19036), whose constants may differ.

Letters: V tokens, p value width.
"""

import math

from torch import Tensor

from ..errors import require

__all__ = ["hard_selection", "required_sharpness", "selection_error_bound", "selection_margin", "soft_selection"]


def hard_selection(scores: Tensor, values: Tensor) -> Tensor:
    """Return the value of the token with the largest score.

    Args:
        scores: s_j, (…, V).
        values: v_j, (…, V, p).

    Returns:
        (…, p).
    """
    chosen = scores.argmax(-1)[..., None, None].expand(*values.shape[:-2], 1, values.shape[-1])
    return values.gather(-2, chosen).squeeze(-2)


def soft_selection(scores: Tensor, values: Tensor, sharpness: float) -> Tensor:
    """Return the mean of the values weighted by e^{χ s_j}, which approaches `hard_selection` as χ grows.

    Args:
        scores: s_j, (…, V).
        values: v_j, (…, V, p).
        sharpness: χ > 0.

    Returns:
        (…, p).

    Raises:
        ValueError: χ is not positive.
    """
    require(sharpness > 0, "sharpness", sharpness, "give a positive χ: the larger, the harder the selection.")
    return ((sharpness * scores).softmax(-1)[..., None, :] @ values).squeeze(-2)


def selection_margin(scores: Tensor) -> Tensor:
    """Return δ, by how much the largest of the scores (…, V >= 2) exceeds the second: (…)."""
    first, second = scores.topk(2, dim=-1).values.unbind(-1)
    return first - second


def selection_error_bound(count: int, margin: float, sharpness: float, norm: float) -> float:
    """Return 2 (V - 1) e^{-χδ} max ‖v‖, which the error of a soft selection never exceeds.

    Args:
        count: V >= 1, the number of tokens.
        margin: δ >= 0.
        sharpness: χ > 0.
        norm: max_j ‖v_j‖.
    """
    return 2 * (count - 1) * math.exp(-sharpness * margin) * norm


def required_sharpness(count: int, margin: float, error: float, norm: float) -> float:
    """Return χ = log(2 (V - 1) max ‖v‖ / ε) / δ, with which a soft selection errs by ε at most.

    Args:
        count: V >= 2, the number of tokens.
        margin: δ > 0.
        error: ε > 0.
        norm: max_j ‖v_j‖.

    Raises:
        ValueError: margin or error is not positive: no χ separates equal scores, none gives no error at all.
    """
    require(margin > 0, "margin", margin, "give the positive distance between the two largest scores.")
    require(error > 0, "error", error, "give a positive error: a soft selection is exact in the limit only.")
    return max(math.log(2 * (count - 1) * norm / error), 0.0) / margin
