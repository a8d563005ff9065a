"""Checkpoints of torchvision's networks load: names and shapes, written down here from its architectures."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import batchnorm
from lab.models.test_architectures import plan
from lab.models.zoo import make


def _norm(name, channels):
    buffers = {
        f"{name}.running_mean": (channels,),
        f"{name}.running_var": (channels,),
        f"{name}.num_batches_tracked": (),
    }
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,), **buffers}


def _dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _resnet(blocks, bottleneck):
    keys = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for stage, (depth, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        outputs = width * 4 if bottleneck else width
        for block in range(depth):
            name = f"layer{stage}.{block}"
            shapes = [(width, inputs, 3, 3), (width, width, 3, 3)]
            if bottleneck:
                shapes = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            for index, shape in enumerate(shapes, 1):
                keys |= {f"{name}.conv{index}.weight": shape, **_norm(f"{name}.bn{index}", shape[0])}
            if block == 0 and inputs != outputs:
                keys |= {
                    f"{name}.downsample.0.weight": (outputs, inputs, 1, 1),
                    **_norm(f"{name}.downsample.1", outputs),
                }
            inputs = outputs
    return keys | _dense("fc", inputs, 1000)


def _densenet121():
    keys = {"features.conv0.weight": (64, 3, 7, 7), **_norm("features.norm0", 64)}
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, depth + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            keys |= {**_norm(f"{name}.norm1", channels), f"{name}.conv1.weight": (128, channels, 1, 1)}
            keys |= {**_norm(f"{name}.norm2", 128), f"{name}.conv2.weight": (32, 128, 3, 3)}
            channels += 32
        if block < 4:
            name = f"features.transition{block}"
            keys |= {**_norm(f"{name}.norm", channels), f"{name}.conv.weight": (channels // 2, channels, 1, 1)}
            channels //= 2
    return keys | _norm("features.norm5", channels) | _dense("classifier", channels, 1000)


def _vgg11_bn():
    keys, inputs = {}, 3
    positions = (0, 4, 8, 11, 15, 18, 22, 25)
    for position, channels in zip(positions, (64, 128, 256, 256, 512, 512, 512, 512), strict=True):
        keys |= {f"features.{position}.weight": (channels, inputs, 3, 3), f"features.{position}.bias": (channels,)}
        keys |= _norm(f"features.{position + 1}", channels)
        inputs = channels
    keys |= _dense("classifier.0", 512 * 7 * 7, 4096) | _dense("classifier.3", 4096, 4096)
    return keys | _dense("classifier.6", 4096, 1000)


TORCHVISION = {
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
    "densenet121": _densenet121(),
}


@pytest.mark.parametrize("norm", ["batch", "torch"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_the_state_has_the_names_and_shapes_of_torchvision(name, norm):
    state = plan(name, norm).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == TORCHVISION[name]


def test_the_state_of_vgg_lacks_only_the_biases_of_the_convolutions():
    state = {key: tuple(value.shape) for key, value in plan("vgg11").state_dict().items()}
    published = _vgg11_bn()
    missing = set(published) - set(state)
    assert state == {key: shape for key, shape in published.items() if key not in missing}
    assert missing == {f"features.{position}.bias" for position in (0, 4, 8, 11, 15, 18, 22, 25)}
    assert {key: tuple(value.shape) for key, value in plan("vgg11", "none").state_dict().items()}.keys() == {
        *(f"features.{i}.{kind}" for i in (0, 3, 6, 8, 11, 13, 16, 18) for kind in ("weight", "bias")),
        *(f"classifier.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")),
    }


class _WithBiases(nn.Module):
    """The features of a narrow vgg11_bn as torchvision has them, biases and all."""

    def __init__(self, network):
        super().__init__()
        self.features = copy.deepcopy(network.features)
        self.classifier = copy.deepcopy(network.classifier)
        for position, layer in enumerate(network.features):
            if isinstance(layer, nn.Conv2d):
                self.features[position] = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def test_biases_of_a_checkpoint_go_into_the_running_means():
    network = make("vgg11", "torch").double().eval()
    published = _WithBiases(network).double().eval()
    with torch.no_grad():
        for key, value in published.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + (0.5 if key.endswith("var") else -0.5))
    state = published.state_dict()
    before = copy.deepcopy(state)
    network.load_state_dict(state)  # strict
    assert all(torch.equal(state[key], before[key]) for key in before)  # the caller's is left as it was
    x = torch.randn(3, 2, 33, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), published(x), rtol=1e-9, atol=1e-12)
    own = network.state_dict()
    network.load_state_dict(own)  # its own has no biases, and nothing is subtracted twice
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    # The naive way, leaving the biases out, gives other scores.
    naive = {key: value for key, value in state.items() if key in own}
    network.load_state_dict(naive)
    assert not torch.allclose(network(x), published(x), rtol=1e-3)


def test_a_prefix_in_front_of_the_names_does_not_matter():
    network = make("vgg_small")
    state = {f"0.{key}": value.clone() for key, value in network.state_dict().items()}
    state["0.features.0.bias"] = torch.full((64,), 2.0)
    nn.Sequential(network).load_state_dict(state)
    assert torch.equal(network.features[1].running_mean, torch.full((64,), -2.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n)), batchnorm.convert])
def test_a_copy_takes_biases_up_by_itself(copied):
    network = make("vgg_small", "torch")
    other = copied(network)
    del network
    state = dict(other.state_dict())
    state["features.0.bias"] = torch.full((64,), 2.0)
    other.load_state_dict(state)
    assert torch.equal(other.features[1].running_mean, torch.full((64,), -2.0))


def test_a_bias_that_nothing_takes_up_is_an_error():
    network = make("vgg_small", "group")
    state = dict(network.state_dict())
    state["features.0.bias"] = torch.zeros(64)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        network.load_state_dict(state)
