"""Masks, groups and keys against the equations as they stand, loops over the plain layer, and torch's layer."""

import doctest
import functools

import numpy as np
import pytest
import torch
from torch import nn

import equations
from batchnorm.reference import batch_norm, policies
from batchnorm.reference.statistics import averaging_factor, batch_statistics, update_running
from numeric import assert_close, assert_gradient, complex_step_gradient

SHAPES = [(9, 3), (7, 2, 5), (6, 3, 2, 3)]
ARGUMENTS = ("x", "weight", "bias", "residual")


def make(shape, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    arguments = {
        "x": rng.normal(mean, 2.0, shape),
        "weight": rng.normal(1.0, 0.5, shape[1]),
        "bias": rng.normal(0.0, 0.5, shape[1]),
        "residual": rng.normal(0.0, 1.0, shape),
    }
    return arguments, rng.normal(size=shape)


def make_mask(shape, seed=10, share=0.6):
    """About ``share`` of the samples and positions, at least two in the first and two in the last samples."""
    mask = np.random.default_rng(seed).random((shape[0], 1, *shape[2:])) < share
    mask[[0, 1, -1, -2]] = True
    return mask


def taken_out(x, mask):
    """The values that a mask lets through, as a dense batch (m, C)."""
    return np.moveaxis(x, 1, -1)[mask[:, 0]]


def put_back(values, mask, shape):
    """The inverse of `taken_out`, 0 elsewhere."""
    last = np.zeros((shape[0], *shape[2:], shape[1]))
    last[mask[:, 0]] = values
    return np.moveaxis(last, -1, 1)


def momentum(value):
    return functools.partial(averaging_factor, value)


# --- masks ---


def test_mask_by_hand():
    y, cache = policies.forward_train([[1.0], [100.0], [5.0]], [3.0], [0.5], mask=[[True], [False], [True]], eps=0.0)
    (statistics,) = cache.statistics
    assert (statistics.mean, statistics.var, statistics.count) == (3.0, 4.0, 2)
    assert y.tolist() == [[-2.5], [0.0], [3.5]]
    dx, dweight, dbias, dresidual = policies.backward([[2.0], [7.0], [0.0]], cache)
    # r = 1/2, w r = 3/2; db = 2, dw = -2: dz - (db + x_hat dw)/2 = 2 - (2 + 2)/2 = 0 and 0 - (2 - 2)/2 = 0.
    assert (dx.tolist(), dweight.tolist(), dbias.tolist()) == ([[0.0], [0.0], [0.0]], [-2.0], [2.0])
    assert dresidual.tolist() == [[2.0], [0.0], [0.0]]


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_masked_batch_is_the_batch_of_its_valid_values(shape, activation):
    arguments, dy = make(shape)
    mask = make_mask(shape)
    y, cache = policies.forward_train(**arguments, mask=mask, activation=activation)
    gradients = policies.backward(dy, cache)

    dense = {name: taken_out(arguments[name], mask) for name in ("x", "residual")}
    expected, expected_cache = batch_norm.forward_train(**(arguments | dense), activation=activation)
    expected_gradients = batch_norm.backward(taken_out(dy, mask), expected_cache)
    assert_close(y, put_back(expected, mask, shape))
    assert_close(gradients.dx, put_back(expected_gradients.dx, mask, shape))
    assert_close(gradients.dresidual, put_back(expected_gradients.dresidual, mask, shape))
    assert_close(gradients.dweight, expected_gradients.dweight)
    assert_close(gradients.dbias, expected_gradients.dbias)
    hidden = ~np.broadcast_to(mask, shape)
    for values in (y, gradients.dx, gradients.dresidual):
        assert np.all(values[hidden] == 0)

    (statistics,) = cache.statistics
    assert statistics.count == mask.sum() < mask.size
    running = policies.update_in_turn(np.zeros(shape[1]), np.ones(shape[1]), 0, cache.statistics, momentum(0.3))
    unbiased = taken_out(arguments["x"], mask).var(axis=0, ddof=1)  # divides by the valid count less one
    assert_close(running[1], 0.7 + 0.3 * unbiased)


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("per_group", [False, True], ids=["shared", "affine_per_group"])
@pytest.mark.parametrize("masks", ["none", "padding", "apart"])
@pytest.mark.parametrize("mean", [3.0, 2e6])
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1, 2, 2, 0, 1]], ids=["batch", "groups"])
def test_forward_and_backward_are_the_equations(groups, mean, masks, per_group, activation):
    shape = (9, 2, 3)
    arguments, dy = make(shape, mean=mean)
    everything = np.ones((9, 1, 3), dtype=bool)
    mask = everything if masks == "none" else make_mask(shape, share=0.7)
    kept = make_mask(shape, seed=11) if masks == "apart" else mask
    of_sample = np.zeros(9, dtype=int) if groups is None else np.array(groups)
    number = of_sample.max() + 1
    rng = np.random.default_rng(12)
    if per_group:
        arguments |= {"weight": rng.normal(size=(number, 2)), "bias": rng.normal(size=(number, 2))}
    factor, summand = rng.uniform(0.5, 2.0, (number, 2)), rng.normal(size=(number, 2))

    options = {"eps": 0.1, "activation": activation, "mask": mask, "kept": kept}
    y, cache = policies.forward_train(
        **arguments, **options, groups=of_sample, correct=lambda mean, var: (factor, summand)
    )
    gradients = policies.backward(dy, cache)

    as_it_stands = functools.partial(equations.forward, **options, groups=of_sample, factor=factor, summand=summand)
    assert_close(y, as_it_stands(**arguments))
    for name in ARGUMENTS:

        def along(value, name=name):
            return as_it_stands(**(arguments | {name: value}))

        assert_close(getattr(gradients, f"d{name}"), complex_step_gradient(along, arguments[name], dy))


def test_backward_equals_central_differences():
    shape = (6, 2, 3)
    arguments, dy = make(shape)
    options = {"mask": make_mask(shape), "kept": make_mask(shape, seed=11), "groups": policies.ghost_groups(6, 4)}
    _, cache = policies.forward_train(**arguments, **options, activation="silu")
    gradients = policies.backward(dy, cache)
    for name in ARGUMENTS:

        def along(value, name=name):
            return policies.forward_train(**(arguments | {name: value}), **options, activation="silu")[0]

        assert_gradient(along, arguments[name], dy, getattr(gradients, f"d{name}"))


def test_without_masks_and_groups_it_is_the_plain_layer():
    arguments, dy = make((5, 3, 4))
    y, cache = policies.forward_train(**arguments, activation="relu")
    expected, expected_cache = batch_norm.forward_train(**arguments, activation="relu")
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(cache.statistics[0].mean, expected_cache.mean)
    np.testing.assert_array_equal(cache.statistics[0].var, expected_cache.var)
    for ours, plain in zip(policies.backward(dy, cache), batch_norm.backward(dy, expected_cache), strict=True):
        assert_close(ours, plain, rtol=1e-15)


def test_what_is_masked_changes_no_bit_and_may_be_nan():
    shape = (5, 3, 8)
    arguments, dy = make(shape)
    mask = policies.valid_mask([5, 8, 2, 0, 6], 8)
    y, cache = policies.forward_train(**arguments, mask=mask)
    gradients = policies.backward(dy, cache)
    for value in (np.nan, np.inf, 1e300):
        spoilt = {name: np.where(mask, arguments[name], value) for name in ("x", "residual")}
        y_spoilt, cache = policies.forward_train(**(arguments | spoilt), mask=mask)
        np.testing.assert_array_equal(y_spoilt, y)
        for ours, expected in zip(policies.backward(np.where(mask, dy, value), cache), gradients, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_more_padding_changes_no_bit():
    shape = (5, 3, 8)
    arguments, dy = make(shape)
    lengths = [5, 8, 2, 0, 6]
    y, cache = policies.forward_train(**arguments, mask=policies.valid_mask(lengths, 8))
    gradients = policies.backward(dy, cache)

    def longer(values):
        return np.pad(values, ((0, 0), (0, 0), (0, 5)), constant_values=7.0)

    padded = {name: longer(arguments[name]) for name in ("x", "residual")}
    y_padded, cache = policies.forward_train(**(arguments | padded), mask=policies.valid_mask(lengths, 13))
    gradients_padded = policies.backward(longer(dy), cache)
    np.testing.assert_array_equal(y_padded[..., :8], y)
    np.testing.assert_array_equal(gradients_padded.dx[..., :8], gradients.dx)
    np.testing.assert_array_equal(gradients_padded.dweight, gradients.dweight)
    assert np.all(y_padded[..., 8:] == 0)
    assert np.all(gradients_padded.dx[..., 8:] == 0)


def test_nan_among_the_valid_values_stays_in_its_channel_and_out_of_the_padding():
    arguments, dy = make((5, 2, 4))
    mask = policies.valid_mask([4, 2, 3, 1, 4], 4)
    arguments["x"][0, 0, 0] = np.nan
    y, cache = policies.forward_train(**arguments, mask=mask)
    valid = np.broadcast_to(mask, y.shape)
    for values in (y, policies.backward(dy, cache).dx):
        assert np.isnan(values[:, 0][valid[:, 0]]).all()
        assert np.isfinite(values[:, 1]).all()
        assert np.all(values[~valid] == 0)


def test_zeros_for_padding_are_wrong_by_what_the_law_of_total_variance_says():  # (162)
    x, dy = make((6, 3, 10))[0]["x"], make((6, 3, 10))[1]
    mask = policies.valid_mask([10, 7, 4, 9, 1, 3], 10)
    valid = taken_out(x, mask)
    share, mean, var = mask.mean(), valid.mean(axis=0), valid.var(axis=0)
    naive = batch_statistics(np.where(mask, x, 0.0))
    assert_close(naive.mean, share * mean)
    assert_close(naive.var, share * var + share * (1 - share) * mean**2)
    y, cache = policies.forward_train(x, mask=mask)
    y_naive, naive_cache = batch_norm.forward_train(np.where(mask, x, 0.0))
    assert np.max(np.abs((y_naive - y) * mask)) > 0.5
    dx = policies.backward(dy, cache).dx
    assert np.max(np.abs(batch_norm.backward(dy * mask, naive_cache).dx - dx)) > 0.1 * np.max(np.abs(dx))


def test_a_backward_that_divides_by_all_positions_is_seen():
    x, dy = make((6, 3, 10))[0]["x"], make((6, 3, 10))[1]
    mask = policies.valid_mask([10, 7, 4, 9, 1, 3], 10)
    _, cache = policies.forward_train(x, mask=mask)
    dx, dweight, dbias, _ = policies.backward(dy, cache)
    x_hat, invstd = (x - cache.statistics[0].mean[:, None]) * cache.invstd[0][:, None], cache.invstd[0][:, None]

    def by(count):
        return mask * invstd * (dy - (dbias[:, None] + x_hat * dweight[:, None]) / count)

    assert_close(by(mask.sum()), dx)
    assert np.max(np.abs(by(mask.size) - dx)) > 0.01


@pytest.mark.parametrize("kept", [None, np.ones((4, 1, 3), dtype=bool)], ids=["padding", "all_outputs_kept"])
def test_a_batch_without_a_valid_value_is_zero_and_updates_nothing(kept):
    arguments, dy = make((4, 2, 3))
    y, cache = policies.forward_train(
        **arguments, mask=np.zeros((4, 1, 3), dtype=bool), kept=kept, activation="sigmoid"
    )
    np.testing.assert_array_equal(y, np.zeros((4, 2, 3)))
    for gradient in policies.backward(dy, cache):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))
    mean, var, tracked = policies.update_in_turn([1.0, 2.0], [3.0, 4.0], 5, cache.statistics, momentum(0.1))
    assert (mean.tolist(), var.tolist(), tracked) == ([1.0, 2.0], [3.0, 4.0], 5)


def test_statistics_of_the_first_half_and_all_outputs():
    arguments, dy = make((8, 3, 2))
    mask = (np.arange(8) < 4).reshape(8, 1, 1)
    y, cache = policies.forward_train(**arguments, mask=mask, kept=np.ones((8, 1, 1), dtype=bool))
    half = arguments["x"][:4]
    mean, var = half.mean(axis=(0, 2), keepdims=True), half.var(axis=(0, 2), keepdims=True)
    weight, bias = arguments["weight"][:, None], arguments["bias"][:, None]
    expected = weight * (arguments["x"] - mean) / np.sqrt(var + 1e-5) + bias + arguments["residual"]
    assert_close(y, expected)
    gradients = policies.backward(dy, cache)
    assert_close(gradients.dx[4:], weight / np.sqrt(var + 1e-5) * dy[4:])  # the other half is as in eval mode
    # Outputs of the second half alone move inputs of the first, through the statistics.
    only_second = policies.backward(np.where(mask, 0.0, dy), cache)
    assert np.min(np.abs(only_second.dx[:4])) > 0


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_sums_of_dx_are_those_of_the_plain_layer(eps):  # (54), (55), (161)
    shape = (9, 3, 4)
    arguments, dy = make(shape)
    mask, kept = make_mask(shape), make_mask(shape, seed=11)
    _, cache = policies.forward_train(**arguments, mask=mask, kept=kept, eps=eps, correct=lambda mean, var: (1.5, 0.3))
    dx, x_hat = policies.backward(dy, cache).dx, np.moveaxis(cache.x_hat.reshape(9, 4, 3), -1, 1)
    gain = arguments["weight"] * 1.5 * cache.invstd[0]
    theta = eps / (cache.statistics[0].var + eps)
    scale = np.abs(dx).sum()
    np.testing.assert_allclose(dx.sum(axis=(0, 2)), 0.0, atol=1e-13 * scale)
    sum_dz_x_hat = (dy * kept * x_hat).sum(axis=(0, 2))
    np.testing.assert_allclose((dx * x_hat).sum(axis=(0, 2)), theta * gain * sum_dz_x_hat, rtol=0, atol=1e-13 * scale)


def test_constant_channel_under_a_mask_is_exactly_the_bias():
    x = np.full((6, 1, 5), 1e6 / 3)
    mask = policies.valid_mask([5, 3, 4, 2, 1, 5], 5)
    y, cache = policies.forward_train(np.where(mask, x, np.nan), [2.0], [0.25], mask=mask)
    np.testing.assert_array_equal(y, np.where(mask, 0.25, 0.0))
    np.testing.assert_array_equal(cache.statistics[0].var, [0.0])
    dx = policies.backward(np.random.default_rng(1).normal(size=x.shape), cache).dx
    assert np.all(np.isfinite(dx))


# --- one value, and frozen ---


def test_one_value_is_normalized_by_the_running_statistics_and_updates_nothing():  # (163)
    arguments, dy = make((1, 3))
    stored = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    with pytest.raises(ValueError, match=r"group 0 has one.*single=\(running_mean, running_var\)"):
        policies.forward_train(**arguments)
    y, cache = policies.forward_train(**arguments, single=stored, activation="relu")
    expected, expected_cache = batch_norm.forward_test(
        **arguments, running_mean=stored[0], running_var=stored[1], activation="relu"
    )
    np.testing.assert_array_equal(y, expected)
    for ours, plain in zip(policies.backward(dy, cache), batch_norm.backward_test(dy, expected_cache), strict=True):
        assert_close(ours, plain)
    mean, var, tracked = policies.update_in_turn(*stored, 7, cache.statistics, momentum(None))
    assert (mean.tolist(), var.tolist(), tracked) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 7)


def test_one_value_concerns_its_group_only():
    arguments, dy = make((5, 2))
    stored = np.array([1.0, 2.0]), np.array([4.0, 5.0])
    y, cache = policies.forward_train(**arguments, groups=policies.ghost_groups(5, 2), single=stored)
    four, four_cache = policies.forward_train(
        **(arguments | {name: arguments[name][:4] for name in ("x", "residual")}), groups=policies.ghost_groups(4, 2)
    )
    np.testing.assert_array_equal(y[:4], four)
    np.testing.assert_array_equal(policies.backward(dy, cache).dx[:4], policies.backward(dy[:4], four_cache).dx)
    last = {name: arguments[name][4:] for name in ("x", "residual")}
    expected, _ = batch_norm.forward_test(**(arguments | last), running_mean=stored[0], running_var=stored[1])
    assert_close(y[4:], expected)
    assert [found.count for found in cache.statistics] == [2, 2, 0]


@pytest.mark.parametrize("activation", [None, "hardswish"])
def test_frozen_is_the_test_mode(activation):
    arguments, dy = make((5, 3, 2))
    stored = {"running_mean": [1.0, 2.0, 3.0], "running_var": [4.0, 5.0, 6.0]}
    y, cache = policies.forward_test(**arguments, **stored, activation=activation)
    expected, expected_cache = batch_norm.forward_test(**arguments, **stored, activation=activation)
    np.testing.assert_array_equal(y, expected)
    for ours, plain in zip(policies.backward(dy, cache), batch_norm.backward_test(dy, expected_cache), strict=True):
        assert_close(ours, plain, rtol=1e-15)
    tracked = policies.update_in_turn(stored["running_mean"], stored["running_var"], 3, cache.statistics, momentum(0.1))
    assert (tracked[0].tolist(), tracked[1].tolist(), tracked[2]) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 3)


def test_frozen_with_padding_keeps_the_padding_zero():
    arguments, dy = make((3, 2, 4))
    mask = policies.valid_mask([4, 2, 0], 4)
    stored = {"running_mean": [1.0, 2.0], "running_var": [4.0, 5.0]}
    y, cache = policies.forward_test(**arguments, **stored, kept=mask, activation="sigmoid")
    expected, expected_cache = batch_norm.forward_test(**arguments, **stored, activation="sigmoid")
    np.testing.assert_array_equal(y, np.where(mask, expected, 0.0))
    dx = policies.backward(dy, cache).dx
    assert_close(dx, np.where(mask, batch_norm.backward_test(dy, expected_cache).dx, 0.0))


# --- ghost batches ---


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("size", [2, 3, 5, 11, 20])
@pytest.mark.parametrize("shape", [(11, 3, 4), (11, 2, 2, 3)], ids=str)
def test_ghost_batches_are_a_loop_over_chunks(shape, size, activation):  # (164), (165)
    arguments, dy = make(shape, mean=1e6)
    y, cache = policies.forward_train(**arguments, groups=policies.ghost_groups(11, size), activation=activation)
    gradients = policies.backward(dy, cache)
    sums = np.zeros(shape[1]), np.zeros(shape[1])
    for start in range(0, 11, size):
        chunk = slice(start, start + size)
        part = {name: arguments[name][chunk] for name in ("x", "residual")}
        expected, expected_cache = batch_norm.forward_train(**(arguments | part), activation=activation)
        expected_gradients = batch_norm.backward(dy[chunk], expected_cache)
        assert_close(y[chunk], expected)
        assert_close(gradients.dx[chunk], expected_gradients.dx)
        sums = sums[0] + expected_gradients.dweight, sums[1] + expected_gradients.dbias
    assert_close(gradients.dweight, sums[0])
    assert_close(gradients.dbias, sums[1])


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, None])
def test_ghost_running_statistics_are_those_of_a_layer_called_once_per_group(value):  # (166)
    layer = nn.BatchNorm1d(3, momentum=value, dtype=torch.float64)
    running = np.zeros(3), np.ones(3), 0
    for seed in range(3):
        x = make((10, 3), seed)[0]["x"]
        for chunk in torch.tensor(x).split(4):
            layer(chunk)
        _, cache = policies.forward_train(x, groups=policies.ghost_groups(10, 4))
        running = policies.update_in_turn(*running, cache.statistics, momentum(value))
    assert_close(running[0], layer.running_mean.numpy())
    assert_close(running[1], layer.running_var.numpy())
    assert running[2] == layer.num_batches_tracked.item() == 9


def test_a_ghost_layer_forgets_faster():  # (166), (167)
    x = make((16, 2))[0]["x"]
    _, cache = policies.forward_train(x, groups=policies.ghost_groups(16, 2))
    means = np.array([found.mean for found in cache.statistics])
    mean, _, _ = policies.update_in_turn([0.0, 0.0], [1.0, 1.0], 0, cache.statistics, momentum(0.1))
    weights = 0.1 * 0.9 ** np.arange(7, -1, -1)
    assert_close(mean, weights @ means)
    assert_close(weights.sum(), 1 - 0.9**8)
    # The naive form averages over the groups and moves once: it starts 57 per cent of the way too late.
    naive = update_running([0.0, 0.0], [1.0, 1.0], means.mean(axis=0), np.ones(2), 16, 0.1)[0]
    assert np.min(np.abs(naive / mean)) < 0.25


def test_groups_do_not_see_each_other():
    arguments, dy = make((9, 2))
    groups = policies.ghost_groups(9, 4)[::-1]  # of 4, 4 and 1 samples, the one first
    with pytest.raises(ValueError, match="group 2 has one"):
        policies.forward_train(**arguments, groups=groups)
    groups = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0])
    y, cache = policies.forward_train(**arguments, groups=groups)
    arguments["x"][groups == 1] *= -50.0
    y_changed, cache_changed = policies.forward_train(**arguments, groups=groups)
    np.testing.assert_array_equal(y_changed[groups == 0], y[groups == 0])
    np.testing.assert_array_equal(
        policies.backward(dy, cache_changed).dx[groups == 0], policies.backward(dy, cache).dx[groups == 0]
    )


def test_two_equal_samples_in_a_group():
    """The smallest group, constant: x_hat is 0 and dx is finite."""
    arguments, dy = make((4, 2))
    arguments["x"][:2] = 1234.567
    y, cache = policies.forward_train(**arguments, groups=policies.ghost_groups(4, 2))
    assert_close(y[:2], arguments["bias"] + arguments["residual"][:2], rtol=1e-15)
    assert np.isfinite(policies.backward(dy, cache).dx).all()


# --- keys ---


@pytest.mark.parametrize("per_key", [False, True], ids=["affine_shared", "affine_per_key"])
def test_keys_are_a_loop_over_domains(per_key):
    shape, keys = (9, 2, 3), np.array([2, 0, 2, 2, 0, 0, 2, 0, 0])  # key 1 is not in the batch
    arguments, dy = make(shape)
    rng = np.random.default_rng(1)
    affine = {"weight": rng.normal(size=(3, 2)), "bias": rng.normal(size=(3, 2))} if per_key else {}
    y, cache = policies.forward_train(**(arguments | affine), groups=keys)
    gradients = policies.backward(dy, cache)
    dweight, dbias = np.zeros((3, 2)), np.zeros((3, 2))
    for key in (0, 2):
        part = {name: arguments[name][keys == key] for name in ("x", "residual")}
        part |= {name: value[key] for name, value in affine.items()}
        expected, expected_cache = batch_norm.forward_train(**(arguments | part))
        expected_gradients = batch_norm.backward(dy[keys == key], expected_cache)
        assert_close(y[keys == key], expected)
        assert_close(gradients.dx[keys == key], expected_gradients.dx)
        dweight[key], dbias[key] = expected_gradients.dweight, expected_gradients.dbias
    assert_close(gradients.dweight, dweight if per_key else dweight.sum(axis=0))
    assert_close(gradients.dbias, dbias if per_key else dbias.sum(axis=0))


@pytest.mark.parametrize("value", [0.1, None])
def test_running_statistics_of_keys_are_those_of_a_layer_each(value):  # (168)
    layers = [nn.BatchNorm1d(2, momentum=value, dtype=torch.float64) for _ in range(3)]
    running = np.zeros((3, 2)), np.ones((3, 2)), np.zeros(3, dtype=int)
    for seed, keys in enumerate(([0, 0, 1, 1, 1, 0], [1, 1, 1], [0, 1, 0, 1])):
        x, keys = make((len(keys), 2), seed)[0]["x"], np.array(keys)
        for key in np.unique(keys):
            layers[key](torch.tensor(x[keys == key]))
        _, cache = policies.forward_train(x, groups=keys)
        running = policies.update_per_key(*running, cache.statistics, momentum(value))
    for key, layer in enumerate(layers):
        assert_close(running[0][key], layer.running_mean.numpy())
        assert_close(running[1][key], layer.running_var.numpy())
    assert running[2].tolist() == [2, 3, 0]
    x, keys = make((4, 2))[0]["x"], [2, 0, 1, 1]
    y, _ = policies.forward_test(x, running[0], running[1], groups=keys)
    for sample, key in enumerate(keys):
        assert_close(y[sample], layers[key].eval()(torch.tensor(x[sample : sample + 1]))[0].detach().numpy())


def test_shared_statistics_cannot_serve_two_domains():
    """The naive form, one pair for both: at test time neither domain is normalized."""
    rng = np.random.default_rng(3)
    x, keys = rng.normal(0.0, 1.0, (200, 1)), np.arange(200) % 2
    x[keys == 1] += 10.0
    _, cache = policies.forward_train(x, groups=keys)
    own = policies.update_per_key(np.zeros((2, 1)), np.ones((2, 1)), [0, 0], cache.statistics, momentum(1.0))
    y, _ = policies.forward_test(x, own[0], own[1], groups=keys)
    shared = batch_statistics(x)
    naive, _ = batch_norm.forward_test(x, shared.mean, shared.var)
    for key in (0, 1):
        assert abs(y[keys == key].mean()) < 1e-12
        assert abs(naive[keys == key].mean()) > 0.9
        assert naive[keys == key].std() < 0.3


# --- the border, and the book ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: policies.forward_train(np.ones((4, 3)), mask=np.ones((4, 3), dtype=bool)),
            r"mask must be boolean and broadcastable to \(4, 1\).*\(4, 3\)",
        ),
        (lambda: policies.forward_train(np.ones((4, 3)), mask=np.ones((4, 1))), r"dtype float64\. Try valid_mask"),
        (lambda: policies.forward_train(np.ones((4, 3)), kept=np.ones((5, 1), dtype=bool)), r"kept must be boolean"),
        (lambda: policies.forward_train(np.ones((4, 3)), groups=[0, 1]), r"4 integers, one per sample of x.*\[0, 1\]"),
        (lambda: policies.forward_train(np.ones((2, 3)), groups=[0, -1]), r"from 0 to 0"),
        (lambda: policies.forward_train(np.ones((2, 3)), np.ones((2, 3)), groups=[0, 2]), r"from 0 to 1"),
        (lambda: policies.forward_train(np.ones((2, 3)), groups=[0.0, 1.0]), r"integers"),
        (lambda: policies.forward_train(np.ones((4, 3)), np.ones(2)), r"weight must have shape \(3,\) or \(1, 3\)"),
        (lambda: policies.forward_train(np.ones((4, 3)), eps=0.0), r"Try eps=1e-5"),
        (
            lambda: policies.forward_train(np.ones((4, 3)), residual=np.ones((4, 1))),
            r"residual must have shape \(4, 3\)",
        ),
        (lambda: policies.forward_test(np.ones((4, 3)), np.ones(2), np.ones(3)), r"running_mean must have shape"),
        (
            lambda: policies.backward(np.ones(3), policies.forward_train(np.ones((4, 3)))[1]),
            r"dy must have shape \(4, 3\)",
        ),
        (lambda: policies.ghost_groups(4, 0), r"at least 1 sample, but is 0"),
        (lambda: policies.valid_mask([5], 4), r"from 0 to 4.*\[5\].*after its strides"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_docstrings_run():
    failed, attempted = doctest.testmod(policies)
    assert attempted > 0
    assert failed == 0
