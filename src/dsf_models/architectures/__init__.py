"""One file per architecture. Importing this package registers them all."""

from . import linear_attention, s6, softmax_attention, ssd
from .linear_attention import *  # noqa: F403
from .s6 import *  # noqa: F403
from .softmax_attention import *  # noqa: F403
from .ssd import *  # noqa: F403

__all__ = [*linear_attention.__all__, *s6.__all__, *softmax_attention.__all__, *ssd.__all__]
