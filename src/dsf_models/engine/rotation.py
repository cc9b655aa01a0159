"""Chunked kernel for constant Λ with real or complex eigenvalues: Toeplitz products in chunks, a recurrence between.

Within a chunk of c steps that starts from the state S, with K_e = C Λ^e B:

    Y_i = Σ_{j<=i} K_{i-j} V_j + C Λ^{i+1} S        S' = Λ^c S + Σ_j Λ^{c-1-j} B V_j

Powers of Λ and the recurrence between chunks are float64 (a rounded λ errs alike at every step); products are matrix
products in the compute dtype. Nothing but V depends on time, so that one (c, c) matrix serves a channel's whole
sequence. Where B and C are constant factors, a channel is one of the system's heads. Else every state, or pair of
states, is a channel of its own with B = C = 1, and the system forms what goes in and reads what comes out.

Letters: b batch, k chunks, c chunk length (i rows, j columns), g channels, s states, q inputs and outputs of a channel,
p columns that share it, m eigenvalues.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import DSFSystem
from ..transitions import Rotation, expand_groups, rotate

__all__ = ["evaluate_rotation"]

CHUNK_OF_FACTORS, CHUNK_OF_STATES, CHUNK_OF_DOCUMENTS = 64, 32, 16
"""Default chunk lengths: constant factors, single states, and packed documents, whose chunks are walked lag by lag."""


def evaluate_rotation(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ of structure `Rotation` chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1; or (b, 1, N, 1) with maps), in the compute dtype.
        chunk_size: c; shortened to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    by_head = system.input_map is None and all(x.shape[:2] == (1, 1) for x in (system.B, system.C))
    default = CHUNK_OF_FACTORS if by_head else CHUNK_OF_STATES
    if system.starts is not None:
        default = CHUNK_OF_DOCUMENTS
    chunk = min(chunk_size or default, system.length)
    layout = _Layout.of(system, chunk)
    if by_head:
        b, c = (expand_groups(x, system.num_heads)[0, 0].double() for x in (system.B, system.C))
        constants = _constants_of_heads(system.transition, b, c, chunk)
        raw, state = _evaluate(system.drive()[:, :, :, None], constants, state, layout)
        return system.read(raw[:, :, :, 0]), state
    inflow = system.inflow()
    size = 1 if system.transition.angle is None else 2
    constants = _constants_of_states(system.transition, inflow.shape[2], chunk)
    states, last = _evaluate(_split_states(inflow, size), constants, _split_states(state, size), layout)
    return system.read(system.outflow(states.reshape(inflow.shape))), last.reshape(state.shape)


def _split_states(x: Tensor, size: int) -> Tensor:
    """Make each state, or pair of states, a channel: (…, h, n, p) -> (…, h·n / size, size, p)."""
    return x.unflatten(-2, (-1, size)).flatten(-4, -3)


# ---- constants ------------------------------------------------------------------------------------------------------


class _Constants(NamedTuple):
    """What the channels' Λ, B and C make of e steps, in float64."""

    kernel: Tensor
    """K_e = C Λ^e B for e < c, (g, c, q, q)."""
    write: Tensor
    """Λ^e B for e < c, (g, c, s, q)."""
    read: Tensor
    """C Λ^{e+1} for e < c, (g, c, q, s)."""
    re: Tensor
    """Re λ^e for e <= c, (g, m, c + 1)."""
    im: Tensor | None
    """Im λ^e in the shape of `re`, or None where eigenvalues are real."""


def _constants_of_heads(transition: Rotation, b: Tensor, c: Tensor, chunk: int) -> _Constants:
    """Return the constants of one channel a head: b and c (h, n) in float64."""
    re, im = _power_table(transition, chunk, len(b))
    re_e, im_e = (None if x is None else x.movedim(2, 1)[..., None] for x in (re, im))
    write = rotate(b[:, None, :, None], re_e[:, :-1], None if im is None else im_e[:, :-1])
    read = rotate(c[:, None, :, None], re_e[:, 1:], None if im is None else -im_e[:, 1:]).transpose(2, 3)
    kernel = c[:, None, None] @ write
    return _Constants(kernel, write, read, re, im)


def _constants_of_states(transition: Rotation, num_heads: int, chunk: int) -> _Constants:
    """Return the constants of one channel a state or pair of states, with B = C = 1."""
    re, im = (None if x is None else x.flatten(0, 1)[:, None] for x in _power_table(transition, chunk, num_heads))
    size = 1 if im is None else 2
    eye = torch.eye(size, dtype=torch.float64, device=re.device)
    re_e, im_e = (None if x is None else x.movedim(2, 1)[..., None] for x in (re, im))
    powers = rotate(eye, re_e, im_e)
    return _Constants(powers[:, :-1], powers[:, :-1], powers[:, 1:], re, im)


def _power_table(transition: Rotation, chunk: int, num_heads: int) -> tuple[Tensor, Tensor | None]:
    """Return Re λ^e and Im λ^e for e = 0 … c, (h, m, c + 1): products of few powers, as sines are dear."""
    root = max(1, round(chunk**0.5))
    device = transition.log_radius.device
    low, high = torch.arange(root, device=device), torch.arange(0, chunk + 1, root, device=device)
    (re, im), (re_high, im_high) = transition.powers(low), transition.powers(high)

    def every(x: Tensor) -> Tensor:
        return x.flatten(-2)[..., : chunk + 1].expand(num_heads, -1, -1)

    re, re_high = re[..., None, :], re_high[..., :, None]
    if im is None:
        return every(re * re_high), None
    im, im_high = im[..., None, :], im_high[..., :, None]
    return every(re * re_high - im * im_high), every(re * im_high + im * re_high)


# ---- documents and pads ---------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Documents and pads in chunks; masks are None where nothing is packed."""

    chunk: int
    lengths: Tensor
    """(b,) number of real tokens."""
    document: Tensor | None
    """(b, k, c) how many documents started in the chunk so far; those that start at pads do not count."""

    @classmethod
    def of(cls, system: DSFSystem, chunk: int) -> "_Layout":
        batch, length = system.u.shape[:2]
        lengths = system.lengths
        if lengths is None:
            lengths = torch.full((batch,), length, dtype=torch.long, device=system.u.device)
        if system.starts is None:
            return cls(chunk, lengths, None)
        starts = system.starts if system.padded is None else system.starts & ~system.padded
        starts = F.pad(starts, (0, -length % chunk)).unflatten(1, (-1, chunk))
        return cls(chunk, lengths, starts.long().cumsum(2))


# ---- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(V: Tensor, constants: _Constants, state: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Evaluate channels V (b, t, g, q, p) from their states (b, g, s, p); return outputs like V and the last states."""
    length, dtype = V.shape[1], V.dtype
    V = F.pad(V, (0, 0) * 3 + (0, -length % layout.chunk)).unflatten(1, (-1, layout.chunk))
    sizes = V.shape
    V_gxy = V.permute(3, 2, 4, 0, 1, 5).flatten(3).flatten(1, 2)
    write = constants.write.flip(1).permute(0, 2, 1, 3).flatten(2).to(dtype)
    read = constants.read.flatten(1, 2).to(dtype)
    local = write @ _keep_last_document(V_gxy, layout, sizes)
    local = local.view(*local.shape[:2], sizes[0], sizes[1], sizes[5]).permute(3, 2, 0, 1, 4)
    before = _carry(local, constants, state, layout)
    carried = read @ before.permute(2, 3, 1, 0, 4).flatten(2)
    if layout.document is None:
        Y = _time_first(torch.baddbmm(carried, _toeplitz(constants.kernel).to(dtype), V_gxy), sizes)
    else:
        later = (layout.document > 0)[..., None, None, None]
        own = _DocumentProduct.apply(
            V.permute(3, 4, 5, 0, 1, 2).contiguous(), constants.kernel.to(dtype), layout.document
        )
        Y = _time_first(carried, sizes).masked_fill(later, 0.0) + own.permute(3, 4, 5, 0, 1, 2)
    last = _last_state(V, write, before, constants, layout)
    return Y.flatten(1, 2)[:, :length], last


def _time_first(Y_gxy: Tensor, sizes: torch.Size) -> Tensor:
    """Undo the order of a product: (g, c·q, b·k·p) -> (b, k, c, g, q, p)."""
    batch, chunks, chunk, channels, width, columns = sizes
    return Y_gxy.view(channels, chunk, width, batch, chunks, columns).permute(3, 4, 1, 0, 2, 5)


def _toeplitz(kernel: Tensor) -> Tensor:
    """Return the matrix of K_{i-j}, zero above the diagonal: (g, c, q, q) -> (g, c·q, c·q).

    A row of 2c entries, repeated and cut into rows one shorter, shifts by one from row to row: no gather, and a
    backward pass of sums.
    """
    channels, chunk, width, _ = kernel.shape
    zeros = kernel.new_zeros(channels, chunk, width, width)
    row = torch.cat([kernel[:, :1], zeros, kernel[:, 1:].flip(1)], dim=1)
    rows = row[:, None].expand(-1, chunk, -1, -1, -1).flatten(1, 2)
    rows = rows[:, : chunk * (2 * chunk - 1)].unflatten(1, (chunk, -1))[:, :, :chunk]
    return rows.permute(0, 1, 3, 2, 4).reshape(channels, chunk * width, chunk * width)


class _DocumentProduct(torch.autograd.Function):
    """Σ_{j<=i} K_{i-j} V_j over the steps j of i's chunk and document, lag by lag: only V is kept for the way back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, V: Tensor, kernel: Tensor, document: Tensor) -> Tensor:
        """Take V (g, q, p, b, k, c), K (g, c, q, q) and documents (b, k, c); return outputs like V."""
        ctx.save_for_backward(V, kernel, document)
        Y = torch.zeros_like(V)
        for lag in range(V.shape[-1]):
            inputs = _of_lag(V, document, lag, earlier=True)
            Y[..., lag:] += (kernel[:, lag] @ inputs.flatten(2)).view_as(inputs)
        return Y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of V and K."""
        V, kernel, document = ctx.saved_tensors
        grad_V, grad_kernel = torch.zeros_like(V), torch.empty_like(kernel)
        for lag in range(V.shape[-1]):
            outputs = _of_lag(grad, document, lag, earlier=False)
            grad_V[..., : V.shape[-1] - lag] += (kernel[:, lag].mT @ outputs.flatten(2)).view_as(outputs)
            inputs = _of_lag(V, document, lag, earlier=True)
            grad_kernel[:, lag] = outputs.flatten(2) @ inputs.flatten(2).mT
        return grad_V, grad_kernel, None


def _of_lag(x: Tensor, document: Tensor, lag: int, earlier: bool) -> Tensor:
    """Return x (…, c) at the earlier or the later steps of the pairs of one lag, zero where documents differ."""
    size = x.shape[-1] - lag
    same = document[..., lag:] == document[..., :size]
    return (x[..., :size] if earlier else x[..., lag:]).masked_fill(~same, 0.0)


def _keep_last_document(V_gxy: Tensor, layout: _Layout, sizes: torch.Size) -> Tensor:
    """Zero the inputs (g, c·q, b·k·p) that a later document start in their chunk makes forgotten."""
    if layout.document is None:
        return V_gxy
    forgotten = layout.document < layout.document[:, :, -1:]
    forgotten = forgotten.permute(2, 0, 1)[:, None, :, :, None].expand(-1, sizes[4], -1, -1, sizes[5])
    return V_gxy.masked_fill(forgotten.reshape(1, *V_gxy.shape[1:]), 0.0)


def _carry(local: Tensor, constants: _Constants, state: Tensor, layout: _Layout) -> Tensor:
    """Return the states before each chunk, (k, b, g, s, p), from what each chunk adds (the same) and S_{-1}."""
    re, im = _power_at(constants, layout.chunk)
    carry, before = state.double(), []
    for index, added in enumerate(local.unbind(0)):
        before.append(carry.to(local.dtype))
        carry = rotate(carry, re, im)
        if layout.document is not None:
            carry = carry.masked_fill((layout.document[:, index, -1] > 0)[:, None, None, None], 0.0)
        carry = carry + added
    return torch.stack(before)


def _power_at(constants: _Constants, exponent: Tensor | int) -> tuple[Tensor, Tensor | None]:
    """Return λ^e, (g, m, 1), or (b, g, m, 1) for exponents (b,)."""
    if isinstance(exponent, int):
        return constants.re[..., exponent, None], None if constants.im is None else constants.im[..., exponent, None]
    re, im = (None if x is None else x[..., exponent].movedim(-1, 0)[..., None] for x in (constants.re, constants.im))
    return re, im


def _last_state(V: Tensor, write: Tensor, before: Tensor, constants: _Constants, layout: _Layout) -> Tensor:
    """Return the state (b, g, s, p) at each row's last real token.

    That chunk's inputs are moved so that the last real one stands last.
    """
    chunk, rows = layout.chunk, torch.arange(V.shape[0], device=V.device)
    index = (layout.lengths - 1).clamp(min=0) // chunk
    real = layout.lengths - index * chunk
    carried = rotate(before[index, rows].double(), *_power_at(constants, real))
    inputs = V[rows, index]
    if layout.document is not None:
        document = layout.document[rows, index]
        last = document.gather(1, (real - 1).clamp(min=0)[:, None])
        carried = carried.masked_fill((last > 0)[..., None, None], 0.0)
        inputs = inputs.masked_fill((document < last)[..., None, None, None], 0.0)
    source = torch.arange(chunk, device=V.device) - (chunk - real)[:, None]
    moved = inputs.gather(1, source.clamp(min=0)[..., None, None, None].expand_as(inputs))
    moved = moved.masked_fill((source < 0)[..., None, None, None], 0.0)
    added = write @ moved.permute(2, 1, 3, 0, 4).flatten(3).flatten(1, 2)
    added = added.view(*added.shape[:2], len(rows), V.shape[5]).permute(2, 0, 1, 3)
    return (carried + added).to(V.dtype)
