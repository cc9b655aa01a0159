"""What evaluating a system costs, in floating-point operations, from its sizes and the structure of its Λ.

A product of two numbers and their addition to a third count as two operations, a lone product or sum as one.

Letters: h heads, n states per channel, p head width (p + 1 with a normaliser's column).
"""

from dataclasses import dataclass

from ..system import DSFSystem

__all__ = ["Flops", "map_flops", "recurrent_flops", "scan_flops"]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, those of matrix products apart from elementwise ones."""

    matmul: int = 0
    """Of matrix products: 2·rows·inner·columns each."""
    elementwise: int = 0
    """Of everything else that is counted."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.matmul + self.elementwise

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.matmul + other.matmul, self.elementwise + other.elementwise)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.matmul * times, self.elementwise * times)


def recurrent_flops(system: DSFSystem, length: int) -> Flops:
    """Return what `length` steps S = Λ(S) + b v^T, y = S^T c cost for one sequence, maps in place of b and c.

    Args:
        system: any system with these sizes and this structure of Λ; its values do not matter.
        length: number of steps.
    """
    _, num_heads, n, p = system.state_shape
    entries = num_heads * n * p
    transition = system.transition
    if system.input_map is not None:
        matmul, elementwise = map_flops(system), 1 + transition.flops_per_entry
        return Flops(matmul + entries * transition.matmul_flops_per_entry, entries * elementwise) * length
    step = Flops(2 + transition.matmul_flops_per_entry, 2 + transition.flops_per_entry)
    return step * (entries * length)


def map_flops(system: DSFSystem) -> int:
    """Return what the two dense maps of a system cost a step, in operations of matrix products."""
    return 2 * (system.input_map.numel() + system.output_map.numel())


def scan_flops(system: DSFSystem, length: int) -> Flops:
    """Return what a kernel costs that walks the same steps without matrix products; as `recurrent_flops`."""
    return Flops(elementwise=recurrent_flops(system, length).total)
