"""The version of the package, which every configuration file states."""

__version__ = "0.1.0"
