#!/usr/bin/env python3
"""Renews the table of architectures in README.md from the registry: run it where dsf_models is installed."""

from pathlib import Path

from dsf_models.analysis import architecture_rows, markdown_table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- architectures: made by scripts/readme_table.py -->\n", "<!-- end of architectures -->"


def main() -> None:
    """Put the table between the two markers."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    table = markdown_table(architecture_rows())
    README.write_text(f"{before}{BEGIN}{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
