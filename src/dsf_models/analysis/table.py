"""The registered architectures as a table."""

from ..backbone import Architecture, get_architecture, list_architectures
from .accounting import has_bounded_state

__all__ = ["HEADER", "architecture_rows", "markdown_table", "text_table"]

HEADER = ("architecture", "Λ_i", "B_i", "C_i", "D_i", "N", "time-invariant", "cost in length")


def architecture_rows() -> list[tuple[str, ...]]:
    """Return a row for each registered architecture, under `HEADER`."""
    return [_row(get_architecture(name)) for name in list_architectures()]


def _row(architecture: Architecture) -> tuple[str, ...]:
    chosen = (architecture.name, architecture.transition, architecture.input_matrix, architecture.output_matrix)
    if architecture.mixer_class is None:
        # Every layer has the mixer of another architecture.
        return (*chosen, *["as in the layer"] * 4)
    return (
        *chosen,
        architecture.feed_through,
        architecture.state_size,
        "yes" if architecture.time_invariant else "no",
        _complexity(architecture),
    )


def _complexity(architecture: Architecture) -> str:
    """Return how the cost of a sequence grows: with its square where each token is kept and read by all later ones."""
    return "linear" if has_bounded_state(architecture.config_class()) else "quadratic"


def text_table(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """Return rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEADER, code: bool = True) -> str:
    """Return rows as a table in Markdown, the first column as code where that is asked for."""
    cells = [header, ("---",) * len(header), *((f"`{row[0]}`" if code else row[0], *row[1:]) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells)
