"""Weights of a new batch: half-life, debiased and cumulative, with values pinned after 0, 1, 2 and many batches."""

import doctest
import functools

import numpy as np
import pytest

from batchnorm.reference import averages, policies
from batchnorm.reference.statistics import Statistics, averaging_factor
from numeric import assert_close

# Means 1 and 7, biased variances 1 and 9, unbiased 2 and 18.
BATCHES = [Statistics(np.array([1.0]), np.array([1.0]), 2), Statistics(np.array([7.0]), np.array([9.0]), 2)]


def run(factor, batches, start=(0.0, 1.0)):
    mean, var, tracked = policies.update_in_turn([start[0]], [start[1]], 0, batches, factor)
    assert tracked == len(batches)
    return mean[0], var[0]


def debiased(momentum):
    return functools.partial(averages.debiased_factor, momentum)


@pytest.mark.parametrize(
    ("factor", "after_two", "after_many"),
    [
        # Weights 0.09 : 0.1 and 0.5 : 1, divided by their sum.
        (debiased(0.1), (79 / 19, 198 / 19), (7.0, 18.0)),
        (debiased(0.5), (5.0, 38 / 3), (7.0, 18.0)),
        (debiased(1.0), (7.0, 18.0), (7.0, 18.0)),
        # One batch of the first kind among 401.
        (functools.partial(averaging_factor, None), (4.0, 10.0), (7 - 6 / 401, 18 - 16 / 401)),
    ],
    ids=["debiased_0.1", "debiased_0.5", "debiased_1", "cumulative"],
)
def test_running_values_at_0_1_2_and_many_batches(factor, after_two, after_many):
    assert run(factor, []) == (0.0, 1.0)
    assert run(factor, BATCHES[:1], start=(-99.0, 99.0)) == (1.0, 2.0)  # the initial value is forgotten at once
    np.testing.assert_allclose(run(factor, BATCHES), after_two, rtol=1e-14)
    np.testing.assert_allclose(run(factor, BATCHES[:1] + BATCHES[1:] * 400), after_many, rtol=1e-13)


@pytest.mark.parametrize("momentum", [1e-6, 0.01, 0.1, 0.7, 1.0])
def test_debiased_is_adams_correction(momentum):  # (181), (182)
    values = np.random.default_rng(0).normal(3.0, 1.0, 60)
    s, running = 0.0, 99.0
    for n, value in enumerate(values, start=1):
        s = (1 - momentum) * s + momentum * value
        factor = averages.debiased_factor(momentum, n)
        running = (1 - factor) * running + factor * value
        np.testing.assert_allclose(running, s / (1 - (1 - momentum) ** n), rtol=1e-9)  # the quotient loses 1e-16 / 1e-6
    assert averages.debiased_factor(momentum, 1) == pytest.approx(1.0, rel=1e-15)


def test_debiased_is_between_the_cumulative_and_the_exponential_average():  # (182)
    factors = np.array([averages.debiased_factor(0.01, n) for n in range(1, 3001)])
    plain = 1 / np.arange(1, 3001)
    assert np.all(np.diff(factors) < 0)
    assert np.all(factors[1:] > np.maximum(plain[1:], 0.01))
    np.testing.assert_allclose(factors[-1], 0.01, rtol=1e-12)
    np.testing.assert_allclose([averages.debiased_factor(1e-12, n) for n in (1, 2, 50)], [1, 1 / 2, 1 / 50], rtol=1e-10)


def test_a_running_variance_debiased_from_one_is_seen():
    """The naive form, with a true variance of 1 and momentum 0.01: it starts at 1 instead of 0."""
    one = Statistics(np.array([0.0]), np.array([0.5]), 2)  # unbiased variance 1
    for n, wrong in ((1, 100.0), (10, 10.458), (100, 1.5774)):
        exponential = run(functools.partial(averaging_factor, 0.01), [one] * n)[1]
        np.testing.assert_allclose(exponential / (1 - 0.99**n), wrong, rtol=1e-4)
        np.testing.assert_allclose(run(debiased(0.01), [one] * n)[1], 1.0, rtol=1e-15)


@pytest.mark.parametrize("half_life", [0.1, 1.0, 6.5788, 100.0, 1e9])
def test_half_life(half_life):  # (179), (180)
    momentum = averages.momentum_of_half_life(half_life)
    np.testing.assert_allclose(averages.half_life_of_momentum(momentum), half_life, rtol=1e-12)
    np.testing.assert_allclose(half_life * np.log1p(-momentum), -np.log(2), rtol=1e-12)  # (1 - momentum)^h = 1/2


def test_half_lives_by_hand():
    assert averages.momentum_of_half_life(1.0) == 0.5
    assert_close(averages.momentum_of_half_life(2.0), 1 - np.sqrt(0.5))
    assert_close(averages.half_life_of_momentum(0.1), 6.578813478960585)
    assert_close(averages.half_life_of_momentum(0.01), 68.96756393652842)
    # After h batches of another kind the old ones weigh one half.
    factor = functools.partial(averaging_factor, averages.momentum_of_half_life(4.0))
    assert_close(run(factor, [Statistics(np.array([7.0]), np.array([9.0]), 2)] * 4, (1.0, 2.0)), (4.0, 10.0))


def test_a_long_half_life_keeps_its_digits():
    naive = 1 - 2 ** (-1 / 1e15)
    right = np.log(2) * 1e-15
    assert abs(naive / right - 1) > 0.01
    np.testing.assert_allclose(averages.momentum_of_half_life(1e15), right, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averages.momentum_of_half_life(0.0), r"positive number of batches, but is 0\.0"),
        (lambda: averages.momentum_of_half_life(float("nan")), r"positive"),
        (lambda: averages.half_life_of_momentum(1.0), r"between 0 and 1 has a half-life, but it is 1\.0"),
        (lambda: averages.debiased_factor(0.0, 1), r"more than 0 and at most 1, but is 0\.0"),
        (lambda: averages.debiased_factor(1.5, 1), r"but is 1\.5"),
        (lambda: averages.debiased_factor(0.1, 0), r"at least 1, but is 0\. Try to add 1"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_docstrings_run():
    failed, attempted = doctest.testmod(averages)
    assert attempted > 0
    assert failed == 0
