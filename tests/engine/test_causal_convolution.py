"""The short convolution against torch's, in one piece, in windows and across documents."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from dsf_models.engine import causal_convolution

TAPS, WIDTH = 4, 5


def draw(length, taps=TAPS, bias=True, batch=2, dtype=torch.float64):
    """Return inputs of t steps behind a window of random past ones, weight and bias."""
    inputs = torch.randn(batch, taps - 1 + length, WIDTH, dtype=dtype)
    return inputs, torch.randn(taps, WIDTH, dtype=dtype), torch.randn(WIDTH, dtype=dtype) if bias else None


def torch_convolution(inputs, weight, bias, starts=None):
    y = F.conv1d(inputs.transpose(1, 2), weight.t()[:, None], bias, groups=WIDTH)
    return y.transpose(1, 2)


def document_by_document(inputs, weight, bias, starts):
    """Convolve every document of every row on its own: the first behind the window, the others behind zeros."""
    taps, length = weight.shape[0], starts.shape[1]
    rows = []
    for row, flags in zip(inputs, starts, strict=True):
        borders = [0, *(time for time in flags.nonzero().flatten().tolist() if time), length]
        past = torch.zeros_like(row[: taps - 1]) if flags[0] else row[: taps - 1]
        pieces = []
        for start, end in itertools.pairwise(borders):
            document = torch.cat([past, row[taps - 1 + start : taps - 1 + end]])
            pieces.append(torch_convolution(document[None], weight, bias)[0])
            past = torch.zeros_like(past)
        rows.append(torch.cat(pieces))
    return torch.stack(rows)


def outputs_and_gradients(function, inputs, weight, bias, *rest):
    leaves = [x.clone().requires_grad_() for x in (inputs, weight, bias) if x is not None]
    y = function(*leaves, *([None] * (3 - len(leaves))), *rest)
    generator = torch.Generator().manual_seed(1)
    objective = (y.double() * torch.randn(y.shape, generator=generator).double()).sum()
    return y, *torch.autograd.grad(objective, leaves)


def assert_same(actual, expected):
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
def test_equals_torch(length, taps, bias):
    arguments = draw(length, taps, bias)
    assert_same(
        outputs_and_gradients(causal_convolution, *arguments), outputs_and_gradients(torch_convolution, *arguments)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 17])
def test_documents_are_separate_sequences(length, taps, bias):
    arguments = draw(length, taps, bias, batch=4)
    starts = torch.rand(4, length) < 0.3
    starts[0], starts[1], starts[2, 0] = False, True, True
    assert_same(
        outputs_and_gradients(causal_convolution, *arguments, starts),
        outputs_and_gradients(document_by_document, *arguments, starts),
    )


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("documents", [False, True])
def test_gradients_against_finite_differences(length, documents):
    arguments = [x.requires_grad_() for x in draw(length)]
    starts = torch.rand(2, length) < 0.4 if documents else None
    assert torch.autograd.gradcheck(lambda *x: causal_convolution(*x, starts), arguments)


def test_a_window_continues_the_sequence():
    inputs, weight, bias = draw(17)
    whole = causal_convolution(inputs, weight, bias)
    pieces = [
        causal_convolution(inputs[:, start : end + TAPS - 1], weight, bias)
        for start, end in [(0, 1), (1, 2), (2, 9), (9, 17)]
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("documents", [False, True])
def test_half_precision(dtype, length, documents):
    inputs, weight, bias = draw(length, dtype=dtype)
    starts = torch.rand(2, length) < 0.4 if documents else None
    wide = outputs_and_gradients(causal_convolution, inputs.double(), weight.double(), bias.double(), starts)
    for value, reference in zip(
        outputs_and_gradients(causal_convolution, inputs, weight, bias, starts), wide, strict=True
    ):
        assert value.dtype == dtype
        assert (value.double() - reference).norm() <= 2 * torch.finfo(dtype).eps * reference.norm()


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("documents", [False, True])
def test_half_precision_inputs_with_float32_weights_as_under_autocast(length, documents):
    inputs, weight, bias = draw(length, dtype=torch.float32)
    starts = torch.rand(2, length) < 0.4 if documents else None
    y, *gradients = outputs_and_gradients(causal_convolution, inputs.bfloat16(), weight, bias, starts)
    assert y.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]


def test_inputs_of_any_strides():
    arguments = inputs, weight, bias = draw(9)
    strided = inputs.transpose(1, 2).contiguous().transpose(1, 2), weight.t().contiguous().t(), bias
    assert_same(
        outputs_and_gradients(causal_convolution, *strided),
        outputs_and_gradients(torch_convolution, *arguments),
    )


def test_no_graph_without_gradients():
    assert causal_convolution(*draw(9)).grad_fn is None


@pytest.mark.parametrize("documents", [False, True])
def test_compiles_without_graph_breaks(documents):
    arguments = draw(9)
    starts = torch.rand(2, 9) < 0.4 if documents else None
    torch.compiler.reset()
    compiled = torch.compile(causal_convolution, fullgraph=True, backend="eager")
    assert_same(
        outputs_and_gradients(compiled, *arguments, starts),
        outputs_and_gradients(causal_convolution, *arguments, starts),
    )
