"""The benchmark's pairs are one model in two implementations: anything else would make their speeds incomparable."""

import pytest
import torch

from evaluation.benchmarks.peers import PAIRS, Shape, build_s6_and_mamba, largest_difference

SMALL = Shape(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_heads=4,
    head_dim=8,
    state_size=6,
    s6_state_size=5,
    expand=2,
    conv_kernel=4,
)


@pytest.mark.parametrize("architecture", sorted(PAIRS))
@pytest.mark.parametrize("length", [1, 3, 40, 130])
def test_a_pair_computes_the_same_logits(architecture: str, length: int) -> None:
    if architecture == "s6_mambapy":
        pytest.importorskip("mambapy")
    ours, peer = (model.eval() for model in PAIRS[architecture](SMALL, noise=0.3))
    assert largest_difference(ours, peer, torch.randint(SMALL.vocab_size, (2, length))) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"use_conv_bias": False},
        {"time_step_rank": 3},
        {"hidden_act": "gelu"},
        {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5, "hidden_act": "relu"},
    ],
    ids=str,
)
def test_every_option_of_mamba_has_its_like_in_s6(options: dict) -> None:
    ours, peer = (model.eval() for model in build_s6_and_mamba(SMALL, noise=0.3, **options))
    assert largest_difference(ours, peer, torch.randint(SMALL.vocab_size, (2, 40))) < 1e-5


def test_a_scan_that_is_not_installed_is_not_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.benchmarks.peers.is_mambapy_available", lambda: False)
    with pytest.raises(ImportError, match="pip install mambapy"):
        PAIRS["s6_mambapy"](SMALL)
