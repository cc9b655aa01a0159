"""Images as rows of tokens: the idx format, padding, splits that share nothing, and damage."""

from pathlib import Path

import numpy as np
import pytest

from dsf_models.tasks.images import VALIDATION_IMAGES, ImagesError, fashion_mnist, pixel_tokens, read_idx
from tests.idx import write_random_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random_images(tmp_path, 12, 3)
    return tmp_path


def test_an_image_stands_in_the_middle_of_its_row() -> None:
    image = np.full((1, 28, 28), 7, np.uint8)
    image[0, 0, 0] = 9
    row = pixel_tokens(image).reshape(32, 32)
    assert row[2, 2] == 9
    assert row[2:30, 2:30].sum() == row.sum() == 7 * 28 * 28 + 2


def test_a_token_is_the_mean_of_a_square() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    padded = np.pad(images.astype(int), ((0, 0), (2, 2), (2, 2)))
    found = pixel_tokens(images, 4).reshape(2, 8, 8)
    assert found[1, 3, 5] == padded[1, 12:16, 20:24].sum() // 16
    assert found[0, 0, 0] == padded[0, :4, :4].sum() // 16
    np.testing.assert_array_equal(pixel_tokens(images, 1), padded.reshape(2, -1))


def test_splits_share_no_image(folder: Path) -> None:
    images = read_idx(folder / "train-images-idx3-ubyte.gz", "images")
    train, validation, test = (fashion_mnist(split, folder) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (6, 6, 3)  # half of so few; 5,000 of the real ones
    assert VALIDATION_IMAGES == 5_000
    assert train[5]["input_ids"] == pixel_tokens(images[5:6])[0].tolist()
    assert validation[0]["input_ids"] == pixel_tokens(images[6:7])[0].tolist()
    assert test["labels"][:] == [0, 1, 2]
    assert len(fashion_mnist("test", folder, 2)) == 2


def test_damage_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="did you mean test"):
        fashion_mnist("tset", folder)
    with pytest.raises(ValueError, match="pooling=3: use a divisor of 32"):
        fashion_mnist("test", folder, pooling=3)
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    with pytest.raises(ImagesError, match="holds no images in the idx format"):
        read_idx(labels, "images")
    labels.write_bytes(labels.read_bytes()[:-4])
    with pytest.raises(ImagesError, match="is damaged"):
        fashion_mnist("test", folder)
    labels.unlink()
    with pytest.raises(ImagesError, match=r"does not exist: fetch the images with scripts/fashion_mnist\.py"):
        fashion_mnist("test", folder)


@pytest.mark.slow
def test_the_package_holds_what_its_papers_say() -> None:
    from scripts.fashion_mnist import fetch

    folder = fetch()
    counts = {
        split: np.bincount(fashion_mnist(split, folder)["labels"][:]) for split in ("train", "validation", "test")
    }
    assert (counts["train"] + counts["validation"]).tolist() == [6000] * 10
    assert counts["test"].tolist() == [1000] * 10
