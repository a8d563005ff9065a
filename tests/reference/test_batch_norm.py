"""The layer against exact rational arithmetic, central differences, torch in float64, and the laws of the derivation.

Gradients are tested under a random dy: a sum() loss has dx = 0 whatever the backward does (DERIVATION, section 10).
"""

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from batchnorm.reference import activations, batch_norm, statistics

SHAPES = [(7, 3), (5, 3, 4), (4, 2, 3, 5), (2, 3, 2, 3, 2)]
ACTIVATIONS = [None, *activations.ACTIVATIONS]
ARGUMENTS = ("x", "weight", "bias", "residual")

# A sum of m terms and about ten roundings after it: far below 1e-12 for the sizes here, far above float64's 1e-16.
RTOL = 1e-12


def assert_close(actual, expected, rtol=RTOL):
    """Compare relative to the largest expected value: single elements may be small because terms cancelled."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.max(np.abs(expected), initial=0.0))


def make(shape, seed=0):
    """Random arguments of a forward, and a random dy."""
    rng = np.random.default_rng(seed)
    channels = shape[1]
    arguments = {
        "x": rng.normal(3.0, 2.0, shape),
        "weight": rng.normal(1.0, 0.5, channels),
        "bias": rng.normal(0.0, 0.5, channels),
        "residual": rng.normal(0.0, 1.0, shape),
    }
    return arguments, rng.normal(size=shape)


def exact(x, dy, weight, eps):
    """One channel of forward and backward in rational arithmetic; the root alone is rounded, to 60 digits."""
    x, dy = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in dy]
    weight, eps = Fraction(weight), Fraction(eps)
    count = len(x)
    mean = sum(x) / count
    centred = [v - mean for v in x]
    var = sum(d * d for d in centred) / count
    invstd = Fraction(10**60, math.isqrt(int((var + eps) * 10**120)))
    x_hat = [d * invstd for d in centred]
    dbias, dweight = sum(dy), sum(g * h for g, h in zip(dy, x_hat, strict=True))
    dx = [weight * invstd * (g - (dbias + h * dweight) / count) for g, h in zip(dy, x_hat, strict=True)]
    return {"mean": float(mean), "var": float(var), "x_hat": floats(x_hat), "dx": floats(dx), "dweight": float(dweight)}


def floats(values):
    return np.array([float(v) for v in values])


# --- values ---


def test_forward_by_hand():
    y, cache = batch_norm.forward_train(
        [[1.0], [5.0]], [3.0], [0.5], eps=0.0, residual=[[0.0], [-4.0]], activation="relu"
    )
    assert (cache.mean, cache.var, cache.invstd, cache.count) == (3.0, 4.0, 0.5, 2)
    np.testing.assert_array_equal(cache.x_hat, [[-1.0], [1.0]])
    np.testing.assert_array_equal(cache.z, [[-2.5], [-0.5]])
    np.testing.assert_array_equal(y, [[0.0], [0.0]])


def test_eps_is_inside_the_root_in_both_modes():
    x = [[-1.0], [1.0]]  # var 1, eps 3: root 2
    np.testing.assert_array_equal(batch_norm.forward_train(x, eps=3.0)[0], [[-0.5], [0.5]])
    np.testing.assert_array_equal(batch_norm.forward_test(x, [0.0], [1.0], eps=3.0)[0], [[-0.5], [0.5]])


def test_spatial_is_dense_on_rows():
    x = np.random.default_rng(0).normal(size=(4, 3, 2, 5))
    y, _ = batch_norm.forward_train(x)
    for channel in range(3):
        dense, _ = batch_norm.forward_train(x[:, channel].reshape(-1, 1))
        assert_close(y[:, channel].reshape(-1, 1), dense)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_node_by_node_equals_the_simplified_form(shape, activation):
    arguments, dy = make(shape)
    _, cache = batch_norm.forward_train(**arguments, activation=activation)
    for by_nodes, simplified in zip(batch_norm.backward_nodes(dy, cache), batch_norm.backward(dy, cache), strict=True):
        assert_close(by_nodes, simplified)


def test_the_papers_form_equals_both():
    arguments, dy = make((9, 4))
    del arguments["residual"]
    _, cache = batch_norm.forward_train(**arguments, eps=0.1)
    count, dx_hat, d = cache.count, dy * arguments["weight"], arguments["x"] - cache.mean
    dvar = np.sum(dx_hat * d, axis=0) * -0.5 * (cache.var + 0.1) ** -1.5  # (24)
    dmean = -np.sum(dx_hat * cache.invstd, axis=0) + dvar * np.sum(-2 * d, axis=0) / count  # (25)
    dx = dx_hat * cache.invstd + dvar * 2 * d / count + dmean / count  # (26)
    assert_close(batch_norm.backward(dy, cache).dx, dx)
    projected = dx_hat - dx_hat.mean(axis=0) - cache.x_hat * (dx_hat * cache.x_hat).mean(axis=0)
    assert_close(cache.invstd * projected, dx)  # (29)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mode", ["train", "test"])
def test_gradients_equal_central_differences(mode, activation):
    shape = (4, 2, 3)
    arguments, dy = make(shape, seed=1)

    def forward(**changed):
        if mode == "train":
            return batch_norm.forward_train(**(arguments | changed), activation=activation)
        return batch_norm.forward_test(
            **(arguments | changed), running_mean=[2.0, 4.0], running_var=[3.0, 5.0], activation=activation
        )

    step = 1e-5  # truncation step^2 and rounding 1e-16/step are both below 1e-9

    def difference(name, index):
        up, down = arguments[name].copy(), arguments[name].copy()
        up[index] += step
        down[index] -= step
        return np.sum(dy * (forward(**{name: up})[0] - forward(**{name: down})[0])) / (2 * step)

    _, cache = forward()
    gradients = (batch_norm.backward if mode == "train" else batch_norm.backward_test)(dy, cache)
    for name in ARGUMENTS:
        numeric = np.empty_like(arguments[name])
        for index in np.ndindex(numeric.shape):
            numeric[index] = difference(name, index)
        assert_close(getattr(gradients, f"d{name}"), numeric, rtol=1e-8)


def torch_activation(name, z):
    return z if name is None else getattr(torch if name in ("sigmoid", "tanh") else functional, name)(z)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_torch_in_float64(shape, activation, training):
    arguments, dy = make(shape, seed=2)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in arguments.items()}
    running = np.full(shape[1], 2.0), np.full(shape[1], 3.0)
    buffers = [torch.tensor(value) for value in running]
    z = functional.batch_norm(tensors["x"], *buffers, tensors["weight"], tensors["bias"], training, 0.3, 1e-3)
    expected = torch_activation(activation, z + tensors["residual"])
    expected.backward(torch.tensor(dy))

    options = {"eps": 1e-3, "activation": activation}
    if training:
        y, cache = batch_norm.forward_train(**arguments, **options)
        gradients = batch_norm.backward(dy, cache)
        running = statistics.update_running(*running, cache.mean, cache.var, cache.count, 0.3)
    else:
        y, cache = batch_norm.forward_test(**arguments, running_mean=running[0], running_var=running[1], **options)
        gradients = batch_norm.backward_test(dy, cache)
    assert_close(y, expected.detach())
    for name in ARGUMENTS:
        assert_close(getattr(gradients, f"d{name}"), tensors[name].grad)
    for ours, theirs in zip(running, buffers, strict=True):
        assert_close(ours, theirs)


def test_left_out_arguments_are_neutral():
    arguments, dy = make((6, 3, 2))
    x = arguments["x"]
    y, cache = batch_norm.forward_train(x)
    spelled_out, _ = batch_norm.forward_train(x, np.ones(3), np.zeros(3), residual=np.zeros(x.shape))
    np.testing.assert_array_equal(y, spelled_out)
    np.testing.assert_array_equal(batch_norm.backward(dy, cache).dresidual, dy)
    assert_close(batch_norm.backward(dy, cache).dbias, dy.sum(axis=(0, 2)))


def test_empty_batch():
    y, cache = batch_norm.forward_train(np.empty((0, 3, 4)), eps=1e-5)
    assert y.shape == (0, 3, 4)
    assert cache.count == 0
    assert np.isnan([cache.mean, cache.var, cache.invstd]).all()
    for backward in (batch_norm.backward, batch_norm.backward_nodes):
        gradients = backward(np.empty((0, 3, 4)), cache)
        assert gradients.dx.shape == gradients.dresidual.shape == (0, 3, 4)
        np.testing.assert_array_equal([gradients.dweight, gradients.dbias], np.zeros((2, 3)))


def test_nan_stays_in_its_channel():
    x = np.random.default_rng(9).normal(size=(6, 2))
    expected, _ = batch_norm.forward_train(x)
    x[3, 0] = np.nan
    y, cache = batch_norm.forward_train(x)
    assert np.isnan(y[:, 0]).all()
    np.testing.assert_array_equal(y[:, 1], expected[:, 1])
    np.testing.assert_array_equal(np.isnan(batch_norm.backward(x, cache).dx).all(axis=0), [True, False])


# --- hard regimes ---


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [
        (0.0, 1.0),
        (1e6, 1.0),
        (-1e8, 1.0),
        (1e-3, 1e-9),
        (0.0, 1e30),
        (1e30, 1e24),
        (1e30, 1e22),
        (1e12, 1.0),
        (0.0, 1e99),
    ],
)
def test_agrees_with_rational_arithmetic(mean, deviation):
    rng = np.random.default_rng(3)
    x, dy = rng.normal(mean, deviation, 101), rng.normal(size=101)
    eps = 1e-3 * deviation**2
    expected = exact(x, dy, 0.7, eps)
    _, cache = batch_norm.forward_train(x[:, None], [0.7], eps=eps)
    assert abs(cache.mean[0] - expected["mean"]) <= 2**-51 * max(abs(mean), deviation)
    assert_close(cache.var[0], expected["var"], rtol=1e-15)
    assert_close(cache.x_hat[:, 0], expected["x_hat"], rtol=1e-15)
    for backward in (batch_norm.backward, batch_norm.backward_nodes):
        gradients = backward(dy[:, None], cache)
        assert_close(gradients.dx[:, 0], expected["dx"], rtol=3e-15)
        assert_close(gradients.dweight[0], expected["dweight"], rtol=3e-15)


def test_is_a_thousand_times_more_accurate_than_float32():
    rng = np.random.default_rng(4)
    x, dy = rng.normal(1e6, 1.0, 400).astype(np.float32), rng.normal(size=400)
    expected = exact(x, dy, 1.0, 1e-5)["x_hat"]
    in_float32 = functional.batch_norm(torch.tensor(x[:, None]), None, None, training=True).numpy()[:, 0]
    ours = batch_norm.forward_train(x[:, None])[0][:, 0]
    assert np.max(np.abs(in_float32 - expected)) > 1e-3
    assert np.max(np.abs(ours - expected)) < 1e-3 * np.max(np.abs(in_float32 - expected))
    assert_close(ours, expected, rtol=1e-15)


def test_a_mean_in_one_number_shifts_x_hat():
    x = np.random.default_rng(5).normal(1e6, 1.0, 101)
    expected = exact(x, x, 1.0, 0.0)["x_hat"]
    rounded_mean = float(sum(map(Fraction, x)) / 101)  # the best that one float64 can do
    one_number = (x - rounded_mean) / np.std(x)
    assert np.max(np.abs(one_number - expected)) > 1e-12
    assert_close(batch_norm.forward_train(x[:, None], eps=0.0)[0][:, 0], expected, rtol=1e-15)


def test_scale_and_shift_lose_digits_that_centring_keeps():
    x = np.random.default_rng(6).normal(1e6, 1.0, (50, 1))
    running_mean, running_var = np.array([1e6]), np.array([1.0])
    expected = np.array([[float(Fraction(v) - 10**6)] for v in x[:, 0]])
    scale = 3.0 / np.sqrt(running_var)
    folded = x * scale + (0.1 - running_mean * scale)  # (32)
    assert 1e-11 < np.max(np.abs(folded - (3.0 * expected + 0.1))) < 1e-9  # (64): 3 * 1e6 * 1e-16
    y, _ = batch_norm.forward_test(x, running_mean, running_var, [3.0], [0.1], eps=0.0)
    assert_close(y, 3.0 * expected + 0.1, rtol=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3, 1e30 / 3])
def test_constant_channel_is_exactly_the_bias(value):
    y, cache = batch_norm.forward_train(np.full((37, 1, 3), value), [2.0], [0.25])
    np.testing.assert_array_equal(cache.var, [0.0])
    np.testing.assert_array_equal(y, np.full((37, 1, 3), 0.25))


# --- laws ---


def test_sums_that_are_known_before_any_data_are_seen():
    x, eps = make((9, 4))[0]["x"], 0.3
    _, cache = batch_norm.forward_train(x, eps=eps)
    np.testing.assert_allclose(cache.x_hat.sum(axis=0), 0.0, atol=RTOL)  # (27)
    assert_close((cache.x_hat**2).sum(axis=0), 9 * (1 - eps / (cache.var + eps)))  # (28)


def test_affine_invariance():  # (56)
    x = make((6, 3, 4))[0]["x"]
    y, _ = batch_norm.forward_train(x, eps=0.01)
    assert_close(batch_norm.forward_train(8.0 * x + 5.0, eps=0.64)[0], y)
    assert_close(batch_norm.forward_train(-8.0 * x, eps=0.64)[0], -y)


def test_scaled_weights_of_the_layer_before():  # (57)
    rng = np.random.default_rng(7)
    inputs, matrix, dy = rng.normal(size=(9, 5)), rng.normal(size=(5, 4)), rng.normal(size=(9, 4))

    def run(factor):
        y, cache = batch_norm.forward_train(inputs @ (factor * matrix), eps=0.01 * factor**2)
        dx = batch_norm.backward(dy, cache).dx
        return y, dx @ (factor * matrix).T, inputs.T @ dx

    (y, dinputs, dmatrix), (y_scaled, dinputs_scaled, dmatrix_scaled) = run(1.0), run(3.0)
    assert_close(y_scaled, y)
    assert_close(dinputs_scaled, dinputs)
    assert_close(dmatrix_scaled, dmatrix / 3.0)


def test_permuting_the_batch_permutes_the_output_and_the_gradient():
    arguments, dy = make((8, 3, 2))
    order = np.random.default_rng(8).permutation(8)
    y, cache = batch_norm.forward_train(arguments["x"])
    y_permuted, cache_permuted = batch_norm.forward_train(arguments["x"][order])
    assert_close(y_permuted, y[order])
    assert_close(batch_norm.backward(dy[order], cache_permuted).dx, batch_norm.backward(dy, cache).dx[order])


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
@pytest.mark.parametrize("backward", [batch_norm.backward, batch_norm.backward_nodes])
def test_sums_and_norm_of_dx(backward, eps):
    arguments, dy = make((50, 3))
    weight = arguments["weight"]
    _, cache = batch_norm.forward_train(arguments["x"], weight, eps=eps)
    dx, dweight, dbias, _ = backward(dy, cache)
    theta, gain = eps / (cache.var + eps), weight * cache.invstd
    scale = np.abs(dx).sum(axis=0).max()
    np.testing.assert_allclose(dx.sum(axis=0), 0.0, atol=RTOL * scale)  # (54)
    np.testing.assert_allclose(
        (dx * cache.x_hat).sum(axis=0), theta * gain * dweight, rtol=0, atol=RTOL * scale
    )  # (55)
    norm = gain**2 * ((dy**2).sum(axis=0) - dbias**2 / 50 - (1 + theta) * dweight**2 / 50)
    assert_close((dx**2).sum(axis=0), norm)  # (58)


def test_a_sum_loss_cannot_see_a_wrong_backward():
    arguments, dy = make((20, 3))
    _, cache = batch_norm.forward_train(arguments["x"])

    def wrong(dy):
        return cache.invstd * (dy - dy.mean(axis=0))  # the term with dweight is forgotten

    ones = np.ones((20, 3))
    np.testing.assert_allclose(wrong(ones), batch_norm.backward(ones, cache).dx, atol=1e-14)
    assert np.max(np.abs(wrong(dy) - batch_norm.backward(dy, cache).dx)) > 0.05


# --- the border, and the book ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: batch_norm.forward_train(np.zeros((1, 3))),
            r"more than one value per channel.*\(1, 3\).*larger batch",
        ),
        (lambda: batch_norm.forward_train(np.zeros(4)), r"\(N, C, \*S\).*\(4,\).*x\[:, None\]"),
        (lambda: batch_norm.forward_train(np.zeros((4, 3)), np.ones(4)), r"weight must have shape \(3,\).*\(4,\).*Try"),
        (lambda: batch_norm.forward_train(np.zeros((4, 3)), residual=np.ones((4, 1))), r"residual.*\(4, 3\).*\(4, 1\)"),
        (lambda: batch_norm.forward_train(np.zeros((4, 3)), eps=0.0), r"var \+ eps must be positive.*Try eps=1e-5"),
        (lambda: batch_norm.forward_train(np.ones((4, 3)), eps=-1.0), r"eps at least 0, but eps is -1.0"),
        (lambda: batch_norm.forward_train(np.ones((4, 3)), activation="mish"), r"relu.*silu.*'mish'"),
        (
            lambda: batch_norm.forward_test(np.zeros((4, 3)), np.zeros(3), None),
            r"running_var must have shape \(3,\).*\(\)",
        ),
        (lambda: batch_norm.forward_test(np.zeros((4, 3)), np.zeros(2), np.ones(3)), r"running_mean must have shape"),
        (lambda: batch_norm.forward_test(np.zeros((4, 3)), np.zeros(3), -np.ones(3)), r"smallest var is -1.0"),
    ],
)
def test_forward_says_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_backward_says_what_must_hold():
    x = np.arange(8.0).reshape(4, 2)
    _, train = batch_norm.forward_train(x)
    _, test = batch_norm.forward_test(x, np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match=r"dy must have the shape of x, \(4, 2\), but has shape \(4,\)"):
        batch_norm.backward(np.zeros(4), train)
    for backward in (batch_norm.backward, batch_norm.backward_nodes):
        with pytest.raises(ValueError, match=r"comes from forward_test\. Try backward_test"):
            backward(x, test)
    with pytest.raises(ValueError, match=r"comes from forward_train\. Try backward"):
        batch_norm.backward_test(x, train)


@pytest.mark.parametrize("module", [activations, batch_norm, statistics])
def test_examples_in_docstrings_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0
