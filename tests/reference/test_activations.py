"""Values and derivatives: against torch at random points and at the kinks, and far out, where naive forms overflow."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from batchnorm.reference.activations import ACTIVATIONS, get_activation

NAMES = list(ACTIVATIONS)
KINKS = [-3.0, 0.0, 3.0, 6.0]
FAR = [-1e4, -800.0, -40.0, 40.0, 800.0, 1e4]


def in_torch(name, z):
    """Value and derivative by torch's autograd, in float64."""
    z = torch.tensor(z, requires_grad=True)
    y = torch.tanh(z) if name == "tanh" else torch.sigmoid(z) if name == "sigmoid" else getattr(functional, name)(z)
    y.backward(torch.ones_like(y))
    return y.detach().numpy(), z.grad.numpy()


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torch_also_at_kinks_and_far_out(name):
    z = np.concatenate([np.random.default_rng(0).normal(0.0, 3.0, 200), KINKS, FAR])
    function, derivative = get_activation(name)
    expected, expected_derivative = in_torch(name, z)
    # atol: torch's left tail of gelu is 1 + erf, which is accurate against 1, not against itself.
    np.testing.assert_allclose(function(z), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(derivative(z), expected_derivative, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "at", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("relu6", 0.0, 0.0),
        ("relu6", 6.0, 0.0),
        ("leaky_relu", 0.0, 0.01),
        ("hardswish", -3.0, 0.0),
        ("hardswish", 3.0, 1.0),
    ],
)
def test_derivative_at_a_kink(name, at, slope):
    assert get_activation(name).derivative(np.array([at])) == slope


@pytest.mark.parametrize("name", [None, *NAMES])
def test_derivative_equals_central_difference(name):
    z = np.arange(-7.0, 7.0, 0.25) + 0.125  # no point within 0.1 of a kink
    function, derivative = get_activation(name)
    step = 1e-5
    numeric = (function(z + step) - function(z - step)) / (2 * step)
    np.testing.assert_allclose(derivative(z), numeric, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "left", "right", "slope_left", "slope_right"),
    [
        ("relu", 0.0, 1e4, 0.0, 1.0),
        ("relu6", 0.0, 6.0, 0.0, 0.0),
        ("leaky_relu", -100.0, 1e4, 0.01, 1.0),
        ("sigmoid", 0.0, 1.0, 0.0, 0.0),
        ("tanh", -1.0, 1.0, 0.0, 0.0),
        ("silu", 0.0, 1e4, 0.0, 1.0),
        ("hardswish", 0.0, 1e4, 0.0, 1.0),
        ("gelu", 0.0, 1e4, 0.0, 1.0),
    ],
)
def test_limits_at_ten_thousand(name, left, right, slope_left, slope_right):
    function, derivative = get_activation(name)
    z = np.array([-1e4, 1e4])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(function(z), [left, right])
        np.testing.assert_array_equal(derivative(z), [slope_left, slope_right])


def test_tails_keep_their_digits():
    z = np.array([-20.0])
    tail = math.erfc(20.0 / math.sqrt(2.0)) / 2.0  # 2.8e-89
    np.testing.assert_allclose(get_activation("gelu").function(z), -20.0 * tail, rtol=1e-14)
    assert z[0] * 0.5 * (1 + math.erf(z[0] / math.sqrt(2.0))) == 0.0  # the naive form has none left
    np.testing.assert_allclose(
        get_activation("sigmoid").function(z), math.exp(-20.0) / (1 + math.exp(-20.0)), rtol=1e-15
    )
    np.testing.assert_allclose(get_activation("tanh").derivative(z), 1 / math.cosh(20.0) ** 2, rtol=1e-14)
    assert 1 - math.tanh(20.0) ** 2 == 0.0  # the naive form has none left


@pytest.mark.parametrize("name", [None, *NAMES])
def test_nan_stays_nan_and_the_input_is_not_changed(name):
    z = np.array([np.nan, -1.0, 1.0])
    y = get_activation(name).function(z)
    assert np.isnan(y).tolist() == [True, False, False]
    y[:] = 7.0
    np.testing.assert_array_equal(z, [np.nan, -1.0, 1.0])


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"gelu, hardswish, leaky_relu, relu, relu6, sigmoid, silu, tanh, but is 'swish'"
    ):
        get_activation("swish")
