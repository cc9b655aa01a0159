"""Configuration files of earlier versions, brought up to date field by field."""

from collections.abc import Callable, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from ..errors import require
from ..version import __version__

__all__ = ["MIGRATIONS", "VERSION_FIELD", "Migration", "is_newer", "migrate", "read_version"]

VERSION_FIELD = "dsf_version"
"""Field of config.json that holds the version of dsf_models that wrote the file."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: dict[str, Migration] = {}
"""By the version that changed the fields: a pure function from the fields before it to those since.

A saved file holds every field, so that a changed default needs no entry; a renamed field, or one that came to mean
something else, does. A file without a version comes before all of them.
"""


def migrate(fields: Mapping[str, Any], migrations: Mapping[str, Migration] | None = None) -> dict[str, Any]:
    """Return the fields of a configuration file as they are called today.

    Args:
        fields: what the file holds; left as it is.
        migrations: the changes to apply, by the version that made them. Default: `MIGRATIONS`.

    Raises:
        ValueError: the file's version is no version.
    """
    found, migrations = dict(fields), MIGRATIONS if migrations is None else migrations
    written = read_version(VERSION_FIELD, found.get(VERSION_FIELD, "0"))
    for version in sorted(map(Version, migrations)):
        if written < version:
            found = migrations[str(version)](dict(found))
    return found


def is_newer(version: object) -> bool:
    """Return whether a file's version is later than that of this package.

    Raises:
        ValueError: it is no version.
    """
    return read_version(VERSION_FIELD, version) > Version(__version__)


def read_version(field: str, version: object) -> Version:
    """Return the version that a file states in a field.

    Raises:
        ValueError: it is no version.
    """
    remedy = f"must be a version, such as {__version__!r}; leave {field} out if it is not known."
    require(isinstance(version, str), field, version, remedy)
    try:
        return Version(version)
    except InvalidVersion:
        raise ValueError(f"{field}={version!r}: {remedy}") from None
