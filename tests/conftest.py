"""One thread, no network, no clock, fixed seeds: a test gives the same result alone, in company and on any machine."""

import gc
import os
import random
import tempfile

# Read by libraries when they are first imported, so set before anything below imports torch or a Hugging Face package.
# The cache is a folder of this process alone: it holds nothing of earlier runs, and two workers never share a file.
_cache = tempfile.TemporaryDirectory(prefix="dsf-models-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": _cache.name,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
}

import hypothesis  # noqa: E402
import numpy  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests import compatibility  # noqa: E402

torch.set_num_threads(1)
pytest_addoption, pytest_sessionfinish = compatibility.pytest_addoption, compatibility.pytest_sessionfinish
pytest_configure = compatibility.pytest_configure


class _TorchSeed:
    """Torch's global generator in the form that hypothesis seeds before every example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_seed = _TorchSeed()  # hypothesis keeps a weak reference only
hypothesis.register_random(_torch_seed)
hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    # How long an example takes depends on the machine, and says nothing about the code.
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _garbage_set_aside():
    """Trainer collects garbage many times a run, which takes a second each where modules by the thousand are alive."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    _cache.cleanup()
