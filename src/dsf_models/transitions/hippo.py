"""HiPPO-LegS: the continuous Λ that remembers the past by Legendre polynomials, normal minus a rank-one term.

    A = N - P P^T        A_nk = -√((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 above        P_k = √(k + 1/2)

Source: Gu et al. 2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396).
"""

import torch
from torch import Tensor

__all__ = ["hippo_legs", "hippo_legs_eigenvectors", "hippo_legs_modes"]


def hippo_legs(state_size: int) -> tuple[Tensor, Tensor]:
    """Return A (n, n) and P (n,) in float64; the input vector of HiPPO-LegS is √2 P."""
    index = torch.arange(state_size, dtype=torch.float64)
    P = (index + 0.5).sqrt()
    A = -2 * torch.outer(P, P).tril(-1) - torch.diag(index + 1)
    return A, P


def hippo_legs_eigenvectors(state_size: int) -> tuple[Tensor, Tensor]:
    """Diagonalise the normal part N = A + P P^T, whose eigenvalues are -1/2 ± iω.

    N + I/2 is skew, so that its eigenvectors are orthonormal.

    Args:
        state_size: n, even.

    Returns:
        ω > 0 in ascending order (n/2,) in float64, and their eigenvectors (n, n/2) in complex128. The other half are
        their conjugates.
    """
    A, P = hippo_legs(state_size)
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(state_size, dtype=torch.float64)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    upper = slice(state_size // 2, None)
    return frequencies[upper], vectors[:, upper]


def hippo_legs_modes(state_size: int) -> tuple[Tensor, Tensor]:
    """Return the normal part's frequencies ω and the components of P along its eigenvectors, (n/2,) each in float64.

    Each eigenvector of `hippo_legs_eigenvectors` is turned so that its component of P is positive.
    """
    frequencies, vectors = hippo_legs_eigenvectors(state_size)
    _, P = hippo_legs(state_size)
    return frequencies, (vectors.mH @ P.to(vectors.dtype)).abs()
