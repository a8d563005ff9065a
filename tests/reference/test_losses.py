"""The losses against torch and central differences, and where the naive forms overflow or lose their digits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from batchnorm.reference import losses
from numeric import assert_close, assert_gradient


def test_softmax_cross_entropy_equals_torch_and_central_differences():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.0, 3.0, (7, 4)), rng.integers(0, 4, 7)
    loss, dx = losses.softmax_cross_entropy(x, y)
    scores = torch.tensor(x, requires_grad=True)
    expected = functional.cross_entropy(scores, torch.tensor(y))
    expected.backward()
    assert_close(loss, expected.item())
    assert_close(dx, scores.grad.numpy())
    factor = rng.normal()
    assert_gradient(lambda x: losses.softmax_cross_entropy(x, y)[0], x, factor, factor * dx)
    assert_close(losses.softmax(x), torch.softmax(scores, 1).detach().numpy())
    np.testing.assert_allclose(dx.sum(axis=1), 0.0, atol=1e-16)


def test_sigmoid_cross_entropy_equals_torch_and_central_differences():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.0, 3.0, (5, 3)), rng.uniform(size=(5, 3))
    y[0] = [0.0, 1.0, 1.0]
    loss, dx = losses.sigmoid_cross_entropy(x, y)
    scores = torch.tensor(x, requires_grad=True)
    expected = functional.binary_cross_entropy_with_logits(scores, torch.tensor(y))
    expected.backward()
    assert_close(loss, expected.item())
    assert_close(dx, scores.grad.numpy())
    factor = rng.normal()
    assert_gradient(lambda x: losses.sigmoid_cross_entropy(x, y)[0], x, factor, factor * dx)


def test_two_classes_of_softmax_are_the_sigmoid_of_the_difference():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 2)), rng.integers(0, 2, 6)
    loss, dx = losses.softmax_cross_entropy(x, y)
    sigmoid_loss, sigmoid_dx = losses.sigmoid_cross_entropy(x[:, 1] - x[:, 0], y.astype(float))
    assert_close(loss, sigmoid_loss)
    assert_close(dx[:, 1], sigmoid_dx)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_an_untrained_network_shows_the_logarithm_of_the_classes(classes):
    loss, _ = losses.softmax_cross_entropy(np.full((3, classes), 7.0), [0, 1, 1])
    assert_close(loss, math.log(classes))


def test_scores_of_a_thousand_do_not_overflow_where_the_naive_form_does():
    x, y = np.array([[1000.0, 0.0], [-1000.0, 0.0]]), np.array([1, 1])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        naive = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    assert np.isnan(naive).any()
    with np.errstate(all="raise", under="ignore"):
        loss, dx = losses.softmax_cross_entropy(x, y)
        sigmoid_loss, sigmoid_dx = losses.sigmoid_cross_entropy([-1000.0, 1000.0], [1.0, 1.0])
    assert loss == 500.0
    np.testing.assert_array_equal(dx, [[0.5, -0.5], [0.0, 0.0]])
    assert sigmoid_loss == 500.0
    np.testing.assert_array_equal(sigmoid_dx, [-0.5, 0.0])


def test_a_small_loss_keeps_its_digits():
    x = np.array([[50.0, 0.0]])
    loss, dx = losses.softmax_cross_entropy(x, [0])
    tail = math.exp(-50.0)
    assert -np.log(losses.softmax(x))[0, 0] == 0.0  # the naive form has none left
    assert losses.softmax(x)[0, 0] - 1.0 == 0.0
    np.testing.assert_allclose(loss, tail, rtol=1e-14)
    np.testing.assert_allclose(dx, [[-tail, tail]], rtol=1e-14)
    loss, dx = losses.sigmoid_cross_entropy([50.0], [1.0])
    np.testing.assert_allclose([loss, -dx[0]], tail, rtol=1e-14)


def test_adding_a_number_to_all_scores_changes_nothing():
    x = np.random.default_rng(3).normal(size=(4, 3))
    loss, dx = losses.softmax_cross_entropy(x, [0, 1, 2, 0])
    shifted_loss, shifted_dx = losses.softmax_cross_entropy(x + 64.0, [0, 1, 2, 0])
    assert_close(shifted_loss, loss)
    assert_close(shifted_dx, dx)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.softmax_cross_entropy([[0.0, 1.0]], [2]), "y must be from 0 to 1, but goes from 2 to 2"),
        (lambda: losses.softmax_cross_entropy([[0.0, 1.0]], [[0, 1]]), r"Try y\.argmax"),
        (lambda: losses.softmax_cross_entropy([[0.0, 1.0]], [0.0]), "dtype float64"),
        (lambda: losses.softmax_cross_entropy([0.0, 1.0], [0]), r"x must have shape \(N, K\)"),
        (lambda: losses.softmax_cross_entropy(np.empty((0, 2)), np.empty(0, dtype=int)), "at least one"),
        (lambda: losses.sigmoid_cross_entropy([0.0], [-1.0]), r"from -1\.0 to -1\.0\. Try \(y \+ 1\) / 2"),
        (lambda: losses.sigmoid_cross_entropy([[0.0]], [0.0]), r"y must have shape \(1, 1\)"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
