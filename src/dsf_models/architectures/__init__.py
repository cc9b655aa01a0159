"""One file per architecture. Importing this package registers them all."""

from . import linear_attention, lru, s4d, s5, softmax_attention, ssd
from .linear_attention import *  # noqa: F403
from .lru import *  # noqa: F403
from .s4d import *  # noqa: F403
from .s5 import *  # noqa: F403
from .softmax_attention import *  # noqa: F403
from .ssd import *  # noqa: F403

__all__ = [
    *linear_attention.__all__,
    *lru.__all__,
    *s4d.__all__,
    *s5.__all__,
    *softmax_attention.__all__,
    *ssd.__all__,
]
