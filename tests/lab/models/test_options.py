"""Options by network: what does not apply is refused, with the networks that have it; so are values out of range."""

import math

import pytest
import torch

from batchnorm.lab.errors import LabError
from batchnorm.lab.models import describe, names
from batchnorm.lab.models.catalogue import CATALOGUE
from batchnorm.lab.models.recipe import OPTIONS
from lab.models.zoo import layers, make

ASKED = {
    "dropout": 0.25,
    "stochastic_depth": 0.25,
    "zero_init_residual": True,
    "width": 0.5,
    "hidden": (6,),
    "channels": (4, 5),
    "convolutions": 3,
}
RESIDUAL = [name for name in names() if name.startswith("resnet")]
WIDE = ["vgg11", "vgg_small", "nin", *RESIDUAL, "inception", "inception_small"]
HAVE = {
    "dropout": list(names()),
    "stochastic_depth": RESIDUAL,
    "zero_init_residual": RESIDUAL,
    "width": WIDE,
    "hidden": ["mlp", "convnet", "deep_convnet"],
    "channels": ["convnet", "deep_convnet"],
    "convolutions": ["convnet", "deep_convnet"],
}
assert set(OPTIONS) == set(ASKED) == set(HAVE)


@pytest.mark.parametrize("option", ASKED)
@pytest.mark.parametrize("name", names())
def test_an_option_changes_the_network_or_is_refused(name, option):
    width = {} if "width" not in CATALOGUE[name].options or option == "width" else {"width": 0.125}
    wanted = {option: ASKED[option]}
    if name not in HAVE[option]:
        message = f"{option} does not apply to {name}; leave it out, or choose one of {', '.join(HAVE[option])}"
        with pytest.raises(LabError) as error:
            make(name, **wanted)
        assert str(error.value) == message
        return
    plain, changed = make(name, **{"width": 1.0} | width), make(name, **width | wanted)
    one, other = ([str(network), *map(torch.sum, network.parameters())] for network in (plain, changed))
    assert one != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "dropout is the probability to drop: at least 0 and below 1; got 1.0"),
        ({"dropout": math.nan}, "dropout is the probability to drop"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is the probability to drop"),
        ({"width": 0.0}, "width must be above 0"),
        ({"width": math.nan}, "width must be above 0"),
        ({"hidden": (5, 0)}, "hidden must be sizes of at least 1; got 5 0"),
        ({"channels": ()}, "channels must hold at least one stage"),
        ({"convolutions": 0}, "convolutions must be at least 1"),
        ({"classes": 0}, "classes be at least 1"),
        ({"input_shape": (3, 0, 8)}, "sizes of at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(options, message):
    with pytest.raises(LabError, match=message):
        make("resnet20", **options)


def test_the_help_lists_every_network_once_under_its_family():
    lines = describe().splitlines()
    assert lines[0].startswith("plain: mlp (three hidden layers of 100 sigmoids")
    assert lines[-1] == "Your own: package.module:factory, called with the options that it takes."
    for name in names():
        assert sum(f" {name} (" in line for line in lines) == 1
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *("plain", "VGG", "NIN", "ResNet (CIFAR)", "ResNet (ImageNet)", "DenseNet", "Inception"),
    ]


def test_the_mlp_has_the_sigmoids_of_the_paper_and_the_others_relus():
    assert [name for name in names() if "Sigmoid" in str(make(name))] == ["mlp"]
    assert all("ReLU()" in str(make(name)) for name in names() if name != "mlp")
    assert len(layers(make("mlp"))) == 4
