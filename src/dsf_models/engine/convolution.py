"""Causal convolution over time: depthwise, the local mixing that stands in front of a system, or between channels.

    y_t = bias + Σ_{k<K} w_k * x_{t-K+1+k}          w_{K-1} multiplies the current token

Letters: b batch, t time, d channels, K kernel size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["causal_convolution", "dense_causal_convolution", "next_window"]


def causal_convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None = None) -> Tensor:
    """Convolve each channel causally over time.

    Args:
        inputs: K - 1 past inputs (zeros at the beginning) followed by the t current ones, (b, K - 1 + t, d).
        weight: taps (K, d), the current token's last.
        bias: (d,) or None.
        starts: (b, t) True where a document starts: no tap reaches across.

    Returns:
        (b, t, d).
    """
    if starts is not None:
        return _convolve_documents(inputs, weight, bias, starts)
    if inputs.shape[1] == weight.shape[0]:
        y = (inputs * weight).sum(1, keepdim=True)
        return y if bias is None else y + bias
    return _DepthwiseConvolution.apply(inputs, weight, bias)


def dense_causal_convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None = None
) -> Tensor:
    """Convolve causally with a matrix a tap; arguments as in `causal_convolution`, with taps (K, d, d)."""
    taps = weight.shape[0]
    length = inputs.shape[1] - taps + 1
    y = inputs[:, taps - 1 :] @ weight[-1].T
    y = y if bias is None else y + bias
    document = None if starts is None else F.pad(starts.long().cumsum(1), (taps - 1, 0))
    for tap in range(taps - 1):
        x = inputs[:, tap : tap + length]
        if document is not None:
            x = x * (document[:, tap : tap + length] == document[:, taps - 1 :])[..., None]
        y = y + x @ weight[tap].T
    return y


def next_window(inputs: Tensor, keep: int, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the last `keep` real inputs of each row, zeros where an earlier document lies.

    Args:
        inputs: `keep` past inputs followed by the t current ones, (b, keep + t, d).
        keep: length of the window.
        starts: (b, t) True where a document starts, or None.
        lengths: (b,) number of real tokens of each row, at its front; None where all are real.

    Returns:
        (b, keep, d).
    """
    if lengths is None and starts is None:
        return inputs[:, inputs.shape[1] - keep :]
    if lengths is None:
        lengths = torch.full((inputs.shape[0],), inputs.shape[1] - keep, device=inputs.device)
    slots = lengths[:, None] + torch.arange(keep, device=inputs.device)
    tail = inputs.gather(1, slots[..., None].expand(-1, -1, inputs.shape[2]))
    if starts is None:
        return tail
    document = F.pad(starts.long().cumsum(1), (keep, 0))
    current = document.gather(1, lengths[:, None] + keep - 1)
    return tail.masked_fill((document.gather(1, slots) != current)[..., None], 0.0)


def _convolve_documents(padded: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor) -> Tensor:
    """Convolve with every tap that would reach into an earlier document switched off."""
    taps, length = weight.shape[0], starts.shape[1]
    document = F.pad(starts.long().cumsum(1), (taps - 1, 0))
    current = document[:, taps - 1 :]
    y = torch.zeros_like(padded[:, taps - 1 :]) if bias is None else bias.expand_as(padded[:, taps - 1 :])
    for tap in range(taps):
        inside = document[:, tap : tap + length] == current
        y = torch.addcmul(y, padded[:, tap : tap + length] * inside[..., None], weight[tap])
    return y


class _DepthwiseConvolution(torch.autograd.Function):
    """Sum of K shifted products in the (b, t, d) layout: no transposes, one pass over memory a tap."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, padded: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.has_bias = bias is not None
        taps, length = weight.shape[0], padded.shape[1] - weight.shape[0] + 1
        y = padded[:, taps - 1 :] * weight[taps - 1]
        for tap in range(taps - 1):
            y.addcmul_(padded[:, tap : tap + length], weight[tap])
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        padded, weight = ctx.saved_tensors
        taps, length = weight.shape[0], grad.shape[1]
        grad_padded = torch.zeros_like(padded)
        grad_weight = torch.empty_like(weight)
        product = torch.empty_like(grad)
        for tap in range(taps):
            grad_padded[:, tap : tap + length].addcmul_(grad, weight[tap])
            grad_weight[tap] = torch.mul(grad, padded[:, tap : tap + length], out=product).sum((0, 1))
        return grad_padded, grad_weight, grad.sum((0, 1)) if ctx.has_bias else None
