"""`batchnorm.convert` on every network: the same numbers, and one pass for each normalization and what follows it."""

import collections

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.lab.models import ACTIVATIONS, names
from lab.models.zoo import images, make

# Depths of the CIFAR networks differ in the number of equal blocks only.
CONVERTED = [name for name in names() if name not in ("resnet32", "resnet44", "resnet110", "resnet34")]
TOLERANCE = 1e-10  # float64, through up to 121 layers


def _settled(name, norm, **options):
    network = make(name, norm, **options).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() == 1:
                value.add_(0.2 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    return network


def _results(network, x):
    x = x.clone().requires_grad_()
    y = network.train()(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype))
    gradients = [parameter.grad for parameter in network.parameters()]
    state = network.state_dict()
    buffers = [state[name].clone() for name, _ in network.named_buffers() if name in state]
    return [y.detach(), x.grad, *gradients, *buffers, network.eval()(x).detach()]


def _same(network, converted, x):
    for one, other in zip(_results(network, x), _results(converted, x), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=TOLERANCE * max(1.0, one.abs().max().item()))


@pytest.mark.parametrize("norm", ["batch", "torch"])
@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_network_computes_the_same_and_everything_is_fused(name, norm):
    network = _settled(name, norm)
    converted, report = batchnorm.convert(network, report=True)
    layers = {key for key, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert {row.name for row in report} == layers
    kinds = collections.Counter(row.done for row in report)
    # Where a shortcut is projected, two normalizations meet in one addition, and only one can do it.
    others = [row.reason for row in report if row.done == "swapped"]
    assert len(others) == {"resnet18": 3, "resnet50": 4}.get(name, 0)
    assert set(others) <= {"it is the residual of downsample.1"}
    additions = {"resnet20": 9, "resnet56": 27, "resnet18": 8, "resnet50": 16}.get(name, 0)
    assert kinds["fused add + relu"] == additions
    activation = "sigmoid" if name == "mlp" else "relu"
    assert kinds[f"fused {activation}"] == len(layers) - additions - len(others)
    _same(network, converted, images(name, 5, dtype=torch.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_the_kernels_have_is_fused_and_the_rest_is_named(activation):
    network = _settled("resnet20", "torch", activation=activation)
    converted, report = batchnorm.convert(network, report=True)
    if activation == "elu":
        assert report["bn1"].done == "swapped"
        assert "ELU" in report["bn1"].reason
    else:
        assert report["bn1"].done == f"fused {activation}"
        assert report["layer1.0.bn2"].done == f"fused add + {activation}"
    _same(network, converted, images("resnet20", 5, dtype=torch.float64))


def test_between_a_branch_that_may_drop_and_its_addition_nothing_is_fused():
    network = make("resnet20", stochastic_depth=0.5, dropout=0.1)
    report = batchnorm.convert(network, report=True)[1]
    assert report["layer1.0.bn1"].done == "fused relu"
    assert report["layer1.0.bn2"].reason == "followed by stochastic_depth (StochasticDepth)"


@pytest.mark.parametrize("norm", ["none", "group", "layer", "instance"])
def test_other_arms_have_nothing_to_convert(norm):
    network = make("resnet20", norm)
    converted, report = batchnorm.convert(network, report=True)
    assert {row.done for row in report} <= {"left alone"}  # instance normalization looks like it, and is named
    x = images("resnet20")
    assert torch.equal(converted(x), network(x))


def test_channels_last_stays_channels_last_through_the_padded_shortcut():
    network = make("resnet20").to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    for block in (network.layer2[0], batchnorm.convert(network).layer2[0]):
        assert block(x).is_contiguous(memory_format=torch.channels_last)
