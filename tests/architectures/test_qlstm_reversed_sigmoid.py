"""qLSTM's two sigmoids: the identity behind the reversed one, and the symmetry that makes them one at a = 1."""

import pytest
import torch
import torch.nn.functional as F

from dsf_models import QLSTMConfig, QLSTMForCausalLM
from dsf_models.architectures.qlstm import QLSTMMixer
from dsf_models.backbone import TokenLayout
from tests.contract import assert_close, fresh, sequences

FORGET = ("gates_proj.weight", "gates_proj.bias")


def mixer(**fields):
    config = QLSTMConfig(hidden_size=4, expand=1, conv_kernel=0, **fields)
    return QLSTMMixer(config, 0).double()


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.5])
def test_the_transition_of_ssd_is_a_reversed_sigmoid(exponent):
    """exp(-a softplus(x)) = σ(-x)^a."""
    x = torch.linspace(-40, 40, 401, dtype=torch.float64)
    reversed_mixer = mixer(reversed_sigmoid=True)
    reversed_mixer.alpha.data.fill_(exponent)
    expected = x.neg().sigmoid() ** exponent
    torch.testing.assert_close(reversed_mixer.decay(x), expected, rtol=1e-13, atol=0.0)
    small = x[x < 15]  # beyond, softplus is the identity in torch
    torch.testing.assert_close(reversed_mixer.decay(small), (-exponent * F.softplus(small)).exp(), rtol=1e-13, atol=0.0)


def test_a_learned_exponent_starts_at_the_frozen_one():
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    learned, frozen = mixer(reversed_sigmoid=True), mixer(reversed_sigmoid=True, learn_exponent=False)
    learned.init_parameters()
    torch.testing.assert_close(learned.decay(x), frozen.decay(x), rtol=1e-14, atol=0.0)
    assert torch.equal(frozen.decay(x), mixer().decay(-x))
    assert "alpha" in dict(learned.named_parameters())
    assert "alpha" not in dict(frozen.named_parameters())


def test_a_negative_exponent_counts_as_zero():
    reversed_mixer = mixer(reversed_sigmoid=True)
    reversed_mixer.alpha.data.fill_(-0.5)
    decay = reversed_mixer.decay(torch.linspace(-5, 5, 11, dtype=torch.float64))
    assert torch.equal(decay, torch.ones_like(decay))


def with_forget_gates_negated(weights, inner):
    """Return (W_f, b_f) -> -(W_f, b_f) of a state dict: the forget gates are the first rows."""
    negated = {name: value.clone() for name, value in weights.items()}
    for name, value in negated.items():
        if name.endswith(FORGET):
            value[:inner].neg_()
    return negated


def trained(model, steps):
    """Return the losses of AdamW steps that decay every parameter."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ids = torch.stack(sequences((12, 12)))
    losses = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_negated_forget_gates_turn_one_sigmoid_into_the_other():
    """At a = 1 outputs and a whole training run are equal, to the last bit: nothing but the names differs."""
    plain = fresh("qlstm", "default", reversed_sigmoid=False).double()
    other = fresh("qlstm", "default", reversed_sigmoid=True, learn_exponent=False).double()
    inner = plain.config.inner_size
    other.load_state_dict(with_forget_gates_negated(plain.state_dict(), inner))
    ids = torch.stack(sequences((12, 12)))
    assert torch.equal(other(ids).logits, plain(ids).logits)
    losses = trained(plain, 30)
    assert trained(other, 30) == losses
    assert losses[-1] < 0.9 * losses[0]
    for name, value in with_forget_gates_negated(plain.state_dict(), inner).items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_learned_exponent_breaks_the_symmetry():
    model = fresh("qlstm", "default", reversed_sigmoid=True).double()
    trained(model, 3)
    assert all(parameter.grad.abs() > 0 for name, parameter in model.named_parameters() if name.endswith("alpha"))


@torch.no_grad()
def test_the_minimal_form_is_the_equation_of_the_paper():
    """Λ_i = diag(σ(W_f u_i)), B_i = diag(σ(W_i u_i)) W_u, C_i = diag(σ(W_o u_i)) at biases of zero."""
    model = fresh("qlstm", "minimal").double()
    assert isinstance(model, QLSTMForCausalLM)
    layer = model.model.layers[0].mixer
    layer.gates_proj.bias.zero_()
    assert set(dict(layer.named_parameters())) == {"in_proj.weight", "out_proj.weight", *FORGET}
    u = torch.randn(2, 9, model.config.hidden_size, dtype=torch.float64)
    W_f, W_i, W_o = layer.gates_proj.weight.chunk(3)
    h, outputs = torch.zeros(2, model.config.hidden_size, dtype=torch.float64), []
    for u_i in u.unbind(1):
        h = (u_i @ W_f.T).sigmoid() * h + (u_i @ W_i.T).sigmoid() * (u_i @ layer.in_proj.weight.T)
        outputs.append((u_i @ W_o.T).sigmoid() * h @ layer.out_proj.weight.T)
    assert_close(layer(u, TokenLayout(None))[0], torch.stack(outputs, 1), 1e-12)
