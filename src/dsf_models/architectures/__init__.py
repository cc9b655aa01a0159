"""One file per architecture. Importing this package registers them all."""

from . import (
    gated_deltanet,
    gla,
    hybrid,
    linear_attention,
    lru,
    lstm,
    normalized_attention,
    qlstm,
    rg_lru,
    s4,
    s4d,
    s5,
    s6,
    softmax_attention,
    ssd,
    taylor_attention,
)
from .gated_deltanet import *  # noqa: F403
from .gla import *  # noqa: F403
from .hybrid import *  # noqa: F403
from .linear_attention import *  # noqa: F403
from .lru import *  # noqa: F403
from .lstm import *  # noqa: F403
from .normalized_attention import *  # noqa: F403
from .qlstm import *  # noqa: F403
from .rg_lru import *  # noqa: F403
from .s4 import *  # noqa: F403
from .s4d import *  # noqa: F403
from .s5 import *  # noqa: F403
from .s6 import *  # noqa: F403
from .softmax_attention import *  # noqa: F403
from .ssd import *  # noqa: F403
from .taylor_attention import *  # noqa: F403

__all__ = [
    *gated_deltanet.__all__,
    *gla.__all__,
    *hybrid.__all__,
    *linear_attention.__all__,
    *lru.__all__,
    *lstm.__all__,
    *normalized_attention.__all__,
    *qlstm.__all__,
    *rg_lru.__all__,
    *s4.__all__,
    *s4d.__all__,
    *s5.__all__,
    *s6.__all__,
    *softmax_attention.__all__,
    *ssd.__all__,
    *taylor_attention.__all__,
]
