#!/usr/bin/env python3
"""Fetch Fashion-MNIST: 70,000 grey images of clothes in ten classes, from Debian's package dataset-fashion-mnist.

The files go to the user's cache, outside the repository, of which they are no part.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

from dsf_models.tasks.images import image_folder

PACKAGE, VERSION = "dataset-fashion-mnist", "0.0~git20200523.55506a9-1"
SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
MEMBERS = "usr/share/datasets/fashion-mnist/"


def package() -> Path:
    """The package's file, downloaded once by apt and checked every time.

    Raises:
        SystemExit: apt-get cannot fetch it, or it is another one than the hash says.
    """
    cache = image_folder().parent
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob(f"{PACKAGE}_*.deb"))
    if not found:
        try:
            subprocess.run(
                ["apt-get", "download", "-q", f"{PACKAGE}={VERSION}"], cwd=cache, check=True, stdout=subprocess.DEVNULL
            )
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"apt-get cannot fetch {PACKAGE} ({error}): run `apt-get update` first, on Debian 12 or later.")
        found = sorted(cache.glob(f"{PACKAGE}_*.deb"))
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{found[0]} has the SHA-256 {digest} and not {SHA256}: remove it and try again.")
    return found[0]


def fetch() -> Path:
    """Unpack the four files of images and labels.

    Returns:
        Their folder.
    """
    folder = image_folder()
    if not (folder / "t10k-labels-idx1-ubyte.gz").is_file():
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package()], check=True, capture_output=True).stdout
        folder.mkdir(exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive.getmembers():
                name = member.name.removeprefix("./")
                if member.isfile() and name.startswith(MEMBERS):
                    unfinished = folder / (Path(name).name + ".unfinished")
                    unfinished.write_bytes(archive.extractfile(member).read())
                    unfinished.replace(folder / Path(name).name)
    return folder


if __name__ == "__main__":
    print(fetch())
