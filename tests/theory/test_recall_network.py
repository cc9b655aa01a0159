"""The recall network of hand-set weights: exact, small, and broken by the loss of any of its parts.

Numeric test 2 of the theory of dynamic token selection; source: Nishikawa & Suzuki 2025 (arXiv 2405.19036), the
construction this project's own.
"""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from dsf_models import LRUForSequenceClassification as Network

ABLATION = {"words": 64, "pairs": 8, "rows": 256}


def recall(words, pairs, rows=8):
    """Return rows k_1 v_1 … k_P v_P q and their answers: distinct keys, any values, the query one of the keys."""
    keys = torch.stack([torch.randperm(words)[:pairs] for _ in range(rows)])
    values = torch.randint(0, words, (rows, pairs))
    asked = torch.randint(0, pairs, (rows, 1))
    context = torch.stack([keys, words + values], dim=-1).flatten(1)
    return torch.cat([context, 2 * words + keys.gather(1, asked)], dim=1), values.gather(1, asked)[:, 0]


@torch.no_grad()
def accuracy(model, ids, answers, **inputs):
    return float((model(ids, **inputs).logits.argmax(-1) == answers).double().mean())


def weights_that_are_not_zero(*modules):
    return sum(int((parameter.detach() != 0).sum()) for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("bits", [4, 6, 8, 10, 12, 14, 16])
def test_exact_for_every_vocabulary_and_number_of_pairs(bits):
    """Numeric test 2: accuracy exactly 1 for |W| = 2^4 … 2^16, with 44 log2 |W| + 1 weights, none above 2 log2 |W| - 1.

    They are those of the two networks; the two mixers have a number linear in log2 |W| too. Neither depends on the
    number of pairs; embedding and head hold the codes, and are counted apart.
    """
    model = Network.from_construction(2**bits)
    for pairs in (1, 2, 16, 300):
        assert accuracy(model, *recall(2**bits, min(pairs, 2**bits))) == 1.0
    networks = [model.model.input_mixer, model.model.layers[0].channel_mixer]
    assert weights_that_are_not_zero(*networks) == 44 * bits + 1
    assert (
        max(float(weight.detach().abs().max()) for network in networks for weight in network.parameters())
        == 2 * bits - 1
    )
    small = Network.from_construction(4)
    per_bit = weights_that_are_not_zero(*(block.mixer for block in small.model.layers)) / 2
    assert weights_that_are_not_zero(*(block.mixer for block in model.model.layers)) == per_bit * bits
    assert model.model.layers[1].channel_mixer is None
    assert weights_that_are_not_zero(model.score) == 2**bits * bits


def test_exact_for_five_thousand_pairs():
    model = Network.from_construction(2**13)
    assert accuracy(model, *recall(2**13, 5000, rows=1)) == 1.0


@pytest.mark.parametrize("words", [2, 3, 5, 100])
def test_any_number_of_words(words):
    assert accuracy(Network.from_construction(words), *recall(words, words, rows=64)) == 1.0
    with pytest.raises(ValueError, match="vocab_size=1: give at least two words"):
        Network.from_construction(1)


def one_sided():
    """Return the network without the pass from the end: the query, last, reaches no token before it."""
    return Network.from_construction(ABLATION["words"], bidirectional=False)


def without_delay():
    model = Network.from_construction(ABLATION["words"])
    model.model.layers[0].mixer.conv.weight.data[:] = torch.tensor([0.0, 1.0])
    return model


ABLATIONS = {
    "one-sided broadcast": one_sided,
    "no network between the mixers": lambda: Network.from_construction(64, channel_mixer_depth=[1, 0, 0]),
    "no network before the mixers": lambda: Network.from_construction(64, channel_mixer_depth=[0, 3, 0]),
    "no delay": without_delay,
}


@pytest.mark.parametrize("what", ABLATIONS)
def test_every_part_is_needed(what):
    """Numeric test 2: with any part broken, accuracy is at most that of guessing one of the values, 1/P."""
    ids, answers = recall(**ABLATION)
    assert accuracy(Network.from_construction(64), ids, answers) == 1.0
    # Three standard deviations above chance.
    chance = 1 / ABLATION["pairs"]
    assert accuracy(ABLATIONS[what](), ids, answers) <= chance + 3 * (chance / ABLATION["rows"]) ** 0.5


def test_a_causal_network_recalls_where_the_query_comes_first():
    """What one direction lacks is the query in time: put first, it reaches every pair, and the sum the last token."""
    ids, answers = recall(**ABLATION)
    model = one_sided()
    assert accuracy(model, torch.cat([ids[:, -1:], ids[:, :-1]], dim=1), answers) == 1.0
    assert accuracy(model, ids, answers) < 0.1


def test_it_is_a_model_like_every_other(tmp_path):
    """It saves and loads, and answers padded rows of different lengths."""
    model = Network.from_construction(32)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is Network
    short, long = recall(32, 3), recall(32, 20)
    for side in ("left", "right"):
        missing = long[0].shape[1] - short[0].shape[1]
        around = (missing, 0) if side == "left" else (0, missing)
        ids = torch.cat([torch.nn.functional.pad(short[0], around), long[0]])
        mask = torch.cat([torch.nn.functional.pad(torch.ones_like(short[0]), around), torch.ones_like(long[0])])
        assert accuracy(loaded, ids, torch.cat([short[1], long[1]]), attention_mask=mask) == 1.0
