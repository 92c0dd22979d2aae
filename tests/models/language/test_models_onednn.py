"""Linear layers by oneDNN compute what the same layers compute in float64, and so do their derivatives."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.models.language.onednn import OneDNNConv1D, OneDNNLinear, round_up, use_onednn

LAYERS = {
    "linear": lambda: nn.Linear(24, 40),
    "without bias": lambda: nn.Linear(24, 40, bias=False),
    "as in GPT-2": lambda: Conv1D(40, 24),
}


def pair(kind):
    """A layer by oneDNN, and the same in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = LAYERS[kind]()
    plain = copy.deepcopy(layer).double()
    use_onednn(layer)
    return layer, plain


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()


def derivatives(layer, x):
    """Outputs, first derivatives, and the derivatives of their squares."""
    outputs = layer(x)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(outputs.tanh().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), wanted, materialize_grads=True)
    return outputs, *first, *second


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(512,), (20, 31), (3, 7)], ids=["512 rows", "20 × 31 rows", "21 rows"])
def test_values_and_two_derivatives_are_those_of_float64(kind, shape):
    layer, plain = pair(kind)
    found = derivatives(layer, inputs(*shape, 24))
    expected = derivatives(plain, inputs(*shape, 24, dtype=torch.float64))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype is torch.float32
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_only_what_needs_a_gradient_gets_one():
    layer, _ = pair("linear")
    layer.requires_grad_(False)
    x = inputs(600, 24)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(600, -1))
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(40, -1), rtol=1e-4, atol=1e-4)


def test_few_rows_other_dtypes_and_mixed_precision_are_left_to_torch():
    layer, _ = pair("linear")
    few = inputs(511, 24)
    assert torch.equal(layer(few), nn.functional.linear(few, layer.weight, layer.bias))
    many = inputs(600, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(many).dtype is torch.bfloat16
    double = layer.double()
    exact = inputs(600, 24, dtype=torch.float64)
    assert torch.equal(double(exact), nn.functional.linear(exact, double.weight, double.bias))


def test_layers_stay_what_they_were():
    model = nn.Sequential(nn.Linear(4, 4), Conv1D(4, 4), nn.Bilinear(2, 2, 2))
    names, weight = list(model.state_dict()), model[0].weight
    use_onednn(model)
    assert [type(layer) for layer in model] == [OneDNNLinear, OneDNNConv1D, nn.Bilinear]
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1], Conv1D)
    assert list(model.state_dict()) == names
    assert model[0].weight is weight
    assert torch.equal(copy.deepcopy(model)[0].weight, weight)


def test_numbers_of_rows_recur():
    rounded = [round_up(rows) for rows in range(1, 20_000)]
    assert rounded[:512] == list(range(1, 513))
    assert all(rows <= more <= 1.04 * rows for rows, more in enumerate(rounded, start=1))
    assert [round_up(rows) for rows in rounded] == rounded
    assert len(set(rounded[512:])) < 200
