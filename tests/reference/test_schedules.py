"""Schedules against those of torch, and at their ends."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from batchnorm.reference.schedules import cosine_decay, exponential_decay, polynomial_decay, step_decay, warm_up

TORCH = {
    "step": (
        partial(step_decay, lr=0.4, factor=0.1, period=3),
        lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.1),
    ),
    "exponential": (partial(exponential_decay, lr=0.4, factor=0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "polynomial": (
        partial(polynomial_decay, lr=0.4, steps=8, power=2.0),
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    ),
    "cosine": (
        partial(cosine_decay, lr=0.4, steps=12, end=0.01),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12, eta_min=0.01),
    ),
    "warm-up": (
        partial(warm_up, schedule=lambda _: 0.4, steps=4),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 4, total_iters=3),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_torch(name):
    schedule, scheduler = TORCH[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    torchs = scheduler(optimizer)
    for step in range(12):
        assert math.isclose(schedule(step), optimizer.param_groups[0]["lr"], rel_tol=1e-12, abs_tol=1e-15)
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchs.step()


@pytest.mark.parametrize("schedule", [polynomial_decay, cosine_decay])
def test_ends_are_reached_and_kept(schedule):
    assert schedule(0, lr=1.0, steps=10, end=0.25) == 1.0
    assert schedule(10, lr=1.0, steps=10, end=0.25) == 0.25
    assert schedule(1000, lr=1.0, steps=10, end=0.25) == 0.25
    rates = [schedule(step, lr=1.0, steps=10) for step in range(11)]
    assert rates == sorted(rates, reverse=True)


def test_exponential_is_that_of_the_exponential_function():
    assert math.isclose(exponential_decay(7, lr=0.3, factor=math.exp(-0.1)), 0.3 * math.exp(-0.7), rel_tol=1e-14)


def test_warm_up_starts_above_zero_and_the_schedule_after_it_is_not_cut():
    after = partial(cosine_decay, lr=1.0, steps=4)
    rates = [warm_up(step, after, steps=5) for step in range(10)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5:] == [after(step) for step in range(5)]
    assert warm_up(3, after, steps=0) == after(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_decay(-1, lr=1.0, period=2), "step must be at least 0"),
        (lambda: step_decay(0, lr=1.0, period=0), "period at least 1, but they are 0 and 0"),
        (lambda: cosine_decay(0, lr=1.0, steps=0), "steps at least 1"),
        (lambda: warm_up(0, lambda _: 1.0, steps=-1), "Try steps=0"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
