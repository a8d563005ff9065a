"""Initializers: fans, gains and deviations against torch, published draws, and activations by depth."""

import math

import numpy as np
import pytest
import torch
from torch.nn import init

from batchnorm.reference import initializers as ours
from numeric import assert_close

SHAPES = [(300, 200), (64, 32, 5, 3), (40, 30, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fans_are_those_of_torch(shape):
    assert tuple(ours.fan(shape)) == init._calculate_fan_in_and_fan_out(torch.empty(shape))


def test_fan_of_a_convolution_has_the_area_of_the_kernel():
    assert ours.fan((64, 3, 5, 5)) == (75, 1600)
    std = np.std(ours.kaiming_normal((512, 3, 5, 5), np.random.default_rng(0)))
    assert abs(std / math.sqrt(2 / 75) - 1) < 0.02
    assert std < 0.3 * math.sqrt(2 / 3)  # the area forgotten


@pytest.mark.parametrize("name", ["linear", "sigmoid", "tanh", "relu", "selu"])
def test_gains_are_those_of_torch(name):
    assert_close(ours.gain(name), init.calculate_gain(name))


def test_gain_of_leaky_relu_and_of_nothing():
    assert_close(ours.gain("leaky_relu", 0.2), init.calculate_gain("leaky_relu", 0.2))
    assert ours.gain(None) == 1.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"])
def test_deviation_equals_that_of_torch(name, shape):
    weight = getattr(ours, name)(shape, np.random.default_rng(1), activation="relu")
    options = {"gain": init.calculate_gain("relu")} if "xavier" in name else {"nonlinearity": "relu"}
    torchs = torch.empty(shape)
    getattr(init, f"{name}_")(torchs, generator=torch.Generator().manual_seed(0), **options)
    samples = weight.size
    assert weight.shape == shape
    assert abs(weight.std() / torchs.std().item() - 1) < 5 * math.sqrt(1 / samples)
    assert abs(weight.mean()) < 4 * weight.std() / math.sqrt(samples)
    if "uniform" in name:
        bound = torchs.abs().max().item()
        assert abs(np.abs(weight).max() / bound - 1) < 1e-3


def test_fan_out_keeps_the_gradient_instead_of_the_signal():
    rng = np.random.default_rng(2)
    weight = ours.kaiming_normal((100, 900), rng, activation=None, mode="fan_out")
    assert abs(weight.std() * math.sqrt(100) - 1) < 0.02


def test_small_gaussian_has_the_standard_deviation_0_01_and_not_the_variance():
    weight = ours.small_gaussian((500, 400), np.random.default_rng(3))
    assert abs(weight.std() / 0.01 - 1) < 0.01
    assert weight.var() < 0.02 * 0.01


def test_legacy_seeding_draws_the_published_weights():
    former = np.random.get_state()  # noqa: NPY002 - the published protocol is the legacy one
    np.random.seed(3)  # noqa: NPY002
    published = np.random.randn(20, 2) / np.sqrt(2)  # noqa: NPY002 - first layer of the 2-D comparison
    np.random.set_state(former)  # noqa: NPY002
    np.testing.assert_allclose(
        ours.kaiming_normal((20, 2), np.random.RandomState(3), activation=None), published, rtol=1e-15
    )


def deviations(activation, draw, width=400, depth=7):
    """Standard deviation of the activations after each of some layers, as in the notes but narrower."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((64, width))
    found = []
    for _ in range(depth):
        x = activation(x @ draw((width, width), rng).T)
        found.append(float(x.std()))
    return found


def relu(z):
    return np.maximum(z, 0.0)


def test_activations_by_depth_vanish_saturate_or_stay():
    width = 400

    def gaussian(std):
        return lambda shape, rng: ours.small_gaussian(shape, rng, std=std)

    def kaiming(activation):
        return lambda shape, rng: ours.kaiming_normal(shape, rng, activation=activation)

    # 4096 units with a deviation of 0.01 are 400 units with 0.01 * sqrt(4096 / 400): fan_in * variance is what counts.
    same = math.sqrt(4096 / width)
    small = deviations(np.tanh, gaussian(0.01 * same))
    large = deviations(np.tanh, gaussian(0.05 * same))
    xavier = deviations(np.tanh, kaiming(None))
    assert small[0] > 0.4
    assert small[-1] < 0.05
    assert min(large) > 0.8
    assert 0.2 < xavier[-1] < xavier[0] < 0.7
    assert deviations(relu, kaiming(None))[-1] < 0.1  # Xavier's rule under relu: half is lost at each layer
    kept = deviations(relu, kaiming("relu"))
    assert 0.7 < kept[-1] / kept[0] < 1.4


def test_second_moment_is_kept_on_average():
    rng = np.random.default_rng(5)
    x = relu(rng.standard_normal((50, 300)))
    weights = [ours.kaiming_normal((200, 300), rng, activation="relu") for _ in range(20)]
    z = np.stack([x @ weight.T for weight in weights])
    assert abs(np.mean(z**2) / (2 * np.mean(x**2)) - 1) < 0.05  # (119)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.fan((3,)), r"\(out, in, \*K\) with sizes of at least 1, but is \(3,\)"),
        (lambda: ours.gain("gelu"), "relu, selu, leaky_relu, but is 'gelu'"),
        (lambda: ours.small_gaussian((2, 2), np.random.default_rng(0), std=-1.0), r"Try np\.sqrt\(variance\)"),
        (lambda: ours.kaiming_normal((2, 2), np.random.default_rng(0), mode="fan"), "one of fan_in, fan_out"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
