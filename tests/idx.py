"""Small files in the idx format, named as those of Fashion-MNIST."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images (b, height, width) and labels (b,), bytes both, under a name such as "train"."""
    header = struct.pack(">4I", 2051, *images.shape)
    (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = struct.pack(">2I", 2049, len(labels))
    (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def write_random_images(folder: Path, train: int, test: int) -> None:
    """Write so many random images of 28 x 28, whose classes take turns."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder, name, images, np.arange(count, dtype=np.uint8) % 10)
