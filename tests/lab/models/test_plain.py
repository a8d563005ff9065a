"""The networks of `batchnorm compare`: shapes, what normalization adds and drops, the same weights in both arms."""

import pytest
import torch
from torch import nn

import batchnorm.nn as bn
from batchnorm.lab.models import Normalization, build

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}
NONE, BATCH = Normalization("none"), Normalization("batch")


def make(model="mlp", normalization=BATCH, shape=(1, 8, 8), weight_std=0.1, seed=0):
    return build(model, normalization, input_shape=shape, classes=10, weight_std=weight_std, seed=seed)


def weights(network):
    return [module.weight for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("normalization", [NONE, BATCH], ids=["none", "batch"])
def test_takes_images_and_gives_a_logit_for_each_class(model, shape, normalization):
    network = make(model, normalization, shape)
    x = torch.rand(7, *shape)
    for mode in (True, False):
        assert network.train(mode)(x).shape == (7, 10)
    assert len(network.nonlinearities) == len(network.hidden_units) == 3


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("weight_std", [0.1, None])
def test_both_arms_start_from_the_same_weights(model, weight_std):
    torch.manual_seed(1)
    plain = make(model, NONE, weight_std=weight_std, seed=3)
    torch.manual_seed(2)  # random numbers of the process are not used
    normalized = make(model, BATCH, weight_std=weight_std, seed=3)
    assert len(weights(plain)) == len(weights(normalized)) == 4
    for w, v in zip(weights(plain), weights(normalized), strict=True):
        assert torch.equal(w, v)
    for w, v in zip(weights(plain), weights(make(model, NONE, weight_std=weight_std, seed=4)), strict=True):
        assert not torch.equal(w, v)


def test_building_leaves_the_random_numbers_of_the_process_alone():
    before = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), before)


def test_mlp_is_the_papers():
    plain, normalized = make(normalization=NONE, shape=(1, 28, 28)), make(shape=(1, 28, 28))
    assert [tuple(w.shape) for w in weights(plain)] == [(100, 784), (100, 100), (100, 100), (10, 100)]
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in {"plain": plain, "bn": normalized}.items()}
    # Normalization drops 100 biases in each hidden layer and adds a weight and a bias for each unit.
    assert count["plain"] == 784 * 100 + 2 * 100 * 100 + 100 * 10 + 310
    assert count["bn"] == count["plain"] + 300
    # Before the nonlinearity, behind each hidden layer and not behind the last one.
    kinds = [type(layer) for layer in normalized.layers]
    assert kinds == [nn.Flatten, *[nn.Linear, bn.BatchNorm1d, nn.Sigmoid] * 3, nn.Linear]


def test_convnet_normalizes_each_channel_before_the_nonlinearity():
    kinds = [type(layer) for layer in make("convnet").layers]
    block = [nn.Conv2d, bn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert kinds == [*block, *block, nn.Flatten, nn.Linear, bn.BatchNorm1d, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_biases_start_at_zero_and_are_dropped_before_normalization(model):
    plain = [m.bias for m in make(model, NONE).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    normalized = [m.bias for m in make(model, BATCH).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(bias is not None and not bias.any() for bias in plain)
    assert normalized[:3] == [None, None, None]
    assert not normalized[3].any()


def test_deviation_of_the_weights_is_the_one_asked_for():
    w = weights(make(shape=(1, 28, 28), weight_std=0.02))[0]
    # 78,400 draws: the standard error of their deviation is 0.02 / sqrt(2 * 78400) = 5e-5; four of them.
    assert abs(w.std().item() - 0.02) < 2e-4
    w = weights(make("convnet", shape=(1, 28, 28), weight_std=None))[2]
    fan_in = 32 * 7 * 7
    assert abs(w.std().item() - (2 / fan_in) ** 0.5) < 4 * (2 / fan_in) ** 0.5 / (2 * w.numel()) ** 0.5


def test_eps_and_momentum_reach_every_normalization():
    network = make("convnet", Normalization("batch", eps=0.25, momentum=0.5))
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [(layer.eps, layer.momentum) for layer in layers] == [(0.25, 0.5)] * 3


@pytest.mark.parametrize("normalization", [NONE, BATCH], ids=["none", "batch"])
def test_weights_are_drawn_one_layer_after_the_other_from_the_seed(normalization):
    # Results recorded with a seed must come again: this is the order and the rule, layer by layer.
    generator = torch.Generator().manual_seed(3)
    for weight in weights(make("mlp", normalization, seed=3)):
        assert torch.equal(weight, nn.init.normal_(torch.empty_like(weight), std=0.1, generator=generator))
    generator = torch.Generator().manual_seed(3)
    for weight in weights(make("convnet", normalization, weight_std=None, seed=3)):
        expected = nn.init.kaiming_normal_(torch.empty_like(weight), nonlinearity="relu", generator=generator)
        assert torch.equal(weight, expected)
