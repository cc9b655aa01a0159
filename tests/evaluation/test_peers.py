"""The benchmark's pairs are one model in two implementations: anything else would make their speeds incomparable."""

import pytest
import torch

from evaluation.benchmarks.peers import PAIRS, Shape, largest_difference

SMALL = Shape(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_heads=4, head_dim=8, state_size=6, expand=2, conv_kernel=4
)


@pytest.mark.parametrize("architecture", sorted(PAIRS))
@pytest.mark.parametrize("length", [1, 3, 40, 130])
def test_a_pair_computes_the_same_logits(architecture: str, length: int) -> None:
    ours, peer = (model.eval() for model in PAIRS[architecture](SMALL, noise=0.3))
    assert largest_difference(ours, peer, torch.randint(SMALL.vocab_size, (2, length))) < 1e-5
