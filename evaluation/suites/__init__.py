"""What models are evaluated on: a task of the zoo, or one of the suites by name."""

from evaluation.suites.base import Suite
from evaluation.suites.registry import SUITES, load_suite

__all__ = ["SUITES", "Suite", "load_suite"]
