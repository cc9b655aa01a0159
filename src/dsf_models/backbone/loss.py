"""The language model's loss: which label each output is scored against, and cross-entropy in at least float32.

Letters: b batch, t time, v vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import fixed_cross_entropy

__all__ = ["IGNORED_LABEL", "aligned_targets", "causal_lm_loss"]

IGNORED_LABEL = -100
"""Label of an output that is not scored."""


def aligned_targets(labels: Tensor, alignment: str, mask: Tensor | None) -> Tensor:
    """Return the target of each output, (b, t).

    Args:
        labels: (b, t), IGNORED_LABEL where nothing is scored.
        alignment: "next": the output at t predicts the label of the next real token (the last one predicts nothing);
            "same": labels already stand where they are predicted.
        mask: padding mask (b, t), or None: pads predict nothing, and nothing predicts them.

    Raises:
        ValueError: an unknown alignment.
    """
    if alignment not in ("next", "same"):
        raise ValueError(
            f'label_alignment={alignment!r}: use "next" (labels are shifted by the loss) or "same" (already aligned).'
        )
    if mask is not None:
        labels = labels.masked_fill(~mask, IGNORED_LABEL)
    if alignment == "same":
        return labels
    if mask is None:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    following = F.pad(labels.gather(1, order)[:, 1:], (0, 1), value=IGNORED_LABEL)
    return torch.empty_like(labels).scatter(1, order, following)


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED_LABEL,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Return the cross-entropy of logits (b, t, v) against targets (b, t), as transformers' loss functions are called.

    It is the mean over scored outputs, or their sum over num_items_in_batch. Unlike transformers' own, it stays in
    float64 where the model is.

    Args:
        logits: (b, t, v).
        labels: (b, t), targets where shift_labels is None.
        vocab_size: v.
        num_items_in_batch: number of labels over all accumulated batches.
        ignore_index: target of outputs that are not scored.
        shift_labels: (b, t) targets, already aligned with the logits.
        kwargs: what other losses use.
    """
    targets = aligned_targets(labels, "next", None) if shift_labels is None else shift_labels
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, vocab_size)
    return fixed_cross_entropy(logits, targets.reshape(-1).to(logits.device), num_items_in_batch, ignore_index)
