"""What one trained filter layer cannot select, two can; a fixed shift is no selection.

Numeric test 3 of the theory of dynamic token selection; source: Nishikawa & Suzuki 2025 (arXiv 2405.19036), which
proves what networks of two layers can express; these trained ones and their sizes are this project's own.
"""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from dsf_models import LRUConfig, LRUForSequenceClassification, LRUForTokenClassification
from dsf_models.tasks import IGNORE_INDEX

RELU = {"channel_mixer": "mlp", "hidden_act": "relu", "mlp_bias": True, "use_cache": False}


def recall(generator, rows, words=8, pairs=3):
    """Return rows k_1 v_1 … k_P v_P q and their answers: distinct keys, any values, the query one of the keys."""
    keys = torch.rand(rows, words, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(0, words, (rows, pairs), generator=generator)
    asked = torch.randint(0, pairs, (rows, 1), generator=generator)
    context = torch.stack([keys, words + values], dim=-1).flatten(1)
    return torch.cat([context, keys.gather(1, asked)], dim=1), values.gather(1, asked)[:, 0]


def copying(generator, rows, shortest, longest=8, words=16):
    """Return rows x_1 … x_V SEP x_1 … x_{V-1}, then padding, and labels: x_1 … x_V from SEP on; V is uniform."""
    length = torch.randint(shortest, longest + 1, (rows, 1), generator=generator)
    string = torch.randint(0, words, (rows, longest), generator=generator)
    given = torch.cat([torch.full((rows, 1), words), string[:, :-1]], dim=1)
    ids = torch.full((rows, 2 * longest), words + 1)
    labels = torch.full((rows, 2 * longest), IGNORE_INDEX)
    row, place = (torch.arange(longest) < length).nonzero(as_tuple=True)
    second = place + length[row, 0]
    ids[row, place], ids[row, second], labels[row, second] = string[row, place], given[row, place], string[row, place]
    return ids, labels


def trained_accuracy(model, draw, seed, steps, rate=4e-3):
    """Train on fresh rows of `draw(generator, rows)`; return the accuracy on 2000 others."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        ids, labels = draw(generator, 64)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    ids, labels = draw(torch.Generator().manual_seed(10_000 + seed), 2000)
    with torch.no_grad():
        right = model(input_ids=ids).logits.argmax(-1) == labels
    return float(right[labels != IGNORE_INDEX].double().mean())


def recaller(seed, layers, **fields):
    torch.manual_seed(seed)
    config = {"num_hidden_layers": layers, "intermediate_size": 64, "hidden_size": 32, "state_size": 32, **fields}
    return LRUForSequenceClassification(LRUConfig(vocab_size=16, num_labels=8, bidirectional=True, **config, **RELU))


def body_size(model):
    return sum(parameter.numel() for parameter in model.model.layers.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_layer_fails_and_two_succeed(seed):
    """Numeric test 3: recall by two-sided LRUs with relu networks, on the same rows and from the same seed.

    Three pairs of 8 keys and 8 values. Who reads the values but compares no key is right in 1/3 + 2/3 · 1/8 = 0.42 of
    the rows, a little more with the value shown most often. One layer stays there, with as many weights as the two
    layers have and with a deep network of twice as many; two layers leave few errors.
    """
    two = recaller(seed, layers=2)
    wide = recaller(seed, layers=1, intermediate_size=258)
    deep = recaller(seed, layers=1, intermediate_size=128, channel_mixer_depth=3)
    assert body_size(two) <= body_size(wide) <= 1.01 * body_size(two)
    assert body_size(deep) > 1.9 * body_size(two)
    assert trained_accuracy(two, recall, seed, steps=800) > 0.85
    for one in (wide, deep):
        assert trained_accuracy(one, recall, seed, steps=800) < 0.55


def copier(seed, layers):
    torch.manual_seed(seed)
    config = {"num_hidden_layers": layers, "intermediate_size": 128, "hidden_size": 64, "state_size": 64}
    return LRUForTokenClassification(LRUConfig(vocab_size=18, num_labels=16, **config, **RELU))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_copying_needs_selection_where_the_length_varies(seed):
    """Numeric test 3, the control: one causal layer copies strings of 8 words, which is the filter δ_{t-8}.

    With the same training it copies strings of 3 to 8 words much less well, and two layers do better at that.
    """
    steps = 600
    fixed = trained_accuracy(copier(seed, 1), lambda *a: copying(*a, shortest=8), seed, steps)
    one, two = (trained_accuracy(copier(seed, n), lambda *a: copying(*a, shortest=3), seed, steps) for n in (1, 2))
    assert fixed > 0.995
    assert one < 0.87
    assert two > one + 0.08
