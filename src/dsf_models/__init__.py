"""dsf_models: sequence models as choices of (Λ, B, C, D) in one equation.

    h_i = Λ_i h_{i-1} + B_i u_i        y_i = C_i h_i + D_i u_i

Importing the package registers every architecture with transformers' Auto classes.
"""

from . import architectures
from .architectures import *  # noqa: F403
from .backbone import DSFConfig, DSFMixer, list_architectures, lora_config
from .errors import NotADynamicalSystemError
from .filters import FilterSystem
from .system import DSFSystem, SoftmaxSystem
from .version import __version__

__all__ = [
    "DSFConfig",
    "DSFMixer",
    "DSFSystem",
    "FilterSystem",
    "NotADynamicalSystemError",
    "SoftmaxSystem",
    "__version__",
    "list_architectures",
    "lora_config",
    *architectures.__all__,
]
