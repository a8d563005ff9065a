"""The networks are the standard ones, and their limit is their convolutions."""

import pytest
import torch
from torch import nn

from batchnorm.lab.bench.resnet import ResNet, limit


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions"), [("resnet18", 11_689_512, 20), ("resnet50", 25_557_032, 53)]
)
def test_standard_sizes(name, parameters, convolutions):
    network = ResNet(name)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == convolutions


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_limit_has_every_convolution_with_its_gradient_and_no_bn_or_relu(name):
    full = {id(m): m.weight.shape for m in ResNet(name).modules() if isinstance(m, nn.Conv2d)}
    network = limit(ResNet(name))
    left = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(m.weight.shape for m in left) == sorted(full.values())
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU) for m in network.modules())
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1000)
    assert logits.std() < 1e3
    logits.backward(torch.randn_like(logits))
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
