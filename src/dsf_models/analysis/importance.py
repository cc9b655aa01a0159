"""Which tokens a classifier's answer rests on: mask them one after the other and watch the probability of its class.

    I_j(x) = p(y | x) - p(y | x with token j masked)

An order of masking is own (by the input's own I), global (by the mean of I over inputs), another input's, random,
greedy (I anew behind every step) or, for a judgement that does not select on what it measures, own by the I of another
model. Where few tokens carry the answer, the curve of the own order falls within a few steps; where they differ from
input to input, it falls faster than the global and the other input's.

Train the classifier with random masks, so that masked inputs are not foreign to it. The protocol is this project's own;
it plays the part of the masking experiment of Nishikawa & Suzuki 2025 (arXiv 2405.19036), whose details may differ.

Letters: b inputs, t tokens, k numbers of masked tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import require

__all__ = [
    "class_probability",
    "global_order",
    "greedy_order",
    "importance_order",
    "kept_fraction",
    "masking_curve",
    "other_order",
    "random_order",
    "token_importance",
]


@torch.no_grad()
def class_probability(model: PreTrainedModel, input_ids: Tensor, labels: Tensor, batch_size: int = 256) -> Tensor:
    """Return p(y | x) of every input.

    Args:
        model: a sequence classifier, in evaluation mode.
        input_ids: x, (b, t).
        labels: y, (b,).
        batch_size: inputs per forward pass; changes memory, not the result.

    Returns:
        (b,) in float32.
    """
    parts = []
    for ids, classes in zip(input_ids.split(batch_size), labels.split(batch_size), strict=True):
        probabilities = model(input_ids=ids).logits.float().softmax(-1)
        parts.append(probabilities.gather(-1, classes[:, None]).squeeze(-1))
    return torch.cat(parts)


def token_importance(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, mask_token_id: int, batch_size: int = 256
) -> Tensor:
    """Return I_j(x) = p(y | x) - p(y | x with token j masked).

    Args:
        model: a sequence classifier, in evaluation mode.
        input_ids: x, (b, t).
        labels: y, (b,).
        mask_token_id: what stands for a masked token.
        batch_size: inputs per forward pass.

    Returns:
        (b, t) in float32.
    """
    whole = class_probability(model, input_ids, labels, batch_size)
    columns = []
    for j in range(input_ids.shape[1]):
        masked = input_ids.clone()
        masked[:, j] = mask_token_id
        columns.append(whole - class_probability(model, masked, labels, batch_size))
    return torch.stack(columns, 1)


def importance_order(importance: Tensor) -> Tensor:
    """Return the tokens (b, t) of each input from the most important to the least; `.flip(1)` turns the order round."""
    return importance.argsort(dim=1, descending=True, stable=True)


def global_order(importance: Tensor) -> Tensor:
    """Return one order for all inputs, (b, t): by the mean importance of each position."""
    return importance_order(importance.mean(0, keepdim=True)).expand_as(importance)


def other_order(importance: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each input the order of another one, (b, t).

    Raises:
        ValueError: there is only one input.
    """
    count = len(importance)
    require(count >= 2, "importance", tuple(importance.shape), "give at least two inputs: each takes another's order.")
    shuffled = torch.randperm(count, generator=generator)
    # In a cycle through all inputs each has another one before it.
    others = torch.empty_like(shuffled)
    others[shuffled] = shuffled.roll(1)
    return importance_order(importance)[others]


def random_order(importance: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order for each input, (b, t)."""
    return torch.rand(importance.shape, generator=generator).argsort(1)


def greedy_order(
    model: PreTrainedModel, input_ids: Tensor, labels: Tensor, mask_token_id: int, steps: int, batch_size: int = 256
) -> Tensor:
    """Return the tokens that are masked one by one, each the one whose masking costs most behind those before it.

    It takes t forward passes of all inputs for each step, where `importance_order` takes t for all steps together.

    Args:
        model: a sequence classifier, in evaluation mode.
        input_ids: x, (b, t).
        labels: y, (b,).
        mask_token_id: what stands for a masked token.
        steps: tokens to mask, at most t.
        batch_size: inputs per forward pass.

    Returns:
        (b, steps).

    Raises:
        ValueError: more steps than tokens.
    """
    length = input_ids.shape[1]
    require(0 < steps <= length, "steps", steps, f"mask between 1 and all {length} tokens.")
    masked, chosen = input_ids.clone(), []
    taken = torch.zeros_like(input_ids, dtype=torch.bool)
    for _ in range(steps):
        importance = token_importance(model, masked, labels, mask_token_id, batch_size)
        best = importance.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        masked.scatter_(1, best, mask_token_id)
        taken.scatter_(1, best, True)
        chosen.append(best)
    return torch.cat(chosen, 1)


def masking_curve(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    order: Tensor,
    counts: Sequence[int],
    mask_token_id: int,
    batch_size: int = 256,
) -> Tensor:
    """Return the probability of each input's class behind the first tokens of its order being masked.

    Args:
        model: a sequence classifier, in evaluation mode.
        input_ids: x, (b, t).
        labels: y, (b,).
        order: tokens of each input in the order of masking, (b, t) or fewer columns.
        counts: numbers of masked tokens, k of them; 0 masks none.
        mask_token_id: what stands for a masked token.
        batch_size: inputs per forward pass.

    Returns:
        (k, b) in float32.

    Raises:
        ValueError: a count beyond the order.
    """
    require(
        min(counts) >= 0 and max(counts) <= order.shape[1], "counts", list(counts), "mask no more than the order has."
    )
    masked = (input_ids.scatter(1, order[:, :count], mask_token_id) for count in counts)
    return torch.stack([class_probability(model, ids, labels, batch_size) for ids in masked])


def kept_fraction(curve: Tensor, counts: Sequence[int], length: int, share: float = 0.9) -> Tensor:
    """Return the smallest part of each input that keeps a share of the probability of its class.

        1 - max{k : p_k' >= share p_0 for all k' <= k} / t

    Args:
        curve: of the order from the least important token on, (k, b); its first row masks nothing.
        counts: numbers of masked tokens, k of them, increasing from 0.
        length: t.
        share: of the probability of the whole input.

    Returns:
        (b,) in float32.

    Raises:
        ValueError: the counts do not increase from 0.
    """
    increasing = counts[0] == 0 and all(a < b for a, b in pairwise(counts))
    require(increasing, "counts", list(counts), "let them increase from 0.")
    keeps = (curve >= share * curve[0]).cumprod(0)
    last = keeps.sum(0) - 1
    return 1 - torch.tensor(counts, dtype=torch.float32)[last] / length
