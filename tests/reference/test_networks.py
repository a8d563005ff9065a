"""The networks: gradients of every parameter, against torch, and that the loop trains them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.reference import optimizers
from batchnorm.reference.initializers import kaiming_normal, small_gaussian
from batchnorm.reference.losses import sigmoid_cross_entropy
from batchnorm.reference.networks import conv_net, fully_connected
from batchnorm.reference.penalties import l1_penalty, l2_penalty
from batchnorm.reference.training import accuracy, train
from numeric import assert_close, assert_gradient

PENALTIES = {
    "none": None,
    "l2": partial(l2_penalty, strength=0.1, convention="sum"),
    "l1": partial(l1_penalty, strength=0.1, convention="mean", samples=6),
}


def batch(shape, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.integers(0, classes, shape[0])


def assert_gradients(network, x, y, rtol=1e-7):
    """Central differences for every parameter. Each call draws the same masks, times a random number."""

    def loss():
        network.generator = np.random.default_rng(1)
        return network.loss(x, y)

    value, gradients = loss()
    assert set(gradients) == set(network.parameters)
    for name, parameter in list(network.parameters.items()):

        def changed(w, name=name):
            former = network.parameters[name]
            network.parameters[name] = w
            try:
                return loss()[0]
            finally:
                network.parameters[name] = former

        assert_gradient(changed, parameter, -1.3, -1.3 * gradients[name], rtol)
    assert np.isfinite(value)


# --- gradients ---


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_fully_connected_gradients_equal_central_differences(norm, keep_prob, penalty):
    network = fully_connected(
        4,
        [5, 4],
        3,
        norm=norm,
        activation="tanh",
        keep_prob=keep_prob,
        penalty=PENALTIES[penalty],
        generator=np.random.default_rng(2),
    )
    assert_gradients(network, *batch((6, 4)))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_conv_net_gradients_equal_central_differences(norm):
    network = conv_net(
        (2, 6, 4),
        [3, 2],
        3,
        max_pools=[0, 1],
        norm=norm,
        penalty=PENALTIES["l2"],
        generator=np.random.default_rng(3),
    )
    assert_gradients(network, *batch((4, 2, 6, 4)), rtol=1e-6)


def test_sigmoid_criterion():
    x, y = batch((6, 4), classes=2)
    network = fully_connected(4, [5], 1, criterion=sigmoid_cross_entropy, generator=np.random.default_rng(4))
    assert_gradients(network, x, y[:, None])
    np.testing.assert_array_equal(network.predict(x), (network.scores(x)[:, 0] > 0).astype(int))


# --- against torch ---


def torch_twin(network, modules):
    """The same network in torch, with the same parameters."""
    twin = nn.Sequential(*modules).double()
    with torch.no_grad():
        ours = [(kind, name) for kind, name in network.layers if kind in ("linear", "conv", "norm")]
        theirs = [m for m in twin if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d)]
        for (_, name), module in zip(ours, theirs, strict=True):
            module.weight.copy_(torch.tensor(network.parameters[f"{name}.weight"]))
            if module.bias is not None:
                module.bias.copy_(torch.tensor(network.parameters[f"{name}.bias"]))
    return twin, [name for _, name in ours], theirs


TWINS = {
    "fully_connected": (
        lambda: fully_connected(4, [6, 5], 3, norm="batch", generator=np.random.default_rng(5)),
        lambda: [
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
        ],
        (8, 4),
    ),
    "conv_net": (
        lambda: conv_net((2, 4, 6), [3, 4], 3, max_pools=[1], norm="batch", generator=np.random.default_rng(6)),
        lambda: [
            nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24, 3),
        ],
        (5, 2, 4, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_five_steps_equal_torch_and_so_do_scores_at_test_time(name):
    build, modules, shape = TWINS[name]
    network = build()
    twin, names, layers = torch_twin(network, modules())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    states = dict.fromkeys(network.parameters)
    for step in range(5):
        x, y = batch(shape, seed=step)
        loss, gradients = network.loss(x, y)
        optimizer.zero_grad()
        expected = nn.functional.cross_entropy(twin(torch.tensor(x)), torch.tensor(y))
        expected.backward()
        assert_close(loss, expected.item(), rtol=1e-10)
        for own, layer in zip(names, layers, strict=True):
            np.testing.assert_allclose(gradients[f"{own}.weight"], layer.weight.grad.numpy(), rtol=0, atol=1e-10)
        optimizer.step()
        for key, w in network.parameters.items():
            network.parameters[key], states[key] = optimizers.sgd(w, gradients[key], states[key], lr=0.1)
    twin.eval()
    x, _ = batch(shape, seed=9)
    assert_close(network.scores(x), twin(torch.tensor(x)).detach().numpy(), rtol=1e-9)


# --- behaviour ---


def test_a_layer_before_a_normalization_has_no_bias_and_the_norm_stands_before_the_activation():
    network = fully_connected(4, [5, 5], 3, norm="batch", keep_prob=0.5, generator=np.random.default_rng(0))
    kinds = [kind for kind, _ in network.layers]
    assert kinds == ["linear", "norm", "activation", "dropout"] * 2 + ["linear"]
    assert [key for key in network.parameters if key.endswith("bias")] == ["norm1.bias", "norm2.bias", "linear3.bias"]


def test_the_loss_of_small_weights_is_the_logarithm_of_the_classes_plus_the_penalty():
    def build(penalty):
        return fully_connected(
            20, [30, 30], 10, initializer=small_gaussian, penalty=penalty, generator=np.random.default_rng(7)
        )

    x, y = batch((50, 20), classes=10)
    loss, _ = build(None).loss(x, y)
    assert abs(loss - np.log(10)) < 0.01
    penalized = build(PENALTIES["l2"])
    squares = sum(np.sum(penalized.parameters[name] ** 2) for name in penalized.penalized)
    assert_close(penalized.loss(x, y)[0], loss + 0.1 * squares)
    assert penalized.penalized == ["linear1.weight", "linear2.weight", "linear3.weight"]


def test_test_time_draws_nothing_and_updates_nothing():
    network = fully_connected(4, [5], 3, norm="batch", keep_prob=0.5, generator=np.random.default_rng(8))
    x, y = batch((6, 4))
    network.loss(x, y)
    before = {name: (mean.copy(), var.copy()) for name, (mean, var) in network.running.items()}
    np.testing.assert_array_equal(network.scores(x), network.scores(x))
    assert_close(network.scores(x[:1]), network.scores(x)[:1])
    for name, pair in before.items():
        np.testing.assert_array_equal(network.running[name], pair)
    assert network.loss(x, y)[0] != network.loss(x, y)[0]  # training draws a new mask


def rings(samples, seed):
    """Two classes that no line separates."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, samples)
    angle, radius = rng.uniform(0, 2 * np.pi, samples), 1.0 + y + 0.15 * rng.normal(size=samples)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


@pytest.mark.parametrize("generator", [np.random.default_rng, np.random.RandomState])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_loop_learns_what_a_line_cannot(norm, generator):
    x, y = rings(300, seed=0)
    options = {"epochs": 30, "batch_size": 30, "lr": 0.02, "rule": optimizers.adam}
    network = fully_connected(2, [16, 16], 2, norm=norm, generator=generator(1))
    history = train(network, x, y, **options, generator=generator(2), validation=rings(300, seed=1))
    assert len(history.loss) == 300
    assert len(history.accuracy) == len(history.validation_accuracy) == 30
    assert history.accuracy[-1] > 0.97
    assert history.validation_accuracy[-1] > 0.95
    assert history.accuracy[-1] == accuracy(network, x, y)
    line = fully_connected(2, [], 2, generator=generator(1))
    assert train(line, x, y, **options, generator=generator(2)).accuracy[-1] < 0.7


# --- the published protocol of the 2-D comparison, literally ---


class Transposed:
    """A source for masks that are published as (features, samples)."""

    def __init__(self, seed):
        self.legacy = np.random.RandomState(seed)

    def random(self, shape):
        return self.legacy.random_sample(shape[::-1]).T


def published(x, y, steps, lambd=0.0, keep_prob=1.0, lr=0.3):
    """The course's network 2-20-3-1 in its own layout, one column per sample: relu, relu, sigmoid, full batch."""
    draw, (samples, _) = np.random.RandomState(3), x.shape
    w1, w2, w3 = (draw.randn(out, ins) / np.sqrt(ins) for out, ins in [(20, 2), (3, 20), (1, 3)])
    b1, b2, b3 = np.zeros((20, 1)), np.zeros((3, 1)), np.zeros((1, 1))
    costs = []
    for _ in range(steps):
        masks = np.random.RandomState(1)  # seeded again in every step
        a1 = np.maximum(0, w1 @ x.T + b1)
        d1 = (masks.rand(*a1.shape) < keep_prob) / keep_prob
        a1 = a1 * d1
        a2 = np.maximum(0, w2 @ a1 + b2)
        d2 = (masks.rand(*a2.shape) < keep_prob) / keep_prob
        a2 = a2 * d2
        a3 = 1 / (1 + np.exp(-(w3 @ a2 + b3)))
        cross_entropy = -np.mean(y * np.log(a3) + (1 - y) * np.log(1 - a3))
        costs.append(cross_entropy + lambd / (2 * samples) * sum(np.sum(w**2) for w in (w1, w2, w3)))
        dz3 = a3 - y
        dz2 = (w3.T @ dz3) * d2 * (a2 > 0)
        dz1 = (w2.T @ dz2) * d1 * (a1 > 0)
        dw3, dw2, dw1 = dz3 @ a2.T / samples, dz2 @ a1.T / samples, dz1 @ x / samples
        b3, b2, b1 = (b - lr * dz.mean(axis=1, keepdims=True) for b, dz in [(b3, dz3), (b2, dz2), (b1, dz1)])
        w3, w2, w1 = (w - lr * (dw + lambd / samples * w) for w, dw in [(w3, dw3), (w2, dw2), (w1, dw1)])
    return costs, (w1, w2, w3)


@pytest.mark.parametrize(("lambd", "keep_prob"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.86)], ids=["none", "l2", "dropout"])
def test_the_published_protocol_of_the_2d_comparison_step_by_step(lambd, keep_prob):
    x, y = rings(211, seed=0)
    costs, weights = published(x, y, steps=50, lambd=lambd, keep_prob=keep_prob)
    network = fully_connected(
        2,
        [20, 3],
        1,
        keep_prob=keep_prob,
        penalty=partial(l2_penalty, strength=lambd, convention="half_mean", samples=211),
        initializer=partial(kaiming_normal, activation=None),
        criterion=sigmoid_cross_entropy,
        generator=np.random.RandomState(3),
    )
    found = []
    for _ in range(50):
        network.generator = Transposed(1)
        found += train(network, x, y[:, None].astype(float), epochs=1, batch_size=211, lr=0.3).loss
    np.testing.assert_allclose(found, costs, rtol=1e-10)
    for name, w in zip(network.penalized, weights, strict=True):
        np.testing.assert_allclose(network.parameters[name], w, rtol=1e-8)


def test_conv_net_learns_to_tell_rows_from_columns():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 80)
    x = 0.3 * rng.normal(size=(80, 1, 6, 6))
    for image, label in zip(x, y, strict=True):
        position = rng.integers(6)
        image[0, position, :] += 1 - label
        image[0, :, position] += label
    network = conv_net((1, 6, 6), [4, 8], 2, max_pools=[0], norm="batch", generator=np.random.default_rng(4))
    history = train(network, x, y, epochs=12, batch_size=16, lr=0.1, generator=np.random.default_rng(5))
    assert history.accuracy[-1] > 0.95


def test_the_same_seeds_give_the_same_network():
    x, y = rings(60, seed=0)

    def once():
        network = fully_connected(2, [8], 2, keep_prob=0.8, generator=np.random.RandomState(0))
        return train(network, x, y, epochs=3, batch_size=20, lr=0.1, generator=np.random.RandomState(1)).loss

    assert once() == once()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: fully_connected(2, [3], 2, norm="layer", generator=rng), "norm must be one of none, batch"),
        (lambda rng: fully_connected(2, [3], 2, keep_prob=1.5, generator=rng), r"keep_prob must be in \[0, 1\]"),
        (lambda rng: fully_connected(2, [3], 2, activation="gelu", generator=rng), "activation must be one of"),
        (lambda rng: conv_net((1, 4, 4), [2], 2, max_pools=[1], generator=rng), r"from 0 to 0 .* are \[1\]"),
        (lambda rng: conv_net((1, 2, 2), [2, 2], 2, max_pools=[0, 1], generator=rng), "images of 2 x 2"),
        (
            lambda rng: train(
                fully_connected(2, [], 2, generator=rng), np.ones((4, 2)), [0] * 4, epochs=1, batch_size=5, lr=1.0,
                generator=rng,
            ),
            "batch_size must be from 1 to 4",
        ),
        (
            lambda rng: train(
                fully_connected(2, [], 2, generator=rng), np.ones((4, 2)), [0] * 3, epochs=1, batch_size=2, lr=1.0
            ),
            "one target per sample, 4, but has 3",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
