"""Images as rows of tokens: Fashion-MNIST from the idx files that Debian's package dataset-fashion-mnist ships.

A token is a grey level, 0..255, in the order of reading; 28 x 28 pixels are padded with 0 to 32 x 32, a row of 1,024
tokens, which is the shape of the image task of Y. Tay et al., "Long Range Arena", arXiv:2011.04006.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747.

Letters: b images, t positions.
"""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from dsf_models.errors import require, require_known

IMAGE_SPLITS = ("train", "validation", "test")
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip
"""Names of the classes 0..9."""
VOCAB_SIZE, SIDE = 256, 32
VALIDATION_IMAGES = 5_000
"""The last of the 60,000 training images, which select the weights."""
_FILES = {"train": "train", "validation": "train", "test": "t10k"}
_MAGIC = {"images": 2051, "labels": 2049}


class ImagesError(ValueError):
    """Files of images that are missing or damaged; the message names the file and the remedy."""


def image_folder() -> Path:
    """The folder of the user's cache that scripts/fashion_mnist.py unpacks the files into."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsf_models" / "fashion-mnist"


def fashion_mnist(
    split: str, folder: Path | None = None, num_examples: int | None = None, *, pooling: int = 1
) -> Dataset:
    """Fashion-MNIST as rows of tokens.

    Args:
        split: "train" (55,000 images), "validation" (the last 5,000 of the training files) or "test" (10,000).
        folder: holds the four idx files, compressed as they are shipped. Default: `image_folder()`.
        num_examples: the first so many; all by default.
        pooling: side of the squares of pixels whose mean is one token; 1 takes each pixel for itself.

    Returns:
        `input_ids` (1024 / pooling² tokens of 0..255) and `labels` (0..9).

    Raises:
        ValueError: an unknown split, or squares that do not fill the 32 pixels of a side.
        ImagesError: a file is missing or damaged.
    """
    require_known("split", split, IMAGE_SPLITS)
    require(pooling > 0 and SIDE % pooling == 0, "pooling", pooling, f"use a divisor of {SIDE}.")
    folder = image_folder() if folder is None else folder
    images = read_idx(folder / f"{_FILES[split]}-images-idx3-ubyte.gz", "images")
    labels = read_idx(folder / f"{_FILES[split]}-labels-idx1-ubyte.gz", "labels")
    if len(images) != len(labels):
        raise ImagesError(f"{folder} holds {len(images)} images and {len(labels)} labels: fetch its files again.")
    held_out = min(VALIDATION_IMAGES, len(images) // 2)
    part = {"train": slice(None, -held_out), "validation": slice(-held_out, None), "test": slice(None)}[split]
    chosen = slice(None, num_examples)
    ids = pixel_tokens(images[part][chosen], pooling)
    return Dataset.from_dict({"input_ids": ids, "labels": labels[part][chosen].astype(np.int64)})


def pixel_tokens(images: NDArray[np.uint8], pooling: int = 1) -> NDArray[np.int32]:
    """Images (b, height, width) of at most 32 x 32 as tokens (b, 1024 / pooling²), black around them."""
    above, left = (SIDE - images.shape[1]) // 2, (SIDE - images.shape[2]) // 2
    padded = np.zeros((len(images), SIDE, SIDE), np.int32)
    padded[:, above : above + images.shape[1], left : left + images.shape[2]] = images
    squares = padded.reshape(len(images), SIDE // pooling, pooling, SIDE // pooling, pooling)
    return squares.mean((2, 4)).astype(np.int32).reshape(len(images), -1)


def read_idx(file: Path, kind: str) -> NDArray[np.uint8]:
    """Read a compressed idx file: a big-endian header (magic number, sizes of the axes), then bytes.

    Args:
        file: its path.
        kind: "images", three axes, or "labels", one.

    Raises:
        ImagesError: it is missing, damaged or of another kind.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except FileNotFoundError as error:
        raise ImagesError(
            f"{file} does not exist: fetch the images with scripts/fashion_mnist.py, or install Debian's package "
            "dataset-fashion-mnist and name its folder."
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise ImagesError(f"{file} is damaged ({error}): fetch it again.") from error
    axes = 3 if kind == "images" else 1
    header = 4 * (1 + axes)
    magic, *sizes = struct.unpack(f">{1 + axes}I", content[:header].ljust(header, b"\0"))
    if magic != _MAGIC[kind] or len(content) - header != int(np.prod(sizes)):
        raise ImagesError(f"{file} holds no {kind} in the idx format: fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
