#!/usr/bin/env python3
"""Fetch Fashion-MNIST: 70,000 grey images of clothes in ten classes, from Debian's package dataset-fashion-mnist.

The files go to the user's cache, outside the repository, of which they are no part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsf_models.tasks.images import image_folder
from scripts.packages import debian_file

PACKAGE = "dataset-fashion-mnist"
MEMBERS = "usr/share/datasets/fashion-mnist/"
FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""SHA-256 of each file."""


def fetch() -> Path:
    """Unpack the four files of images and labels, and return their folder."""
    folder = image_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in FILES.items():
        if not (folder / name).is_file():
            unfinished = folder / f"{name}.unfinished"
            unfinished.write_bytes(debian_file(PACKAGE, MEMBERS + name, sha256))
            unfinished.replace(folder / name)
    return folder


if __name__ == "__main__":
    print(fetch())
