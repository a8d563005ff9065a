"""Penalties: each convention by hand, by central differences, and against torch's weight decay."""

import numpy as np
import pytest
import torch

from batchnorm.reference.penalties import l1_penalty, l2_factor, l2_penalty
from numeric import assert_close, assert_gradient

W = [np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([4.0])]  # sum of squares 30.25, of absolute values 10.5

L2 = [("sum", None, 30.25 * 0.1), ("half", None, 30.25 * 0.05), ("half_mean", 20, 30.25 * 0.1 / 40)]
L1 = [("sum", None, 10.5 * 0.1), ("mean", 20, 10.5 * 0.1 / 20)]
CASES = [(l2_penalty, *case) for case in L2] + [(l1_penalty, *case) for case in L1]


@pytest.mark.parametrize(("penalty", "convention", "samples", "cost"), CASES)
def test_cost_by_hand_and_gradient_by_central_differences(penalty, convention, samples, cost):
    found, gradients = penalty(W, 0.1, convention=convention, samples=samples)
    assert_close(found, cost)
    for index, gradient in enumerate(gradients):

        def changed(w, index=index):
            return penalty([*W[:index], w, *W[index + 1 :]], 0.1, convention=convention, samples=samples)[0]

        assert_gradient(changed, W[index], 1.7, 1.7 * gradient)


def test_the_two_conventions_of_the_notes_have_the_gradients_that_they_say():
    _, (dw, _) = l2_penalty(W, 0.7, convention="half_mean", samples=211)
    assert_close(dw, 0.7 / 211 * W[0])
    _, (dw, _) = l2_penalty(W, 0.7, convention="sum")
    assert_close(dw, 2 * 0.7 * W[0])


def test_l2_factor_translates_one_convention_into_another():
    strength = l2_factor(0.7, convention="half_mean", samples=211)
    cost, gradients = l2_penalty(W, 0.7, convention="half_mean", samples=211)
    same_cost, same_gradients = l2_penalty(W, strength, convention="sum")
    assert_close(same_cost, cost)
    assert_close(same_gradients[0], gradients[0])


def test_half_is_the_weight_decay_of_torch_sgd():
    w = torch.tensor(W[0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, weight_decay=0.3)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    _, (dw, _) = l2_penalty(W, 0.3, convention="half")
    assert_close(w.detach().numpy(), W[0] - dw)
    _, (other, _) = l2_penalty(W, 0.3, convention="sum")
    assert np.abs(other - dw).max() > 0.5


def test_l1_leaves_a_zero_alone_and_pushes_all_others_equally():
    _, (dw,) = l1_penalty([[0.0, 1e-9, -5.0]], 2.0, convention="sum")
    np.testing.assert_array_equal(dw, [0.0, 2.0, -2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: l2_penalty(W, 0.1, convention="ridge"), "one of sum, half, half_mean, but is 'ridge'"),
        (lambda: l2_penalty(W, -0.1, convention="sum"), "strength must be at least 0, but is -0.1"),
        (lambda: l2_penalty(W, 0.1, convention="half_mean"), "needs samples of at least 1, but samples is None"),
        (lambda: l2_penalty(W, 0.1, convention="sum", samples=3), "has no samples, but samples is 3"),
        (lambda: l1_penalty(W, 0.1, convention="mean", samples=0), "at least 1, but samples is 0"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
