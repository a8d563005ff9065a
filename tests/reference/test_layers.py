"""Layers, convolution and pooling, alone and in sandwiches: by hand, against torch, and by central differences."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from batchnorm.reference import convolution, layers, sandwiches
from numeric import assert_close, assert_gradient


def rel_error(a, b):
    """The measure of the CS231n notebooks."""
    return np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)))


def tensors(*arrays):
    return [torch.tensor(array, requires_grad=True) for array in arrays]


def assert_equals_torch(forward, backward, in_torch, arrays):
    """Output, and the gradient of every argument under a random dy."""
    y, cache = forward(*arrays)
    dy = np.random.default_rng(7).normal(size=y.shape)
    inputs = tensors(*arrays)
    expected = in_torch(*inputs)
    expected.backward(torch.tensor(dy))
    assert_close(y, expected.detach().numpy())
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert_close(gradient, tensor.grad.numpy())


def assert_gradients(forward, backward, arrays, rtol=1e-8):
    """Gradient of every argument under a random dy, by central differences."""
    y, cache = forward(*arrays)
    dy = np.random.default_rng(8).normal(size=y.shape)
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for index, gradient in enumerate(gradients):

        def changed(value, index=index):
            return forward(*arrays[:index], value, *arrays[index + 1 :])[0]

        assert_gradient(changed, arrays[index], dy, gradient, rtol)


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


# --- linear, activations, flatten ---


def test_linear_by_hand():
    y, cache = layers.linear_forward([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], [10.0, 20.0])
    np.testing.assert_array_equal(y, [[21.0, 37.0]])
    dx, dweight, dbias = layers.linear_backward([[1.0, -1.0]], cache)
    np.testing.assert_array_equal(dx, [[-2.0, -2.0]])
    np.testing.assert_array_equal(dweight, [[1.0, 2.0], [-1.0, -2.0]])
    np.testing.assert_array_equal(dbias, [1.0, -1.0])


def test_linear_gives_the_published_values_of_cs231n():
    x = np.linspace(-0.1, 0.5, num=2 * 120).reshape(2, 4, 5, 6)
    weight = np.linspace(-0.2, 0.3, num=120 * 3).reshape(120, 3)  # stored (in, out) there
    y, _ = layers.linear_forward(x, weight.T, np.linspace(-0.3, 0.1, num=3))
    published = [[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]]
    assert rel_error(y, np.array(published)) < 1e-8


def test_relu_gives_the_published_values_of_cs231n():
    y, _ = layers.relu_forward(np.linspace(-0.5, 0.5, num=12).reshape(3, 4))
    published = [[0, 0, 0, 0], [0, 0, 0.04545455, 0.13636364], [0.22727273, 0.31818182, 0.40909091, 0.5]]
    assert rel_error(y, np.array(published)) < 1e-7


def test_linear_equals_torch_and_central_differences():
    arrays = draw((5, 4), (3, 4), (3,))
    assert_equals_torch(layers.linear_forward, layers.linear_backward, functional.linear, arrays)
    assert_gradients(layers.linear_forward, layers.linear_backward, draw((4, 2, 3), (5, 6), (5,)))


def test_linear_takes_images_and_gives_their_gradient_back_as_images():
    x, weight, dy = draw((2, 3, 2, 2), (4, 12), (2, 4))
    y, cache = layers.linear_forward(x, weight)
    flat, flat_cache = layers.linear_forward(x.reshape(2, 12), weight)
    np.testing.assert_array_equal(y, flat)
    dx, dweight, dbias = layers.linear_backward(dy, cache)
    flat_gradients = layers.linear_backward(dy, flat_cache)
    np.testing.assert_array_equal(dx, flat_gradients.dx.reshape(x.shape))
    np.testing.assert_array_equal(dweight, flat_gradients.dweight)
    np.testing.assert_array_equal(dbias, flat_gradients.dbias)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_activations_equal_torch_and_central_differences(name):
    forward, backward = getattr(layers, f"{name}_forward"), getattr(layers, f"{name}_backward")
    assert_equals_torch(forward, backward, getattr(torch, name), draw((3, 4, 2)))
    assert_gradients(forward, backward, draw((3, 4, 2)))


def test_flatten_is_undone_by_its_backward():
    (x,) = draw((3, 2, 4))
    y, cache = layers.flatten_forward(x)
    assert y.shape == (3, 8)
    np.testing.assert_array_equal(layers.flatten_backward(y, cache), x)


# --- convolution and pooling ---

CONVS = [
    # x, weight, stride, padding
    ((2, 3, 5, 6), (4, 3, 3, 3), 1, 1),
    ((2, 3, 5, 6), (4, 3, 3, 3), 2, 1),
    ((2, 1, 7, 5), (2, 1, 2, 3), (3, 2), (0, 2)),  # no full step reaches the last row
    ((1, 2, 4, 4), (3, 2, 1, 1), 1, 0),
    ((2, 2, 3, 3), (3, 2, 3, 3), 1, 0),  # one window
    ((1, 2, 6, 6), (2, 2, 2, 2), 3, 0),  # windows with gaps between them
]


@pytest.mark.parametrize(("x", "weight", "stride", "padding"), CONVS)
def test_conv_equals_torch_and_central_differences(x, weight, stride, padding):
    def forward(x, weight, bias):
        return convolution.conv2d_forward(x, weight, bias, stride=stride, padding=padding)

    def in_torch(x, weight, bias):
        return functional.conv2d(x, weight, bias, stride=stride, padding=padding)

    arrays = draw(x, weight, weight[:1])
    assert_equals_torch(forward, convolution.conv2d_backward, in_torch, arrays)
    assert_gradients(forward, convolution.conv2d_backward, arrays)


def test_conv_is_the_sum_that_defines_it():
    x, weight, bias = draw((2, 2, 4, 5), (3, 2, 2, 3), (3,))
    y, _ = convolution.conv2d_forward(x, weight, bias, stride=2, padding=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for n, o, i, j in np.ndindex(y.shape):
        window = padded[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 3]
        assert abs(y[n, o, i, j] - (np.sum(window * weight[o]) + bias[o])) < 1e-13  # (92)


def test_conv_gives_the_published_values_of_cs231n():
    x = np.linspace(-0.1, 0.5, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    weight = np.linspace(-0.2, 0.3, num=3 * 3 * 4 * 4).reshape(3, 3, 4, 4)
    y, _ = convolution.conv2d_forward(x, weight, np.linspace(-0.1, 0.2, num=3), stride=2, padding=1)
    published = [
        [
            [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
            [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
            [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
        ],
        [
            [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
            [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
            [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
        ],
    ]
    assert rel_error(y, np.array(published)) < 5e-8


POOLS = [((2, 3, 4, 6), 2, None), ((2, 2, 5, 7), (2, 3), None), ((1, 2, 6, 5), 3, 1), ((1, 1, 7, 7), 2, 3)]


@pytest.mark.parametrize(("shape", "kernel", "stride"), POOLS)
def test_max_pool_equals_torch_and_central_differences(shape, kernel, stride):
    def forward(x):
        return convolution.max_pool2d_forward(x, kernel=kernel, stride=stride)

    arrays = draw(shape)
    assert_equals_torch(
        forward, convolution.max_pool2d_backward, lambda x: functional.max_pool2d(x, kernel, stride), arrays
    )
    assert_gradients(forward, convolution.max_pool2d_backward, arrays)


def test_max_pool_gives_the_first_of_equal_values_the_gradient_as_torch_does():
    assert_equals_torch(
        convolution.max_pool2d_forward,
        convolution.max_pool2d_backward,
        lambda x: functional.max_pool2d(x, 2),
        [np.zeros((1, 2, 4, 4))],
    )


def test_max_pool_gives_the_published_values_of_cs231n():
    x = np.linspace(-0.3, 0.4, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    y, _ = convolution.max_pool2d_forward(x, kernel=2, stride=2)
    published = [
        [
            [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
            [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
            [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
        ],
        [
            [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
            [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
            [[0.32631579, 0.34105263], [0.38526316, 0.4]],
        ],
    ]
    assert rel_error(y, np.array(published)) < 5e-7


# --- sandwiches ---


def in_training(kind):
    """The same sandwich in torch, in training mode."""

    def call(x, layer_weight, layer_bias, weight, bias):
        z = kind(x, layer_weight, layer_bias)
        return functional.batch_norm(z, None, None, weight, bias, training=True).relu()

    return call


SANDWICHES = {
    "linear_relu": (lambda x, w, b: functional.linear(x, w, b).relu(), [(5, 4), (3, 4), (3,)]),
    "conv_relu": (lambda x, w, b: functional.conv2d(x, w, b).relu(), [(2, 3, 4, 5), (4, 3, 3, 2), (4,)]),
    "conv_relu_pool": (
        lambda x, w, b: functional.max_pool2d(functional.conv2d(x, w, b).relu(), 2),
        [(2, 3, 5, 6), (4, 3, 2, 2), (4,)],
    ),
    "linear_bn_relu": (in_training(functional.linear), [(7, 4), (3, 4), (3,), (3,), (3,)]),
    "conv_bn_relu": (in_training(functional.conv2d), [(2, 3, 4, 5), (4, 3, 3, 2), (4,), (4,), (4,)]),
}


@pytest.mark.parametrize("name", SANDWICHES)
def test_sandwiches_equal_torch_and_central_differences(name):
    in_torch, shapes = SANDWICHES[name]
    forward, backward = getattr(sandwiches, f"{name}_forward"), getattr(sandwiches, f"{name}_backward")
    arrays = draw(*shapes, seed=3)
    y, cache = forward(*arrays)
    dy = np.random.default_rng(7).normal(size=y.shape)
    inputs = tensors(*arrays)
    expected = in_torch(*inputs)
    expected.backward(torch.tensor(dy))
    assert_close(y, expected.detach().numpy(), rtol=1e-11)
    largest = max(np.abs(tensor.grad.numpy()).max() for tensor in inputs)
    for gradient, tensor in zip(backward(dy, cache), inputs, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=1e-11 * largest)
    if "bn" in name:
        assert np.abs(backward(dy, cache).dlayer_bias).max() < 1e-13 * largest  # a bias before BN has no gradient
        arrays[2] = np.full_like(arrays[2], 3.0)
        np.testing.assert_allclose(forward(*arrays)[0], y, atol=1e-12)
    else:
        assert_gradients(forward, backward, arrays)


def test_a_batch_of_two_sends_no_gradient_to_the_layer_before_the_normalization():
    # Two values normalize to -1 and 1 whatever they are, so only weight and bias of the normalization can learn.
    def gradients(samples):
        x, layer_weight, dy = draw((samples, 4), (3, 4), (samples, 3))
        _, cache = sandwiches.linear_bn_relu_forward(x, layer_weight, bias=np.full(3, 2.0), eps=1e-14)
        return sandwiches.linear_bn_relu_backward(dy, cache)

    two, three = gradients(2), gradients(3)
    assert np.abs(two.dlayer_weight).max() < 1e-7  # of order eps / var, by (55)
    assert np.abs(two.dweight).max() > 0.1
    assert np.abs(three.dlayer_weight).max() > 0.1


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_normalized_sandwiches_use_running_statistics_at_test_time(kind):
    name = f"{kind}_bn_relu"
    forward, backward = getattr(sandwiches, f"{name}_forward"), getattr(sandwiches, f"{name}_backward")
    arrays = draw(*SANDWICHES[name][1], seed=4)
    channels = len(arrays[2])
    running = np.random.default_rng(5).normal(size=channels), np.random.default_rng(6).uniform(0.5, 2.0, channels)

    def in_eval(*arrays):
        return forward(*arrays, running=running, eps=0.1)

    assert_gradients(in_eval, backward, arrays, rtol=1e-7)
    norm = (nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(channels, eps=0.1, dtype=torch.float64).eval()
    for name, value in zip(["running_mean", "running_var", "weight", "bias"], [*running, *arrays[3:]], strict=True):
        getattr(norm, name).data = torch.tensor(value)
    layer = functional.linear if kind == "linear" else functional.conv2d
    expected = norm(layer(*map(torch.tensor, arrays[:3]))).relu()
    assert_close(in_eval(*arrays)[0], expected.detach().numpy())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.linear_forward(np.ones((2, 3)), np.ones((3, 4))), r"shape \(out, 3\).*Try weight\.T"),
        (lambda: layers.linear_forward(np.ones((2, 3)), np.ones((4, 3)), np.ones(3)), r"bias must have shape \(4,\)"),
        (lambda: layers.linear_backward(np.ones((2, 3)), layers.linear_forward(np.eye(2), np.eye(2))[1]), r"\(2, 2\)"),
        (lambda: layers.activation_forward(np.ones(2), "swish"), "but is 'swish'"),
        (lambda: layers.relu_backward(np.ones(3), layers.relu_forward(np.ones(2))[1]), r"dy must have shape \(2,\)"),
        (lambda: convolution.conv2d_forward(np.ones((1, 4, 4, 3)), np.ones((2, 3, 2, 2))), r"Try np\.moveaxis"),
        (lambda: convolution.conv2d_forward(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3))), "must fit into the image"),
        (lambda: convolution.conv2d_forward(np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)), stride=0), "at least 1"),
        (lambda: convolution.max_pool2d_forward(np.ones((2, 2))), r"Try x\[None\]"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
