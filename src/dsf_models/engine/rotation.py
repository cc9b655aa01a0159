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
from .cost import Flops, map_flops

__all__ = ["evaluate_rotation", "rotation_flops"]

CHUNK, CHUNK_OF_DOCUMENTS = 32, 16
"""Default chunk lengths; chunks of packed documents are walked lag by lag."""


def evaluate_rotation(system: DSFSystem, state: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate a system with Λ of structure `Rotation` chunk by chunk, exactly.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p or p + 1; or (b, 1, N, 1) with maps), in the compute dtype.
        chunk_size: c; shortened to the sequence where that is shorter.

    Returns:
        y (b, t, h, p) and the state at each row's last real token.
    """
    chunk = min(chunk_size or (CHUNK if system.starts is None else CHUNK_OF_DOCUMENTS), system.length)
    layout = _Layout.of(system, chunk)
    if _by_head(system):
        b, c = (expand_groups(x, system.num_heads)[0, 0] for x in (system.B, system.C))
        constants = _constants_of_heads(system.transition, b, c, chunk)
        raw, state = _evaluate(system.drive()[:, :, :, None], constants, state, layout)
        return system.read(raw[:, :, :, 0]), state
    inflow = system.inflow()
    size = 1 if system.transition.angle is None else 2
    constants = _constants_of_states(system.transition, inflow.shape[2], chunk, inflow.dtype)
    states, last = _evaluate(_split_states(inflow, size), constants, _split_states(state, size), layout)
    return system.read(system.outflow(states.reshape(inflow.shape))), last.reshape(state.shape)


def rotation_flops(system: DSFSystem, length: int) -> Flops:
    """Return what `evaluate_rotation` costs for one sequence of `length` steps, no documents packed, at these sizes.

    The constants of a chunk, which all sequences of a batch share, count in full; the recurrence between chunks and the
    powers of Λ are elementwise.
    """
    _, num_heads, n, p = system.state_shape
    chunk = min(CHUNK, length)
    chunks = -(-length // chunk)
    outside = 0
    if _by_head(system):
        channels, states, width, constants = num_heads, n, 1, 2 * num_heads * n * chunk
    else:
        states = width = 1 if system.transition.angle is None else 2
        channels, constants = num_heads * n // states, 0
        outside = map_flops(system) if system.input_map is not None else 2 * num_heads * n * p
    row = chunk * width
    per_channel = p * (chunks * (row * row + 2 * row * states) + row * states)
    between = system.transition.flops_per_entry * num_heads * n * (p * (chunks + 1) + 2 * chunk)
    return Flops(2 * channels * per_channel + constants + outside * length, between)


def _by_head(system: DSFSystem) -> bool:
    """Return whether constant factors make a channel of each head."""
    return system.input_map is None and all(x.shape[:2] == (1, 1) for x in (system.B, system.C))


def _split_states(x: Tensor, size: int) -> Tensor:
    """Make each state, or pair of states, a channel: (…, h, n, p) -> (…, h·n / size, size, p)."""
    return x.unflatten(-2, (-1, size)).flatten(-4, -3)


# ---- constants ------------------------------------------------------------------------------------------------------


class _Constants(NamedTuple):
    """What the channels' Λ, B and C make of the steps of a chunk: matrices in the compute dtype, powers in float64."""

    kernel: Tensor
    """K_e = C Λ^e B for e < c, (g, c, q, q)."""
    write: Tensor
    """Λ^{c-1-j} B, (g, s, c·q)."""
    read: Tensor
    """C Λ^{i+1}, (g, c·q, s)."""
    re: Tensor
    """Re λ^e for e <= c, (g, m, c + 1)."""
    im: Tensor | None
    """Im λ^e in the shape of `re`, or None where eigenvalues are real."""


def _constants_of_heads(transition: Rotation, b: Tensor, c: Tensor, chunk: int) -> _Constants:
    """Return the constants of one channel a head, from b and c (h, n)."""
    powers = _power_table(transition, chunk, len(b))
    (re_left, re_next), (im_left, im_next) = (_left_and_next(x, b.dtype) for x in powers)
    write = rotate(b[..., None], re_left, im_left)
    read = rotate(c[..., None], re_next, None if im_next is None else -im_next).mT
    kernel = (c[:, None] @ write).flip(-1)
    return _Constants(kernel.mT[..., None], write, read, *powers)


def _constants_of_states(transition: Rotation, num_heads: int, chunk: int, dtype: torch.dtype) -> _Constants:
    """Return the constants of one channel a state or pair of states, with B = C = 1."""
    re, im = (None if x is None else x.flatten(0, 1)[:, None] for x in _power_table(transition, chunk, num_heads))
    eye = torch.eye(1 if im is None else 2, dtype=dtype, device=re.device)
    re_e, im_e = (None if x is None else x.to(dtype).movedim(2, 1)[..., None] for x in (re, im))
    powers = rotate(eye, re_e, im_e)
    write = powers[:, :-1].flip(1).permute(0, 2, 1, 3).flatten(2)
    return _Constants(powers[:, :-1], write, powers[:, 1:].flatten(1, 2), re, im)


def _left_and_next(powers: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return λ^{c-1-j} and λ^{i+1} over a chunk, (g, m, c) each."""
    if powers is None:
        return None, None
    powers = powers.to(dtype)
    return powers[..., :-1].flip(-1), powers[..., 1:]


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

    def document_of_columns(self, columns: int) -> Tensor | None:
        """Return `document` in the order of products, (c, 1, b·k·p)."""
        if self.document is None:
            return None
        return self.document.permute(2, 0, 1).repeat_interleave(columns, dim=2).flatten(1)[:, None]


# ---- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(V: Tensor, constants: _Constants, state: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Evaluate channels V (b, t, g, q, p) from their states (b, g, s, p); return outputs like V and the last states."""
    length = V.shape[1]
    V = F.pad(V, (0, 0) * 3 + (0, -length % layout.chunk)).unflatten(1, (-1, layout.chunk))
    batch, chunks, _, channels, _, columns = V.shape
    # Contiguous: batched products of strided matrices run one by one.
    V_gcqx = V.permute(3, 2, 4, 0, 1, 5).flatten(3).contiguous()
    document = layout.document_of_columns(columns)
    written = V_gcqx if document is None else V_gcqx.masked_fill(document < document[-1:], 0.0)
    local = (constants.write @ written.flatten(1, 2)).view(channels, state.shape[2], batch, chunks, columns)
    before = _carry(local.permute(3, 2, 0, 1, 4), constants, state, layout)
    Y_gxy = constants.read @ before.permute(2, 3, 1, 0, 4).flatten(2)
    if document is None:
        Y_gxy = torch.baddbmm(Y_gxy, _toeplitz(constants.kernel), V_gcqx.flatten(1, 2))
    else:
        carried = Y_gxy.view_as(V_gcqx).masked_fill(document > 0, 0.0)
        Y_gxy = (carried + _DocumentProduct.apply(V_gcqx, constants.kernel, document)).flatten(1, 2)
    Y = _TimeFirst.apply(Y_gxy, V.shape)
    return Y.flatten(1, 2)[:, :length], _last_state(V, before, constants, layout)


class _TimeFirst(torch.autograd.Function):
    """Reorders a product (g, c·q, b·k·p) to (b, k, c, g, q, p).

    Its gradient comes back contiguous, for the batched products of the way back.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, Y_gxy: Tensor, sizes: torch.Size) -> Tensor:
        """Return Y in the order of `sizes`."""
        batch, chunks, chunk, channels, width, columns = sizes
        return Y_gxy.view(channels, chunk, width, batch, chunks, columns).permute(3, 4, 1, 0, 2, 5).contiguous()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient in the order of the product."""
        return grad.permute(3, 2, 4, 0, 1, 5).flatten(3).flatten(1, 2).contiguous(), None


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
        """Take V (g, c, q, x), K (g, c, q, q) and numbers of documents (c, 1, x); return outputs like V."""
        ctx.save_for_backward(V, kernel, document)
        Y = torch.zeros_like(V)
        for lag in range(V.shape[1]):
            Y[:, lag:] += _product(kernel[:, lag, None], _earlier(V, document, lag))
        return Y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of V and K."""
        V, kernel, document = ctx.saved_tensors
        grad_V, grad_kernel = torch.zeros_like(V), torch.empty_like(kernel)
        for lag in range(V.shape[1]):
            outputs = grad[:, lag:].masked_fill(_differ(document, lag), 0.0)
            grad_V[:, : V.shape[1] - lag] += _product(kernel[:, lag, None].mT, outputs)
            grad_kernel[:, lag] = torch.einsum("gcqx,gcrx->gqr", outputs, V[:, : V.shape[1] - lag])
        return grad_V, grad_kernel, None


def _product(kernel: Tensor, V: Tensor) -> Tensor:
    """Return K V for K (g, 1, q, q) and V (g, c, q, x)."""
    return kernel * V if V.shape[2] == 1 else kernel @ V


def _differ(document: Tensor, lag: int) -> Tensor:
    """Return whether the steps of each pair of one lag belong to different documents: (c, 1, x) -> (c - lag, 1, x)."""
    return document[lag:] != document[: len(document) - lag]


def _earlier(V: Tensor, document: Tensor, lag: int) -> Tensor:
    """Return V (g, c, q, x) at the earlier steps of the pairs of one lag, zero where documents differ."""
    return V[:, : V.shape[1] - lag].masked_fill(_differ(document, lag), 0.0)


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


def _last_state(V: Tensor, before: Tensor, constants: _Constants, layout: _Layout) -> Tensor:
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
    added = constants.write @ moved.permute(2, 1, 3, 0, 4).flatten(3).flatten(1, 2)
    added = added.view(*added.shape[:2], len(rows), V.shape[5]).permute(2, 0, 1, 3)
    return (carried + added).to(V.dtype)
