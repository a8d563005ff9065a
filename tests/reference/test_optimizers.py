"""Update rules: three steps by hand, against torch.optim, and the published arrays of CS231n."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from batchnorm.reference import optimizers
from batchnorm.reference.optimizers import AdamState, adagrad, adam, momentum, nesterov, rmsprop, sgd
from numeric import assert_close

GRADIENTS = [2.0, -1.0, 4.0]


def walk(rule, gradients=GRADIENTS, w=1.0, **options):
    """Points after each step."""
    w, state, points = np.array([w]), None, []
    for dw in gradients:
        w, state = rule(w, np.array([dw]), state, **options)
        points.append(w[0])
    return np.array(points)


# --- by hand, at t = 1, 2, 3 ---


def test_sgd_by_hand():
    assert_close(walk(sgd, lr=0.1), [0.8, 0.9, 0.5])


def test_momentum_by_hand():
    # velocity: -0.2; 0.5 * -0.2 + 0.1 = 0; 0 - 0.4
    assert_close(walk(momentum, lr=0.1, momentum=0.5), [0.8, 0.8, 0.4])


def test_nesterov_by_hand():
    # velocity as above; steps 1.5 * v - 0.5 * former: -0.3; 0 + 0.1; -0.6
    assert_close(walk(nesterov, lr=0.1, momentum=0.5), [0.7, 0.8, 0.2])


def test_adagrad_by_hand():
    # sums of squares 4, 5, 21
    steps = [2 / 2, -1 / math.sqrt(5), 4 / math.sqrt(21)]
    assert_close(walk(adagrad, lr=0.1, eps=0.0), 1 - 0.1 * np.cumsum(steps))


def test_rmsprop_by_hand():
    # averages with decay 1/2: 2, 1.5, 8.75
    steps = [2 / math.sqrt(2), -1 / math.sqrt(1.5), 4 / math.sqrt(8.75)]
    assert_close(walk(rmsprop, lr=0.1, decay=0.5, eps=0.0), 1 - 0.1 * np.cumsum(steps))


def test_adam_by_hand():
    # beta1 = 1/2: first 1, 0, 2, corrected by 1/2, 3/4, 7/8; beta2 = 3/4: second 1, 1, 4.75, by 1/4, 7/16, 37/64
    firsts = [1 / (1 / 2), 0.0, 2 / (7 / 8)]
    seconds = [1 / (1 / 4), 1 / (7 / 16), 4.75 / (37 / 64)]
    steps = np.array(firsts) / np.sqrt(seconds)
    assert_close(walk(adam, lr=0.1, beta1=0.5, beta2=0.75, eps=0.0), 1 - 0.1 * np.cumsum(steps))


# --- against torch ---

TORCH = {
    "sgd": (partial(sgd, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (partial(momentum, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "nesterov": (
        partial(nesterov, lr=0.05),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    ),
    "adagrad": (partial(adagrad, lr=0.05), lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "rmsprop": (partial(rmsprop, lr=0.05), lambda p: torch.optim.RMSprop(p, lr=0.05)),
    "rmsprop, large eps": (partial(rmsprop, lr=0.05, eps=0.3), lambda p: torch.optim.RMSprop(p, lr=0.05, eps=0.3)),
    "adam": (partial(adam, lr=0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam, large eps": (partial(adam, lr=0.05, eps=0.3), lambda p: torch.optim.Adam(p, lr=0.05, eps=0.3)),
}


@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_torch_step_by_step(name):
    rule, optimizer = TORCH[name]
    rng = np.random.default_rng(0)
    w, state = rng.normal(size=(3, 2)), None
    parameter = torch.tensor(w, requires_grad=True)
    torchs = optimizer([parameter])
    for _ in range(20):
        dw = rng.normal(size=w.shape) * 10.0 ** rng.integers(-3, 3, w.shape)
        parameter.grad = torch.tensor(dw)
        torchs.step()
        w, state = rule(w, dw, state)
        assert_close(w, parameter.detach().numpy(), rtol=1e-13)


def test_momentum_differs_from_torch_only_when_the_rate_changes():
    w, velocity = np.array([0.0]), None
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    torchs = torch.optim.SGD([parameter], lr=1.0, momentum=0.5)
    for lr in (1.0, 0.1):
        parameter.grad = torch.ones_like(parameter)
        torchs.param_groups[0]["lr"] = lr
        torchs.step()
        w, velocity = momentum(w, [1.0], velocity, lr=lr, momentum=0.5)
    assert_close(w, [-1.0 - (0.5 * 1.0 + 0.1)])  # the old velocity keeps the rate it was made with
    assert_close(parameter.detach().numpy(), [-1.0 - 0.1 * 1.5])  # torch's takes the new one


# --- published arrays of CS231n, given the state before the step ---


def grid(first, last):
    return np.linspace(first, last, num=20).reshape(4, 5)


W, DW = grid(-0.4, 0.6), grid(-0.6, 0.4)


def rel_error(a, b):
    """The measure of the CS231n notebooks."""
    return np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)))


def test_momentum_gives_the_published_values_of_cs231n():
    w, velocity = momentum(W, DW, grid(0.6, 0.9), lr=1e-3)
    published = [
        [0.1406, 0.20738947, 0.27417895, 0.34096842, 0.40775789],
        [0.47454737, 0.54133684, 0.60812632, 0.67491579, 0.74170526],
        [0.80849474, 0.87528421, 0.94207368, 1.00886316, 1.07565263],
        [1.14244211, 1.20923158, 1.27602105, 1.34281053, 1.4096],
    ]
    assert rel_error(w, np.array(published)) < 1e-8
    assert_close(velocity[[0, -1], [0, -1]], [0.5406, 0.8096])


def test_rmsprop_gives_the_published_values_of_cs231n():
    w, average = rmsprop(W, DW, grid(0.6, 0.9), lr=1e-2)
    published = [
        [-0.39223849, -0.34037513, -0.28849239, -0.23659121, -0.18467247],
        [-0.132737, -0.08078555, -0.02881884, 0.02316247, 0.07515774],
        [0.12716641, 0.17918792, 0.23122175, 0.28326742, 0.33532447],
        [0.38739248, 0.43947102, 0.49155973, 0.54365823, 0.59576619],
    ]
    assert rel_error(w, np.array(published)) < 1e-7
    assert_close(average[[0, -1], [0, -1]], [0.5976, 0.8926])


def test_adam_gives_the_published_values_of_cs231n():
    w, state = adam(W, DW, AdamState(grid(0.6, 0.9), grid(0.7, 0.5), 5), lr=1e-2)
    published = [
        [-0.40094747, -0.34836187, -0.29577703, -0.24319299, -0.19060977],
        [-0.1380274, -0.08544591, -0.03286534, 0.01971428, 0.0722929],
        [0.1248705, 0.17744702, 0.23002243, 0.28259667, 0.33516969],
        [0.38774145, 0.44031188, 0.49288093, 0.54544852, 0.59801459],
    ]
    assert rel_error(w, np.array(published)) < 2e-7  # eight published digits of numbers from 0.02 on
    assert_close(state.first[[0, -1], [0, -1]], [0.48, 0.85])
    assert_close(state.second[0, 0], 0.69966)
    assert state.step == 6
    late, _ = adam(W, DW, AdamState(grid(0.6, 0.9), grid(0.7, 0.5), 4), lr=1e-2)
    assert rel_error(late, np.array(published)) > 1e-4  # t counted from 0 is seen


# --- laws, and what is said of these rules that is not so ---


@pytest.mark.parametrize("dw", [1e-3, -7.0, 1e3])
def test_the_first_step_of_adam_has_the_length_of_the_rate(dw):
    assert_close(walk(adam, [dw], lr=0.1, eps=0.0), [1 - 0.1 * np.sign(dw)])


def test_without_correction_the_first_step_of_adam_is_three_times_too_long():
    _, state = adam([0.0], [5.0])
    assert_close(state.first / np.sqrt(state.second), [math.sqrt(10)])  # (1 - beta1) / sqrt(1 - beta2), not 1


def test_counting_from_zero_divides_by_zero():
    with np.errstate(divide="ignore", invalid="ignore"):
        w, _ = adam([1.0], [1.0], AdamState(np.zeros(1), np.zeros(1), -1))
    assert np.isnan(w).all()


def test_correction_is_exact_for_a_constant_gradient():
    state = None
    for step in range(1, 30):
        _, state = adam([0.0], [3.0], state)
        assert_close(state.first / (1 - 0.9**step), [3.0])  # (140)
        assert_close(state.second / (1 - 0.999**step), [9.0])


def test_the_averages_of_adam_are_far_from_settled_after_ten_steps():
    state = None
    for _ in range(10):
        _, state = adam([0.0], [1.0], state)
    assert_close(state.first, [1 - 0.9**10])  # 0.65, not 1
    assert state.first[0] < 0.66
    assert state.second[0] < 0.01


def test_adagrad_slows_down_under_a_constant_gradient_and_rmsprop_does_not():
    adagrad_steps = -np.diff(walk(adagrad, [3.0] * 400, lr=0.1))
    rmsprop_steps = -np.diff(walk(rmsprop, [3.0] * 400, lr=0.1, decay=0.9))
    assert_close(adagrad_steps, 0.1 / np.sqrt(np.arange(2, 401)), rtol=1e-9)
    assert abs(rmsprop_steps[-1] - 0.1) < 1e-6


def test_rmsprop_without_memory_is_the_sign_and_not_adagrad():
    assert_close(walk(rmsprop, lr=0.1, decay=0.0, eps=0.0), [0.9, 1.0, 0.9])
    assert np.abs(walk(adagrad, lr=0.1, eps=0.0) - [0.9, 1.0, 0.9]).max() > 0.05


def test_momentum_adds_up_a_constant_gradient_and_cancels_an_alternating_one():
    constant = -np.diff(walk(momentum, [1.0] * 200, lr=0.1))
    alternating = np.abs(np.diff(walk(momentum, [1.0, -1.0] * 100, lr=0.1)))
    assert abs(constant[-1] - 0.1 / (1 - 0.9)) < 1e-6  # ten times plain descent
    assert abs(alternating[-1] - 0.1 / (1 + 0.9)) < 1e-6  # about half of it


def test_momentum_of_zero_is_sgd():
    assert_close(walk(momentum, momentum=0.0), walk(sgd))
    assert_close(walk(nesterov, momentum=0.0), walk(sgd))


@pytest.mark.parametrize("rule", [sgd, momentum, nesterov, adagrad, rmsprop, adam])
def test_rules_are_pure(rule):
    w, dw = np.array([1.0, 2.0]), np.array([3.0, -4.0])
    _, state = rule(w, dw, None, lr=0.1)
    before = [np.copy(part) for part in (state if isinstance(state, tuple) else [state]) if part is not None]
    first, _ = rule(w, dw, state, lr=0.1)
    second, _ = rule(w, dw, state, lr=0.1)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(w, [1.0, 2.0])
    after = [part for part in (state if isinstance(state, tuple) else [state]) if part is not None]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_errors_say_what_must_hold():
    with pytest.raises(ValueError, match=r"dw must have shape \(2,\), that of w"):
        optimizers.sgd([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"state must have shape \(2,\)"):
        optimizers.momentum([1.0, 2.0], [1.0, 1.0], np.zeros(3))
