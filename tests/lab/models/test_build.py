"""What holds for every network: shapes, gradients, arms that share their weights, no random numbers but their own."""

import copy
import random

import pytest
import torch
from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models import ACTIVATIONS, NORMS, Normalization, build, describe_network, names, parameter_count
from lab.models.zoo import ONE_OF_EACH, images, layers, make, shape_of

ARMS = {name: [norm for norm in NORMS if (name, norm) != ("mlp", "instance")] for name in names()}
NORMALIZERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ONE_OF_EACH for norm in ARMS[name]])
def test_gives_a_score_for_each_class_and_a_gradient_to_every_parameter(name, norm):
    network = make(name, norm)
    assert network.training
    x = images(name).requires_grad_()
    scores = network(x)
    assert scores.shape == (4, 3)
    assert scores.isfinite().all()
    scores.backward(torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)))
    for parameter, gradient in [*network.named_parameters(), ("the input", x)]:
        assert gradient.grad is not None, parameter
        assert gradient.grad.isfinite().all(), parameter
    assert not [parameter for parameter, value in network.named_parameters() if not value.grad.any()]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_examples_are_classified_one_by_one_in_evaluation(name):
    network = make(name, dropout=0.3).eval()
    x = images(name)
    alone = torch.cat([network(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(network(x), alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item())
    in_training = network.train()(x)
    assert not torch.allclose(in_training, alone, rtol=1e-2)


@pytest.mark.parametrize("name", names())
def test_arms_start_from_the_same_weights(name):
    first, *others = [make(name, norm, seed=3) for norm in ARMS[name]]
    for other in others:
        for one, two in zip(layers(first), layers(other), strict=True):
            assert torch.equal(one.weight, two.weight)
    different = layers(make(name, seed=4))
    assert not any(torch.equal(one.weight, two.weight) for one, two in zip(layers(first), different, strict=True))
    again = make(name, "none", seed=3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", names())
def test_a_bias_stands_only_where_nothing_takes_its_place(name):
    # Without normalization every layer has one. With it, only those behind which no normalization stands: the last
    # layer, and in vgg11 for large images the dense ones.
    assert all(layer.bias is not None for layer in layers(make(name, "none")))
    for norm in set(ARMS[name]) - {"none", "instance"}:
        *hidden, last = layers(make(name, norm))
        assert all(layer.bias is None for layer in hidden), norm
        assert last.bias is not None


@pytest.mark.parametrize("name", names())
def test_normalized_arms_have_the_same_parameters(name):
    counts = {norm: parameter_count(make(name, norm)) for norm in set(ARMS[name]) - {"none", "instance"}}
    assert len(set(counts.values())) == 1, counts
    if name not in ("mlp", "convnet"):  # in a hidden dense layer instance normalization has no place
        assert parameter_count(make(name, "instance")) == counts["batch"]


@pytest.mark.parametrize("name", names())
def test_every_nonlinearity_is_a_module_that_runs_once(name):
    network = make(name, activation="tanh")
    calls = dict.fromkeys((module for module in network.modules() if isinstance(module, nn.Tanh)), 0)

    def count(module, *_):
        calls[module] += 1

    for module in calls:
        module.register_forward_hook(count)
    network(images(name, 2))
    assert calls
    assert set(calls.values()) == {1}
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    # One for each hidden layer, but for densely connected ones (before each layer) and shortcuts (none behind).
    if not name.startswith(("densenet", "resnet18", "resnet34", "resnet50")):
        assert len(calls) == len(layers(network)) - 1


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_the_one_asked_for(name, activation):
    network = make(name, activation=activation)
    kind = ACTIVATIONS[activation].module
    found = {type(module) for module in network.modules()} & {entry.module for entry in ACTIVATIONS.values()}
    assert found == {kind}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_inputs_of_nonlinearities_are_not_overwritten(name):
    # A probe keeps what it saw; a nonlinearity that works in place would change it.
    network = make(name)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.Sigmoid):
            module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0].clone())))
    network(images(name, 2))
    assert seen
    assert all(torch.equal(tensor, copied) for tensor, copied in seen)


@pytest.mark.parametrize("norm", NORMS)
def test_building_leaves_the_random_numbers_of_the_process_alone(norm):
    torch.manual_seed(7)
    random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    make("resnet20", norm, dropout=0.5, stochastic_depth=0.5, initializer="default")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("name", names())
def test_says_what_it_is_in_a_line(name):
    network = make(name)
    line = describe_network(network)
    assert line == f"{network.description}; {parameter_count(network):,} parameters"
    assert "\n" not in line
    assert len(network.description) > 30
    assert describe_network(nn.Linear(3, 2)) == "Linear; 8 parameters"


def test_a_copy_computes_the_same():
    network = make("inception_small").eval()
    x = images("inception_small")
    assert torch.equal(copy.deepcopy(network)(x), network(x))


@pytest.mark.parametrize(
    ("model", "side", "least"), [("convnet", 3, 4), ("vgg11", 28, 32), ("densenet121", 28, 29), ("densenet40", 3, 4)]
)
def test_images_that_are_too_small_are_refused_and_the_smallest_is_taken(model, side, least):
    with pytest.raises(LabError, match=f"{model} needs images of at least {least}x{least} pixels.*got {side}x40"):
        make(model, input_shape=(1, side, 40))
    assert make(model, input_shape=(1, least, 40))(torch.zeros(2, 1, least, 40)).shape == (2, 3)


@pytest.mark.parametrize("name", sorted(set(ONE_OF_EACH) - {"mlp", "convnet", "deep_convnet", "vgg11", "vgg_small"}))
def test_networks_without_a_least_size_take_a_single_pixel(name):
    if not name.startswith("densenet"):
        assert make(name, input_shape=(1, 1, 1))(torch.rand(4, 1, 1, 1)).shape == (4, 3)


def test_examples_that_are_no_images_are_for_the_mlp():
    with pytest.raises(LabError, match=r"resnet20 takes images .*of shape \(2,\)\. Try mlp"):
        make("resnet20", input_shape=(2,))
    assert make("mlp", input_shape=(2,))(torch.zeros(4, 2)).shape == (4, 3)


def test_instance_normalization_needs_positions():
    with pytest.raises(LabError, match=r"more than one position.*resnet18 comes down to one"):
        make("resnet18", "instance", input_shape=(3, 32, 32))
    with pytest.raises(LabError, match="one value for each example"):
        make("mlp", "instance")
    # In a convnet only its convolutions are normalized; the hidden dense layer keeps its bias.
    network = make("convnet", "instance")
    kinds = [type(module) for module in network.modules() if isinstance(module, NORMALIZERS)]
    assert kinds == [nn.InstanceNorm2d] * 2
    assert [layer.bias is not None for layer in layers(network)] == [False, False, True, True]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(LabError, match=r"model must be package.module:factory or one of mlp.*resnet50.*got 'resnet51'"):
        build("resnet51", Normalization("batch"), input_shape=(3, 32, 32), classes=10)
    with pytest.raises(LabError, match=r"activation must be one of relu.*got 'swish'"):
        make("mlp", activation="swish")


def test_shapes_of_the_zoo_have_sides_that_differ():
    assert all(name == "mlp" or shape_of(name)[1] != shape_of(name)[2] for name in names())
