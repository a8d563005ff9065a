"""The choices that go into every network: normalizations, initializers, activations."""

import math

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.lab.errors import LabError
from batchnorm.lab.models import ACTIVATIONS, INITIALIZERS, NORMS, Normalization
from batchnorm.lab.models.initializers import initialize
from batchnorm.lab.models.normalization import Kind
from batchnorm.reference import initializers as reference
from lab.models.zoo import layers, make

X = torch.randn(6, 12, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
#: Over which of (example, group, channel in it, position) each takes its statistics, with three groups of four.
AXES = {"batch": (0, 3), "torch": (0, 3), "group": (2, 3), "layer": (1, 2, 3), "instance": (3,)}


@pytest.mark.parametrize("norm", AXES)
def test_statistics_are_over_these_values(norm):
    (layer,) = Normalization(norm, eps=1e-3, groups=3).spatial(12)
    grouped = X.reshape(6, 3, 4, 20) if norm not in ("batch", "torch") else X.reshape(6, 12, 1, 20)
    mean = grouped.mean(AXES[norm], keepdim=True)
    var = grouped.var(AXES[norm], keepdim=True, unbiased=False)
    expected = ((grouped - mean) / (var + 1e-3).sqrt()).reshape(X.shape)
    torch.testing.assert_close(layer(X), expected, rtol=1e-4, atol=1e-5)
    assert [tuple(p.shape) for p in layer.parameters()] == [(12,), (12,)]
    with torch.no_grad():  # weight and bias are one for each channel
        layer.weight.copy_(torch.arange(12.0))
        layer.bias.copy_(torch.arange(12.0) - 5)
    scaled = expected * torch.arange(12.0).reshape(12, 1, 1) + (torch.arange(12.0) - 5).reshape(12, 1, 1)
    torch.testing.assert_close(layer(X), scaled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "torch", "group", "layer"])
def test_dense_statistics_are_over_these_values(norm):
    x = X[:, :, 0, 0]
    (layer,) = Normalization(norm, eps=1e-3, groups=3).dense(12)
    grouped = x.reshape(6, 3, 4) if norm == "group" else x.reshape(6, 1, 12)
    axis = 0 if norm in ("batch", "torch") else 2
    mean, var = grouped.mean(axis, keepdim=True), grouped.var(axis, keepdim=True, unbiased=False)
    torch.testing.assert_close(layer(x), ((grouped - mean) / (var + 1e-3).sqrt()).reshape(6, 12), rtol=1e-4, atol=1e-5)


def test_which_layers_they_are():
    kinds = {norm: [type(layer) for layer in Normalization(norm).spatial(32)] for norm in NORMS}
    assert kinds == {
        "none": [],
        "batch": [batchnorm.BatchNorm2d],
        "torch": [nn.BatchNorm2d],
        "group": [nn.GroupNorm],
        "layer": [nn.GroupNorm],
        "instance": [nn.InstanceNorm2d],
    }
    (layer,) = Normalization("batch", eps=0.5, momentum=0.25).spatial(3)
    assert (layer.eps, layer.momentum) == (0.5, 0.25)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (100, 25), (48, 24), (37, 1), (8, 8), (96, 32)])
def test_groups_divide_the_channels_and_the_line_says_so(channels, groups):
    (layer,) = Normalization("group").spatial(channels)
    assert layer.num_groups == groups
    assert Normalization("group").description == (
        "group normalization, 32 groups or the most below that divide the channels"
    )


def test_another_normalization_is_one_entry(monkeypatch):
    kind = Kind("halving", lambda n, channels: nn.GroupNorm(2, channels, eps=n.eps), None)
    monkeypatch.setitem(NORMS, "halves", kind)
    network = make("resnet20", "halves")
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == {2}
    assert network.conv1.bias is None
    assert Normalization("halves").description == "halving"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "batchnorm"}, "norm must be one of none, batch, torch.*got 'batchnorm'"),
        ({"norm": "batch", "eps": 0.0}, "eps must be a finite number above 0"),
        ({"norm": "batch", "eps": math.nan}, "eps must be a finite number above 0"),
        ({"norm": "batch", "momentum": 1.5}, "momentum must be above 0 and at most 1"),
        ({"norm": "group", "groups": 0}, "groups must be at least 1"),
    ],
)
def test_what_a_normalization_cannot_be(fields, message):
    with pytest.raises(LabError, match=message):
        Normalization(**fields)


def _layer(initializer, scale, bias=True):
    network = nn.Sequential(nn.Conv2d(16, 300, 3), nn.Linear(400, 500, bias=bias))
    initialize(network, initializer, scale=scale, seed=0)
    return network


@pytest.mark.parametrize("initializer", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_deviations_are_those_of_the_textbook(initializer, activation):
    gain = reference.gain(activation)
    for layer in _layer(initializer, ACTIVATIONS[activation].gain):
        fan_in, fan_out = reference.fan(tuple(layer.weight.shape))
        std = gain / math.sqrt(fan_in) if "kaiming" in initializer else gain * math.sqrt(2 / (fan_in + fan_out))
        count = layer.weight.numel()
        # The standard error of a deviation is at most std / sqrt(2 count), as for the normal distribution.
        assert abs(layer.weight.std().item() - std) < 4 * std / math.sqrt(2 * count)
        assert abs(layer.weight.mean().item()) < 4 * std / math.sqrt(count)
        largest = layer.weight.abs().max().item() / std
        assert (largest <= math.sqrt(3) + 1e-6) == initializer.endswith("uniform")
        assert not layer.bias.any()


def test_default_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    layer = _layer("default", 1.0)[0]
    bound = 1 / math.sqrt(16 * 9)  # nn.Conv2d.reset_parameters: both weight and bias
    assert torch.equal(layer.weight, torch.empty(300, 16, 3, 3).uniform_(-bound, bound, generator=generator))
    assert torch.equal(layer.bias, torch.empty(300).uniform_(-bound, bound, generator=generator))


def test_default_draws_the_same_weights_with_and_without_biases():
    # Drawing a bias only where there is one would shift all weights behind it.
    plain, normalized = (make("resnet20", norm, initializer="default") for norm in ("none", "batch"))
    for one, two in zip(layers(plain), layers(normalized), strict=True):
        assert torch.equal(one.weight, two.weight)
    assert torch.equal(plain.fc.bias, normalized.fc.bias)
    assert plain.conv1.bias.any()


def test_orthogonal_rows_are_orthogonal():
    weight = _layer("orthogonal", 1.5)[0].weight.flatten(1).T  # (144, 300): fewer columns than rows in the layer
    torch.testing.assert_close(weight @ weight.T, 1.5**2 * torch.eye(144), rtol=1e-4, atol=1e-4)


def test_weight_std_is_for_normal():
    weight = layers(make("mlp", input_shape=(784,), weight_std=0.02))[0].weight
    same = layers(make("mlp", input_shape=(784,), weight_std=0.02, initializer="normal"))[0].weight
    assert torch.equal(weight, same)
    assert abs(weight.std().item() - 0.02) < 2e-4
    with pytest.raises(LabError, match=r"normal needs weight_std.*Try 0\.01"):
        make("mlp", initializer="normal")
    with pytest.raises(LabError, match=r"weight_std is for initializer normal; got 0\.1 with orthogonal"):
        make("mlp", initializer="orthogonal", weight_std=0.1)
    with pytest.raises(LabError, match="weight_std must be a finite number above 0"):
        make("mlp", weight_std=-1.0)
    with pytest.raises(LabError, match=f"initializer must be one of {', '.join(INITIALIZERS)}; got 'he'"):
        make("mlp", initializer="he")


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu"])
def test_the_gain_keeps_the_mean_square(activation):
    # E[(gain f(z))^2] = 1 for z ~ N(0, 1), by the trapezoidal rule; sigmoid and tanh have torch's conventions instead.
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    entry = ACTIVATIONS[activation]
    mean_square = torch.trapezoid((entry.gain * entry.module()(z)) ** 2 * density, z).item()
    assert abs(mean_square - 1) < 2e-6
    assert abs(torch.trapezoid((1.2 * entry.module()(z)) ** 2 * density, z).item() - 1) > 0.05  # a wrong gain


def test_gains_that_torch_has_are_torchs():
    for name in ("relu", "leaky_relu", "sigmoid", "tanh"):
        assert ACTIVATIONS[name].gain == nn.init.calculate_gain(name)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_gain_reaches_the_weights(activation):
    std = layers(make("vgg11", activation=activation, width=1.0))[7].weight.std().item() * math.sqrt(512 * 9)
    assert abs(std / ACTIVATIONS[activation].gain - 1) < 0.01
