"""Batch Renormalization against its equations, against Keras' rule, and the two ways in which it goes wrong."""

import doctest
import functools

import numpy as np
import pytest

import equations
from batchnorm.reference import batch_norm, policies, renorm
from batchnorm.reference.statistics import batch_statistics, update_running
from numeric import assert_close, assert_gradient, complex_step_gradient

ARGUMENTS = ("x", "weight", "bias", "residual")
EPS = 1e-3


def make(shape, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    arguments = {
        "x": rng.normal(mean, 2.0, shape),
        "weight": rng.normal(1.0, 0.5, shape[1]),
        "bias": rng.normal(0.0, 0.5, shape[1]),
        "residual": rng.normal(0.0, 1.0, shape),
    }
    return arguments, rng.normal(size=shape)


def stored(channels, mean=3.0, seed=5):
    """A running mean and deviation near the data, and not those of the batch."""
    rng = np.random.default_rng(seed)
    return {"running_mean": mean + rng.normal(size=channels), "sigma": rng.uniform(0.5, 4.0, channels)}


def test_correction_by_hand():
    # Deviations 2, 20 and 0.1 against 1; means 0.5, 9 and -9 against 0.
    factor, summand = renorm.correction(
        [0.5, 9.0, -9.0], [3.0, 399.0, -0.99], [0.0] * 3, [1.0] * 3, rmax=4.0, dmax=2.0, eps=1.0
    )
    assert_close(factor, [2.0, 4.0, 0.25], rtol=1e-15)
    assert summand.tolist() == [0.5, 2.0, -2.0]


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (1.5, 0.3), (1e9, 1e9)], ids=["closed", "clipped", "open"])
@pytest.mark.parametrize("mean", [3.0, -2e6])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_and_backward_are_the_equations(masked, mean, bounds, activation):
    shape = (7, 4, 3)
    arguments, dy = make(shape, mean=mean)
    mask = policies.valid_mask([3, 1, 2, 3, 0, 2, 1], 3) if masked else np.ones((7, 1, 3), dtype=bool)
    running = stored(4, mean)
    y, cache = renorm.forward_train(
        **arguments, **running, rmax=bounds[0], dmax=bounds[1], eps=EPS, mask=mask, activation=activation
    )
    gradients = policies.backward(dy, cache)

    valid = np.moveaxis(arguments["x"], 1, -1)[mask[:, 0]]
    std = np.sqrt(valid.var(axis=0) + EPS)
    factor = np.clip(std / running["sigma"], 1 / bounds[0], bounds[0])
    summand = np.clip((valid.mean(axis=0) - running["running_mean"]) / running["sigma"], -bounds[1], bounds[1])
    if bounds[0] == 1.5:
        clipped = {float(value) for value in factor} & {1.5, 1 / 1.5}
        assert clipped, "the case does not clip"
    as_it_stands = functools.partial(
        equations.forward,
        groups=np.zeros(7, dtype=int),
        mask=mask,
        kept=mask,
        eps=EPS,
        factor=factor[None],  # constants: no gradient passes through them
        summand=summand[None],
        activation=activation,
    )
    # The summand is a difference of two numbers as large as the mean: 2e6 * 1e-16 / sigma.
    rtol = 1e-12 if mean == 3.0 else 1e-8
    assert_close(y, as_it_stands(**arguments), rtol)
    for name in ARGUMENTS:

        def along(value, name=name):
            return as_it_stands(**(arguments | {name: value}))

        assert_close(getattr(gradients, f"d{name}"), complex_step_gradient(along, arguments[name], dy), rtol)


def test_backward_equals_central_differences_with_the_correction_held():
    arguments, dy = make((5, 2, 3))
    _, cache = renorm.forward_train(**arguments, **stored(2), rmax=1.2, dmax=0.5, activation="silu")
    gradients = policies.backward(dy, cache)
    for name in ARGUMENTS:

        def along(value, name=name):
            options = {"correct": lambda mean, var: (cache.factor, cache.summand), "activation": "silu"}
            return policies.forward_train(**(arguments | {name: value}), **options)[0]

        assert_gradient(along, arguments[name], dy, getattr(gradients, f"d{name}"))


def test_closed_bounds_are_the_plain_layer():
    arguments, dy = make((6, 3))
    y, cache = renorm.forward_train(**arguments, **stored(3), rmax=1.0, dmax=0.0, activation="relu")
    expected, expected_cache = batch_norm.forward_train(**arguments, activation="relu")
    np.testing.assert_array_equal(y, expected)
    for ours, plain in zip(policies.backward(dy, cache), batch_norm.backward(dy, expected_cache), strict=True):
        assert_close(ours, plain, rtol=1e-15)


def test_open_bounds_are_the_test_mode():  # (171)
    arguments, dy = make((4, 3))
    running = stored(3)
    y, cache = renorm.forward_train(**arguments, **running, rmax=1e9, dmax=1e9, eps=EPS)
    expected, expected_cache = policies.forward_test(
        arguments["x"],
        running["running_mean"],
        running["sigma"] ** 2,
        arguments["weight"],
        arguments["bias"],
        residual=arguments["residual"],
        eps=0.0,
    )
    assert_close(y, expected)
    # The outputs agree and the gradients do not: (178) is what an unstopped gradient would be.
    frozen = policies.backward(dy, expected_cache).dx
    assert_close(frozen, arguments["weight"] / running["sigma"] * dy)  # (178)
    dx = policies.backward(dy, cache).dx
    assert np.max(np.abs(dx - frozen)) > 0.1 * np.max(np.abs(frozen))
    np.testing.assert_allclose(dx.sum(axis=0), 0.0, atol=1e-14)
    x_hat = cache.x_hat
    projected = dy - dy.mean(axis=0) - x_hat * (dy * x_hat).mean(axis=0)
    assert_close(dx, arguments["weight"] / running["sigma"] * projected)


def test_gradient_through_the_correction_is_that_of_a_frozen_layer():  # (178)
    """The second naive form, by complex steps through (169) and (170) as well."""
    arguments, dy = make((4, 2))
    running = stored(2)

    def unstopped(x):
        mean = x.mean(axis=0)
        std = np.sqrt(((x - mean) ** 2).mean(axis=0) + EPS)
        x_hat = (x - mean) / std
        corrected = x_hat * (std / running["sigma"]) + (mean - running["running_mean"]) / running["sigma"]
        return arguments["weight"] * corrected + arguments["bias"]

    naive = complex_step_gradient(unstopped, arguments["x"], dy)
    assert_close(naive, arguments["weight"] / running["sigma"] * dy)
    _, cache = renorm.forward_train(**arguments, **running, rmax=1e9, dmax=1e9, eps=EPS)
    dx = policies.backward(dy, cache).dx
    assert np.max(np.abs(naive - dx)) > 0.1 * np.max(np.abs(dx))


def drifting_batches(steps):
    """Batches of four, whose mean and deviation wander: some are clipped, some are not."""
    rng = np.random.default_rng(7)
    t = np.arange(steps)[:, None, None]
    return rng.normal(size=(steps, 4, 3)) * (1.5 + np.sin(t / 700)) + 4 * np.cos(t / 1100)


def test_50000_steps_of_keras_rule():
    """Keras 3.15.1, ``renorm=True``: its recursions in its own names, where momentum is the weight of the old value."""
    momentum, steps = 0.99, 50_000
    batches = drifting_batches(steps)
    means, variances = batches.mean(axis=1), batches.var(axis=1)
    renorm_mean, renorm_stddev = np.zeros(3), np.ones(3)
    running_mean, sigma = np.zeros(3), np.ones(3)
    ours, keras = [], []
    for step, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        rmax, dmax = renorm.bounds(step)
        ours += renorm.correction(mean, variance, running_mean, sigma, rmax=rmax, dmax=dmax, eps=EPS)
        running_mean, _ = update_running(running_mean, sigma, mean, variance, 4, 0.01)
        sigma = renorm.update_sigma(sigma, variance, 4, 0.01, EPS)

        stddev = np.sqrt(variance + EPS)
        floored = np.maximum(renorm_stddev, np.sqrt(EPS))  # never active: every deviation is at least this
        r = np.minimum(np.maximum(stddev / floored, 1 / rmax), rmax)
        d = np.clip((mean - renorm_mean) / floored, -dmax, dmax)
        keras += [r, d]
        renorm_mean = renorm_mean * momentum + mean * (1.0 - momentum)
        renorm_stddev = renorm_stddev * momentum + stddev * (1.0 - momentum)
    moving_variance = np.maximum(renorm_stddev * renorm_stddev - EPS, 0.0)
    np.testing.assert_allclose(ours, keras, rtol=0, atol=1e-11)
    assert_close(running_mean, renorm_mean, 1e-11)
    assert_close(np.sqrt(moving_variance + EPS), sigma, 1e-11)  # what Keras' test mode divides by
    first, last = np.abs(np.array(ours[1::2])[5001:5100]), np.array(ours[0::2])[45_000:]
    assert first.max() < 0.03  # the bounds have begun to open, and then they are met from time to time
    assert (last == 3.0).any() or (last == 1 / 3).any()
    assert ((last < 3.0) & (last > 1 / 3)).any()


def test_sigma_at_0_1_2_and_many_batches():  # (172)
    sigma = np.array([1.0])
    for expected in (1.2, 1.38):
        sigma = renorm.update_sigma(sigma, [8.0], 4, 0.1, eps=1.0)  # of deviation 3
        assert_close(sigma, [expected], rtol=1e-15)
    for _ in range(98):
        sigma = renorm.update_sigma(sigma, [8.0], 4, 0.1, eps=1.0)
    assert_close(sigma, [3.0 - 2.0 * 0.9**100], rtol=1e-13)
    assert renorm.update_sigma([1.5], [np.nan], 0, 0.1).tolist() == [1.5]


def test_the_two_deviations_differ_by_the_spread_between_batches():  # (173), (174)
    batches = drifting_batches(500)
    var = batches.var(axis=1)
    std = np.sqrt(var + EPS)
    gap = (var.mean(axis=0) + EPS) - std.mean(axis=0) ** 2
    assert_close(gap, std.var(axis=0))
    # In use, with batches of four: the paper's is smaller by a fifth, because 3/4 and the spread both count.
    running_var, sigma = np.ones(3), np.ones(3)
    for x in batches:
        mean, variance, count = batch_statistics(x)
        _, running_var = update_running(np.zeros(3), running_var, mean, variance, count, 0.01)
        sigma = renorm.update_sigma(sigma, variance, count, 0.01, EPS)
    assert np.all(sigma / np.sqrt(running_var + EPS) < 0.9)


def test_sigma_never_falls_below_the_root_of_eps():
    sigma = np.array([1.0])
    for _ in range(5000):
        sigma = renorm.update_sigma(sigma, [0.0], 4, 0.01, EPS)
    assert_close(sigma, [np.sqrt(EPS)])


def test_bounds_of_the_schedule():  # (175), (176)
    assert renorm.bounds(0) == renorm.bounds(5000) == (1.0, 0.0)
    assert_close(renorm.bounds(5001), (1 + 2 / 35000, 5 / 20000), rtol=1e-15)
    assert renorm.bounds(25000)[1] == renorm.bounds(10**9)[1] == 5.0
    assert renorm.bounds(40000)[0] == renorm.bounds(10**9)[0] == 3.0
    assert renorm.bounds(39999)[0] < 3.0
    step = {"start": 100, "rmax_end": 100, "dmax_end": 0}
    assert (renorm.bounds(99, **step), renorm.bounds(100, **step)) == ((1.0, 0.0), (3.0, 5.0))


def test_a_correction_that_goes_on_growing_is_seen():  # (177)
    x = make((4, 3))[0]["x"]
    running = {"running_mean": np.array([2.0, 3.0, 4.0]), "sigma": np.array([1.0, 2.0, 2.5])}
    mean, var, _ = batch_statistics(x)
    right = renorm.correction(mean, var, **running, rmax=3.0, dmax=5.0, eps=EPS)
    expected = (x - running["running_mean"]) / running["sigma"]  # (171)

    def output(correction):
        return policies.forward_train(x, correct=lambda mean, var: correction, eps=EPS)[0]

    assert_close(output(right), expected)
    for batches in (1000, 1999):
        assert_close(output(renorm.naive_correction(*right, batches, warm_up=1000)), expected)
    errors = [
        np.max(np.abs(output(renorm.naive_correction(*right, 1000 * k, warm_up=1000)) - expected)) for k in (2, 3, 10)
    ]
    assert errors[0] > 0.5
    np.testing.assert_allclose(np.array(errors) / errors[0], [1, 2, 9])  # without end
    assert renorm.naive_correction([1 / 3], [0.0], 2000, 1000)[0][0] < 0  # the sign of x_hat turns


@pytest.mark.parametrize("value", [0.0, 1e6 / 3])
def test_a_constant_channel(value):
    x = np.full((4, 1), value)
    y, cache = renorm.forward_train(x, [value - 0.5], [2.0], rmax=3.0, dmax=5.0, eps=1e-5)
    assert_close(y, np.full((4, 1), 0.25), rtol=1e-9)
    assert cache.factor.tolist() == [[1 / 3]]
    assert np.isfinite(policies.backward(np.random.default_rng(0).normal(size=(4, 1)), cache).dx).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: renorm.correction([0.0], [1.0], [0.0], [1.0], rmax=0.5, dmax=1.0), r"rmax must be at least 1.*0\.5"),
        (lambda: renorm.correction([0.0], [1.0], [0.0], [1.0], rmax=2.0, dmax=-1.0), r"dmax must be at least 0.*-1\.0"),
        (lambda: renorm.correction([0.0], [1.0], [0.0], [0.0], rmax=2.0, dmax=1.0), r"sigma must be positive.*0\.0"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_in_docstrings_run():
    failed, attempted = doctest.testmod(renorm)
    assert attempted > 0
    assert failed == 0
