#!/usr/bin/env python3
"""Fetch 3,186 primate DNA sequences around splice junctions: data/splice.csv, with the columns sequence and label.

Each sequence has 60 nucleotides and the label ei (a donor: mostly GT at positions 30 and 31, counted from 0), ie (an
acceptor: mostly AG at 28 and 29) or n (neither). It is the data set DNA of the R package mlbench, from the UCI
repository, as Debian ships it; it is no part of this repository. Needs the PyPI package rdata.
"""

import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.packages import debian_file

PACKAGE = "r-cran-mlbench"
MEMBER = "usr/lib/R/site-library/mlbench/data/DNA.rda"
SHA256 = "df941ad89a49f705a29bf38e52c91dc34029539cedb13fa24f803f1224278c9e"
NUCLEOTIDES = {"100": "A", "010": "C", "001": "G", "000": "T"}


def sequences() -> Iterator[tuple[str, str]]:
    """Sequence and label of every row of the data set, in its order."""
    import rdata

    with tempfile.NamedTemporaryFile(suffix=".rda") as file:
        file.write(debian_file(PACKAGE, MEMBER, SHA256))
        file.flush()
        table = rdata.read_rda(file.name, default_encoding="ascii")["DNA"]
    for *bits, label in table.astype(str).itertuples(index=False):
        yield "".join(NUCLEOTIDES["".join(bits[i : i + 3])] for i in range(0, len(bits), 3)), label


def write(target: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write sequences as CSV, the whole file or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "label"])
        writer.writerows(rows)
    unfinished.replace(target)


def main() -> None:
    """Command line: `splice.py [FILE]`."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data/splice.csv")
    rows = list(sequences())
    write(target, rows)
    print(f"{target}: {len(rows):,} sequences.")


if __name__ == "__main__":
    main()
