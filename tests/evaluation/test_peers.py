"""The benchmark's pairs are one model in two implementations: anything else would make their speeds incomparable."""

import pytest
import torch

from dsf_models.analysis import state_bytes
from evaluation.benchmarks.peers import PEERS, Shape, build_pair, build_zoo, largest_difference, ssd_of_equal_state

SMALL = Shape(vocab_size=40, hidden_size=32, num_hidden_layers=2)


@pytest.mark.parametrize("peer", PEERS)
def test_a_pair_computes_the_same_logits(peer: str) -> None:
    if "mambapy" in peer:
        pytest.importorskip("mambapy")
    ours, theirs = build_pair(peer, SMALL, noise=0.3)
    for length in (1, 3, 40, 130):
        assert largest_difference(ours, theirs, torch.randint(SMALL.vocab_size, (2, length))) < 1e-5


def test_a_scan_that_is_not_installed_is_not_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.benchmarks.peers.is_mambapy_available", lambda: False)
    with pytest.raises(ImportError, match="pip install mambapy"):
        build_pair("Mamba with mambapy", SMALL)


@pytest.mark.parametrize("name", ["linear_attention", "gla", "rg_lru", "s6"])
def test_the_ssd_beside_an_architecture_has_its_width_and_state(name: str) -> None:
    config = build_zoo(name, SMALL).config
    twin = ssd_of_equal_state(config).config
    assert twin.inner_size == config.inner_size
    assert state_bytes(twin, 64) == pytest.approx(state_bytes(config, 64), rel=0.1)
