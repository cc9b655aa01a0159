"""Time-invariant systems as what they are: convolutions with one kernel, in Fourier space or as a Toeplitz matrix.

    y_i = Σ_{j<=i} K_{i-j} v_j + C Λ^{i+1} S_{-1}        K_t = C Λ^t B        S = Λ^t S_{-1} + Σ_j Λ^{t-1-j} B v_j

These are reference forms, in float64 throughout. Documents become rows of their own in Fourier space, and blocks in the
matrix.

Letters: b batch, t time, h heads, n states per channel, p head width, d = h·p.
"""

import torch
from torch import Tensor

from ..system import DSFSystem, apply_transfer_matrix
from ..transitions import expand_groups

__all__ = ["evaluate_convolution", "evaluate_toeplitz"]


def evaluate_convolution(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a time-invariant system by fast Fourier transforms, O(t log t).

    The number of documents decides the number of rows, so that packed inputs cannot be traced.

    Args:
        system: the system, in the compute dtype.
        state: S_{-1}, (b, h, n, p).

    Returns:
        y (b, t, h, p) and the state at each row's last real token.

    Raises:
        DSFSystemError: the system depends on time.
    """
    system.require_time_invariant('mode="convolution"')
    double = system.to(torch.float64)
    drive = double.drive()
    kernel = double.impulse_response(system.length)
    kernel = kernel.expand(drive.shape[0], *kernel.shape[1:])
    if system.starts is None:
        raw = _convolve(kernel, drive)
    else:
        row, document, position = _document_of_each_step(system.starts)
        rows = drive.new_zeros(int(document.max()) + 1, int(position.max()) + 1, *drive.shape[2:])
        rows = rows.index_put((document, position), drive.flatten(0, 1))
        first = torch.zeros(len(rows), dtype=torch.long, device=row.device).scatter(0, document, row)
        raw = _convolve(kernel[first], rows)[document, position].view_as(drive)
    return _with_state(double, drive, raw, state, system)


def evaluate_toeplitz(system: DSFSystem, state: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a time-invariant system by its Toeplitz matrix, blocks of it where documents are packed; O(t²)."""
    double = system.to(torch.float64)
    drive = double.drive()
    raw = apply_transfer_matrix(double.toeplitz(double.impulse_response(system.length)), drive)
    return _with_state(double, drive, raw, state, system)


def _document_of_each_step(starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, number of the document among all rows, and position in it, of each step: (b·t,) each."""
    batch, length = starts.shape
    first = starts.clone()
    first[:, 0] = True
    count = torch.arange(length, device=starts.device)
    position = count - torch.where(first, count, 0).cummax(1).values
    row = torch.arange(batch, device=starts.device)[:, None].expand(-1, length)
    return row.flatten(), first.flatten().long().cumsum(0) - 1, position.flatten()


def _convolve(kernel: Tensor, drive: Tensor) -> Tensor:
    """Convolve rows causally: kernel (b, h, 1, t) or (b, 1, d, d, t), drive (b, t', h, p) with t' <= t."""
    length = drive.shape[1]
    spectrum = torch.fft.rfft(kernel[..., :length], n=2 * length)
    driven = torch.fft.rfft(drive.permute(0, 2, 3, 1), n=2 * length)
    product = spectrum * driven if kernel.ndim == 4 else torch.einsum("bhpqf,bhqf->bhpf", spectrum, driven)
    return torch.fft.irfft(product, n=2 * length)[..., :length].permute(0, 3, 1, 2)


def _with_state(
    double: DSFSystem, drive: Tensor, raw: Tensor, state: Tensor, system: DSFSystem
) -> tuple[Tensor, Tensor]:
    """Add what comes from the initial state, and return y with the last state, in the system's dtype."""
    batch, length = drive.shape[:2]
    steps = torch.arange(length, device=drive.device)
    lengths = torch.full((batch,), length, device=drive.device) if system.lengths is None else system.lengths
    starts = torch.zeros_like(steps[None], dtype=torch.bool) if system.starts is None else system.starts
    document = (starts & (steps < lengths[:, None])).long().cumsum(1)
    orbit = double.transition.orbit(state.double(), length + 1)
    before = (document > 0)[..., None, None]
    raw = raw + double.outflow(orbit[:, 1:]).masked_fill(before, 0.0)
    kept = orbit[torch.arange(batch, device=drive.device), lengths]
    kept = kept.masked_fill((document[:, -1] > 0)[:, None, None, None], 0.0)
    # The inputs of the last document, moved so that the last real one stands last.
    drive = drive.masked_fill((document < document[:, -1:])[..., None, None], 0.0)
    source = steps - (length - lengths[:, None])
    moved = drive.gather(1, source.clamp(min=0)[..., None, None].expand_as(drive))
    moved = moved.masked_fill((source < 0)[..., None, None], 0.0)
    last = kept + _accumulate(double, moved)
    return double.read(raw).to(system.u.dtype), last.to(system.u.dtype)


def _accumulate(system: DSFSystem, drive: Tensor) -> Tensor:
    """Return Σ_j Λ^{t-1-j} B v_j in the shape of the state, from v (b, t, h, p)."""
    length = drive.shape[1]
    if system.input_map is not None:
        orbit = system.transition.orbit(system.input_map.T[:, None, :, None], length).flip(1)
        return torch.einsum("dtn,btd->bn", orbit[:, :, 0, :, 0], drive[:, :, 0])[:, None, :, None]
    b = expand_groups(system.B, system.num_heads)[:, 0, :, :, None]
    orbit = system.transition.orbit(b, length).flip(1)[..., 0]
    return torch.einsum("bthn,bthp->bhnp", orbit, drive)
