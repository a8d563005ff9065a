"""Published networks: their parameter counts, depths, maps and shortcuts."""

import pytest
import torch
from torch import nn

from batchnorm.lab.models import Normalization, build, parameter_count
from batchnorm.lab.models.catalogue import CATALOGUE
from batchnorm.lab.models.inception import TABLE
from batchnorm.lab.models.recipe import Recipe
from batchnorm.lab.models.residual import Block, PaddedShortcut, StochasticDepth
from batchnorm.reference import augmentation
from lab.models.zoo import images, layers, make

IMAGENET, CIFAR = ((3, 224, 224), 1000), ((3, 32, 32), 10)


def plan(name, norm="batch", size=IMAGENET, **options):
    """Build without memory: what is asked is the shapes."""
    shape, classes = size
    with torch.device("meta"):
        return CATALOGUE[name].build(Recipe(Normalization(norm), shape, classes, **options))


PUBLISHED = {
    # torchvision's documentation of these models
    ("resnet18", "batch", IMAGENET): 11_689_512,
    ("resnet34", "batch", IMAGENET): 21_797_672,
    ("resnet50", "batch", IMAGENET): 25_557_032,
    ("densenet121", "batch", IMAGENET): 7_978_856,
    ("vgg11", "none", IMAGENET): 132_863_336,
    # The network of arXiv 1312.4400 for CIFAR-10: osmr/imgclsmob
    ("nin", "none", CIFAR): 966_986,
    # arXiv 1608.06993, table 2: 1.0 M and 0.8 M; exactly in published ports (the second: osmr/imgclsmob)
    ("densenet40", "batch", CIFAR): 1_019_722,
    ("densenet_bc100", "batch", CIFAR): 769_162,
    # arXiv 1512.03385, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M; exactly by akamaster/pytorch_resnet_cifar10
    ("resnet20", "batch", CIFAR): 269_722,
    ("resnet32", "batch", CIFAR): 464_154,
    ("resnet44", "batch", CIFAR): 658_586,
    ("resnet56", "batch", CIFAR): 853_018,
    ("resnet110", "batch", CIFAR): 1_727_962,
}


@pytest.mark.parametrize(("name", "norm", "size"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, norm, size):
    assert parameter_count(plan(name, norm, size)) == PUBLISHED[name, norm, size]


@pytest.mark.parametrize(("name", "published"), [("vgg11", 132_868_840), ("inception", 11_295_240)])
def test_published_networks_with_superfluous_biases_have_just_these_more(name, published):
    # torchvision's vgg11_bn, and BN-Inception as converted from Caffe (Cadene/pretrained-models.pytorch).
    network = plan(name)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)
    assert parameter_count(network) + sum(module.out_channels for module in convolutions) == published


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 18, 34, 50])
def test_a_residual_network_has_the_layers_of_its_name(depth):
    network = plan(f"resnet{depth}")
    main = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in main if "downsample" not in name]) == depth


@pytest.mark.parametrize(("name", "depth"), [("densenet40", 40), ("densenet_bc100", 100), ("densenet121", 121)])
def test_a_densely_connected_network_has_the_layers_of_its_name(name, depth):
    assert len(layers(plan(name))) == depth


def maps(network, size, kinds):
    """Return the shapes (C, H, W) of what modules of some names give."""
    found = {}
    for name, module in network.named_modules():
        if name in kinds:
            module.register_forward_hook(lambda _m, _x, y, name=name: found.__setitem__(name, tuple(y.shape[1:])))
    with torch.device("meta"):
        scores = network(torch.zeros(2, *size[0]))
    assert scores.shape == (2, size[1])
    return found


def test_maps_of_the_imagenet_networks_are_those_of_their_tables():
    found = maps(plan("resnet50", "none"), IMAGENET, ["conv1", *(f"layer{i}" for i in range(1, 5))])
    assert list(found.values()) == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    names = [f"features.{name}" for name in ("pool0", "transition1", "transition2", "transition3", "relu5")]
    found = maps(plan("densenet121", "none"), IMAGENET, names)
    assert list(found.values()) == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (1024, 7, 7)]
    found = maps(plan("vgg11", "none"), IMAGENET, ["features"])
    assert found == {"features": (512, 7, 7)}


def test_maps_of_the_inception_network_are_the_tables_but_where_its_sums_are_wrong():
    found = maps(plan("inception", "none"), IMAGENET, ["stem", *(f"body.inception{name}" for name in TABLE)])
    channels = {name: shape[0] for name, shape in found.items()}
    # The table has 576, 576 and 1024 for 4c, 4d and 4e; its filters add up to these.
    expected = [192, 256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]
    assert list(channels.values()) == expected
    assert [shape[1] for shape in found.values()] == [28, 28, 28, 14, 14, 14, 14, 14, 7, 7, 7]
    small = maps(plan("inception_small", "none", CIFAR), CIFAR, ["stem", *(f"body.inception{name}" for name in TABLE)])
    assert [shape[0] * 4 for shape in small.values()] == expected
    assert [shape[1] for shape in small.values()] == [32, 32, 32, 16, 16, 16, 16, 16, 8, 8, 8]


def test_an_inception_module_puts_its_branches_one_behind_the_other():
    network = make("inception_small").eval()
    module = network.body.inception3a
    x = torch.randn(2, 48, 6, 6, generator=torch.Generator().manual_seed(0))
    # 64, 64, 96 and 32 filters of the table, a quarter of each.
    parts = module(x).split([16, 16, 24, 8], 1)
    branches = [module.branch1x1, module.branch3x3, module.double3x3, module.pool]
    assert all(torch.equal(part, branch(x)) for part, branch in zip(parts, branches, strict=True))
    assert network.body.inception3c.branch1x1 is None
    reduced = network.body.inception3c(torch.randn(2, 80, 7, 7))
    assert reduced.shape == (2, 144, 4, 4)
    kinds = {name: type(module.pool[0]) for name, module in network.body.named_children()}
    assert [name for name, kind in kinds.items() if kind is nn.MaxPool2d] == [
        "inception3c",
        "inception4e",
        "inception5b",
    ]
    # Two of 3x3 in place of one of 5x5.
    assert [unit.conv.kernel_size for unit in module.double3x3] == [(1, 1), (3, 3), (3, 3)]


def test_the_small_vgg_is_the_first_three_stages_of_configuration_a():
    shapes = [tuple(layer.weight.shape) for layer in layers(plan("vgg11", size=CIFAR))]
    small = [tuple(layer.weight.shape) for layer in layers(plan("vgg_small", size=CIFAR))]
    assert small == [*shapes[:4], (10, 256)]


def test_scores_of_network_in_network_may_be_negative():
    assert (make("nin")(images("nin", 20)) < 0).any()


def test_normalization_stands_between_convolution_and_nonlinearity():
    order = [type(m).__name__ for m in make("vgg_small", "torch").features]
    unit = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert order == [*unit, "MaxPool2d", *unit, "MaxPool2d", *unit, *unit, "MaxPool2d"]
    assert list(make("nin").block1[0]._modules) == ["conv", "norm", "act"]
    # A densely connected network normalizes before the convolution (arXiv 1608.06993, section 3).
    block = make("densenet_bc100").features.denseblock1.denselayer1
    assert list(block._modules) == ["norm1", "relu1", "conv1", "norm2", "relu2", "conv2"]
    assert list(make("densenet40").features.denseblock1.denselayer1._modules) == ["norm1", "relu1", "conv1"]


def test_a_dense_layer_sees_all_channels_before_it():
    block = make("densenet40", "none").features.denseblock1.eval()
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = x
    for layer in block.children():
        expected = torch.cat([expected, layer(expected)], 1)
    assert expected.shape[1] == 16 + 12 * 12
    assert torch.equal(block(x), expected)
    assert torch.equal(block(x)[:, :16], x)


def test_the_shortcut_without_parameters_keeps_every_second_position_and_adds_zeros():
    x = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    y = PaddedShortcut(2, 3)(x)
    assert y.shape == (2, 6, 3, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()
    kinds = [type(block.downsample) for block in make("resnet20").modules() if isinstance(block, Block)]
    assert kinds == [type(None)] * 3 + [PaddedShortcut] + [type(None)] * 2 + [PaddedShortcut] + [type(None)] * 2


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_a_block_adds_its_branch_to_its_shortcut_before_the_last_nonlinearity(name):
    network = make(name, input_shape=(3, 33, 33)).eval()
    block = [module for module in network.modules() if isinstance(module, Block)][3]
    inputs = block.conv1.in_channels
    x = torch.randn(2, inputs, 6, 6, generator=torch.Generator().manual_seed(0))
    branch = x
    for index in (1, 2, 3) if hasattr(block, "conv3") else (1, 2):
        branch = getattr(block, f"bn{index}")(getattr(block, f"conv{index}")(branch))
        branch = branch if f"bn{index}" == block.last[1] else branch.relu()
    shortcut = x if block.downsample is None else block.downsample(x)
    torch.testing.assert_close(block(x), (branch + shortcut).relu())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["batch", "torch", "group", "layer", "instance", "none"])
def test_with_zero_init_each_block_starts_as_its_shortcut(name, norm):
    network = make(name, norm, zero_init_residual=True, input_shape=(3, 33, 33))
    for block in (module for module in network.modules() if isinstance(module, Block)):
        x = torch.rand(2, block.conv1.in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
        shortcut = x if block.downsample is None else block.downsample(x)
        assert torch.equal(block(x), shortcut.relu())
    zeros = [key for key, value in network.named_parameters() if key.endswith("weight") and not value.any()]
    assert len(zeros) == sum(isinstance(module, Block) for module in network.modules())


def test_without_normalization_a_deep_network_begins_near_guessing_with_zero_init_alone():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    high, near = (
        torch.nn.functional.cross_entropy(
            make("resnet56", "none", zero_init_residual=zero, input_shape=(3, 16, 16))(x), torch.arange(4) % 3
        )
        for zero in (False, True)
    )
    assert high > 100
    assert near < 4


def test_stochastic_depth_drops_examples_and_keeps_the_mean():
    layer = StochasticDepth(0.3)
    x = torch.rand(10_000, 2, 1, 2) + 1
    y = layer(x)
    kept = (y != 0).flatten(1).all(1)
    assert torch.equal(kept, (y != 0).flatten(1).any(1))  # an example is dropped whole
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    # Four standard errors of a share of 0.7 of 10,000.
    assert abs(kept.float().mean().item() - 0.7) < 4 * (0.7 * 0.3 / 10_000) ** 0.5
    assert layer.eval()(x) is x


def test_the_probability_to_keep_a_block_falls_linearly():
    network = make("resnet20", stochastic_depth=0.5)
    found = [1 - m.drop_prob for m in network.modules() if isinstance(m, StochasticDepth)]
    assert found == pytest.approx([augmentation.linear_survival(block, 9, last=0.5) for block in range(1, 10)])
    assert not any(isinstance(m, StochasticDepth) for m in make("resnet20").modules())


@pytest.mark.parametrize(
    ("name", "places"),
    {
        "mlp": ["layers.4", "layers.8", "layers.12"],
        "convnet": ["layers.12"],
        "deep_convnet": ["layers.22"],
        "vgg_small": ["classifier.0"],
        "nin": ["dropout1", "dropout2"],
        "resnet20": ["dropout"],
        "resnet50": ["dropout"],
        "inception": ["dropout"],
    }.items(),
)
def test_dropout_is_where_it_suits(name, places):
    network = make(name, dropout=0.25)
    found = {key: module.p for key, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert found == dict.fromkeys(places, 0.25)


@pytest.mark.parametrize("name", ["densenet40", "densenet_bc100", "densenet121"])
def test_dropout_is_behind_each_convolution_of_a_densely_connected_network_but_the_first(name):
    names = [key for key, m in make(name, dropout=0.2).named_modules() if isinstance(m, nn.Conv2d | nn.Dropout)]
    kinds = ["drop" in key for key in names]
    assert kinds == [False, *[False, True] * (len(kinds) // 2)]
    assert parameter_count(make(name)) == parameter_count(make(name, dropout=0.2))


def test_the_head_of_vgg_goes_by_the_size_of_the_images():
    large, below = plan("vgg11"), plan("vgg11", size=((3, 223, 300), 10))
    kinds = [type(module).__name__ for module in large.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert large.classifier[0].in_features == 512 * 7 * 7
    assert [type(module).__name__ for module in below.classifier] == ["Dropout", "Linear"]
    assert below.classifier[1].in_features == 512
    convolutions = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
    assert parameter_count(plan("vgg11", size=CIFAR)) == convolutions + 2 * (64 + 128 + 2 * 256 + 4 * 512) + 513 * 10


@pytest.mark.parametrize("name", ["vgg11", "vgg_small", "nin", "resnet20", "resnet18", "resnet50", "inception"])
def test_width_multiplies_the_channels(name):
    narrow, plain = (layers(plan(name, size=CIFAR, width=width)) for width in (0.5, 1.0))
    for one, two in zip(narrow[:-1], plain[:-1], strict=True):
        assert one.weight.shape[0] * 2 == two.weight.shape[0]
    assert make(name, width=0.01)(images(name)).shape == (4, 3)  # at least one channel is left


def test_stages_and_hidden_layers_of_the_plain_networks():
    network = build(
        "deep_convnet", Normalization("batch"), input_shape=(3, 16, 16), classes=7,
        channels=(4, 6, 8, 10), convolutions=3, hidden=(20, 30),
    )  # fmt: skip
    shapes = [tuple(layer.weight.shape[:2]) for layer in layers(network)]
    widths = [3, *[c for c in (4, 6, 8, 10) for _ in range(3)]]
    assert shapes == [*zip(widths[1:], widths, strict=False), (20, 10), (30, 20), (7, 30)]
    assert network.hidden_units == (*widths[1:], 20, 30)
    assert network.description == (
        "four of three 3x3 convolutions (4, 6, 8, 10 channels), each with ReLU, and 2x2 max pool; "
        "two hidden layers of 20 and 30 ReLUs"
    )
    assert make("mlp", hidden=()).description == "no hidden layer, fully connected"
    assert [tuple(layer.weight.shape) for layer in layers(make("mlp", hidden=(7,)))] == [(7, 5), (3, 7)]


def test_without_normalization_each_block_doubles_the_mean_square_and_with_it_one_is_added():
    # De and Smith 2020, arXiv 2002.10444: why normalized residual networks can be deep from the start.
    growth = {}
    for norm in ("none", "batch"):
        network = build("resnet110", Normalization(norm), input_shape=(3, 8, 8), classes=10)
        x = torch.randn(16, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            growth[norm] = (network.layer1(x).square().mean() / x.square().mean()).log2().item() / 18
    assert 0.8 < growth["none"] < 1.3
    assert growth["batch"] < 0.3
    assert torch.isfinite(make("resnet110", "none")(images("resnet110"))).all()
