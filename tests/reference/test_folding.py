"""Folding: the folded layer equals the layer and the normalization, for every kind of layer, against torch."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from batchnorm.reference import batch_norm, folding
from numeric import assert_close

CHANNELS = 6


def make(seed=0):
    """Statistics and affine parameters of a normalization."""
    rng = np.random.default_rng(seed)
    return {
        "running_mean": rng.normal(size=CHANNELS),
        "running_var": rng.uniform(0.5, 2.0, CHANNELS),
        "weight": rng.normal(size=CHANNELS),
        "bias": rng.normal(size=CHANNELS),
    }


def conv(x, weight, bias, groups):
    return functional.conv2d(
        torch.tensor(x), torch.tensor(weight), torch.tensor(bias), groups=groups, padding=1
    ).numpy()


def conv_transpose(x, weight, bias, groups):
    return functional.conv_transpose2d(
        torch.tensor(x), torch.tensor(weight), torch.tensor(bias), groups=groups, stride=2
    ).numpy()


def linear(x, weight, bias, groups):
    return x @ weight.T + bias


#: name -> (layer, shape of its weight, shape of its input, how it is folded), by groups
LAYERS = {
    "linear": (linear, lambda _: (CHANNELS, 4), (5, 4)),
    "conv": (conv, lambda groups: (CHANNELS, 6 // groups, 3, 2), (2, 6, 4, 5)),
    "conv_transpose": (conv_transpose, lambda groups: (6, CHANNELS // groups, 3, 2), (2, 6, 4, 5)),
}
MATRIX = [
    (kind, groups, bias, affine)
    for kind, groups, bias, affine in itertools.product(LAYERS, [1, 2, 6], [True, False], [True, False])
    if kind != "linear" or groups == 1
]


@pytest.mark.parametrize(("kind", "groups", "with_bias", "affine"), MATRIX)
def test_folded_equals_unfolded_at_test_time(kind, groups, with_bias, affine):
    rng = np.random.default_rng(1)
    layer, shape, x_shape = LAYERS[kind]
    layer_weight, x = rng.normal(size=shape(groups)), rng.normal(size=x_shape)
    layer_bias = rng.normal(size=CHANNELS) if with_bias else None
    norm = make()
    if not affine:
        del norm["weight"], norm["bias"]

    zeros = np.zeros(CHANNELS)
    z = layer(x, layer_weight, zeros if layer_bias is None else layer_bias, groups)
    expected, _ = batch_norm.forward_test(z, **norm, eps=0.01)

    if kind == "conv_transpose":
        folded = folding.fold_transposed(layer_weight, layer_bias, **norm, groups=groups, eps=0.01)
    else:
        folded = folding.fold(layer_weight, layer_bias, **norm, eps=0.01)
    assert_close(layer(x, *folded, groups), expected, rtol=1e-13)


def test_by_hand():
    # 2 x + 5, then (z - 1) / sqrt(3 + 1) * 10 + 7 = 10 x + 27
    weight, bias = folding.fold([[2.0]], [5.0], [1.0], [3.0], [10.0], [7.0], eps=1.0)
    np.testing.assert_array_equal(weight, [[10.0]])
    np.testing.assert_array_equal(bias, [27.0])


def test_scale_and_shift_are_all_that_is_left_at_test_time():
    norm, x = make(), np.random.default_rng(2).normal(size=(4, CHANNELS, 3))
    scale, shift = folding.scale_shift(**norm)
    y, _ = batch_norm.forward_test(x, **norm)
    assert_close(scale[:, None] * x + shift[:, None], y)  # (32)


def test_a_bias_before_the_normalization_cancels_once_the_running_mean_has_seen_it():
    norm, weight = make(), np.ones((CHANNELS, 2))
    without = folding.fold(weight, None, **norm)
    bias = np.full(CHANNELS, 1e6)
    seen = folding.fold(weight, bias, **(norm | {"running_mean": norm["running_mean"] + bias}))
    assert_close(seen[1], without[1], rtol=1e-9)
    unseen = folding.fold(weight, bias, **norm)
    assert np.abs(unseen[1] - without[1]).min() > 1e3


def test_layer_bias_and_mean_are_subtracted_before_they_are_scaled():
    mean, var, layer_bias = [1e8 + 1.0], [9.0], [1e8]  # exact: -1 / 3
    _, bias = folding.fold([[1.0]], layer_bias, mean, var, eps=0.0)
    np.testing.assert_allclose(bias, [-1 / 3], rtol=1e-15)
    scale, shift = folding.scale_shift(mean, var, eps=0.0)
    assert abs((scale * layer_bias + shift)[0] + 1 / 3) > 1e-10  # scaled first: (64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: folding.fold(np.ones((3, 6)), None, np.zeros(6), np.ones(6)), r"6 output channels on axis 0.*\.T"),
        (
            lambda: folding.fold(np.ones((6, 2)), np.ones(2), np.zeros(6), np.ones(6)),
            r"layer_bias must have shape \(6,",
        ),
        (lambda: folding.fold(np.ones((6, 2)), None, np.zeros(6), np.ones(5)), r"running_var must have shape \(6,\)"),
        (lambda: folding.fold(np.ones((6, 2)), None, np.zeros(6), -np.ones(6)), "the smallest running_var is -1.0"),
        (
            lambda: folding.fold_transposed(np.ones((4, 3, 2)), None, np.zeros(6), np.ones(6)),
            r"groups is 1\. Try fold for",
        ),
        (
            lambda: folding.fold_transposed(np.ones((5, 3, 2)), None, np.zeros(6), np.ones(6), groups=2),
            "in a multiple of groups",
        ),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
