"""Descent where the answer is known: exact rates on a quadratic, unbiased batches, convexity and Jensen."""

import itertools
from functools import partial

import numpy as np
import pytest

from batchnorm.reference import optimizers
from batchnorm.reference.descent import (
    ROSENBROCK,
    SADDLE,
    WAVES,
    convexity_gap,
    descend,
    jensen_gap,
    least_squares,
    quadratic,
    stochastic_descend,
)
from batchnorm.reference.schedules import exponential_decay
from numeric import assert_close, assert_gradient

FUNCTIONS = [quadratic(30.0, dimension=3), quadratic(5.0, dimension=1), WAVES, SADDLE, ROSENBROCK]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_gradients_equal_central_differences_at_many_points_at_once(function):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 3, len(function.start)))
    dy = rng.normal(size=(4, 3))
    assert function.value(points).shape == (4, 3)
    assert_gradient(function.value, points, dy, dy[..., None] * function.gradient(points), rtol=1e-7)
    np.testing.assert_allclose(function.gradient(function.minima), 0.0, atol=1e-12)
    lowest = function.value(function.minima)
    assert np.all(function.value(rng.normal(0.0, 3.0, (500, len(function.start)))) > lowest.max())


# --- exact laws of descent ---


def test_each_axis_of_a_quadratic_shrinks_by_its_own_factor():
    lr, bowl = 0.08, quadratic(20.0, dimension=3)
    path = descend(bowl, steps=15, lr=lr).points
    curvatures = np.geomspace(1.0, 20.0, 3)
    expected = (1 - lr * curvatures) ** np.arange(16)[:, None]  # (147)
    assert_close(path, expected)


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_the_best_constant_rate_shrinks_by_the_condition(condition):
    path = descend(quadratic(condition), steps=20, lr=2 / (1 + condition)).points
    lengths = np.linalg.norm(path, axis=1)
    factor = (condition - 1) / (condition + 1)  # (148)
    np.testing.assert_allclose(lengths, np.sqrt(2) * factor ** np.arange(21), rtol=1e-9, atol=1e-12)


def test_the_limit_of_the_rate_is_two_over_the_largest_curvature():
    bowl = quadratic(50.0)
    assert descend(bowl, steps=300, lr=0.99 * 2 / 50).values[-1] < 0.1
    assert descend(bowl, steps=300, lr=1.01 * 2 / 50).values[-1] > 1e3
    far = descend(bowl, steps=3000, lr=1.0)
    assert not np.isfinite(far.values[-1])  # it says so, without a warning


def test_from_five_descent_ends_in_a_local_minimum_and_momentum_crosses_it():
    path = descend(WAVES, steps=500, lr=0.02)
    assert abs(WAVES.gradient(path.points[-1])[0]) < 1e-9
    assert 3.5 < path.points[-1, 0] < 4.5  # the minimum next to it
    assert WAVES.value(path.points[-1]) > 1.0
    faster = descend(WAVES, steps=2000, lr=0.02, rule=partial(optimizers.momentum, momentum=0.95))
    assert WAVES.value(faster.points[-1]) < WAVES.value(path.points[-1])


def test_a_saddle_holds_plain_descent_for_long_and_noise_or_adam_for_less():
    def steps_until_low(path):
        return int(np.argmax(path.values < -0.2)) or len(path.values)

    plain = descend(SADDLE, steps=400, lr=0.1)
    assert abs(plain.points[30, 0]) < 0.1
    assert plain.values[30] > -0.01  # on the saddle
    noisy = descend(SADDLE, steps=400, lr=0.1, noise_std=0.3, generator=np.random.default_rng(1))
    adaptive = descend(SADDLE, steps=400, lr=0.1, rule=optimizers.adam)
    assert steps_until_low(noisy) < steps_until_low(plain)
    assert steps_until_low(adaptive) < steps_until_low(plain) < 400
    exactly = descend(SADDLE, [1.0, 0.0], steps=400, lr=0.1)
    assert abs(exactly.values[-1]) < 1e-12  # without noise the ridge leads to the saddle


def test_momentum_passes_plain_descent_in_a_long_valley():
    plain = descend(quadratic(1000.0), steps=300, lr=1e-3)
    faster = descend(quadratic(1000.0), steps=300, lr=1e-3, rule=optimizers.momentum)
    assert faster.values[-1] < 0.01 * plain.values[-1]


def test_a_falling_rate_settles_under_noise_and_a_constant_one_does_not():
    ends = {"constant": [], "falling": []}
    for seed in range(20):
        for name, lr in [("constant", 0.2), ("falling", partial(exponential_decay, lr=0.2, factor=0.99))]:
            generator = np.random.default_rng(seed)
            path = descend(quadratic(5.0), steps=600, lr=lr, noise_std=1.0, generator=generator)
            ends[name].append(path.values[-1])
    assert np.mean(ends["falling"]) < 0.1 * np.mean(ends["constant"])


# --- stochastic and mini-batch descent ---


def problem(samples=12, seed=2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 3))
    return x, x @ [1.0, -2.0, 3.0] + 0.1 * rng.normal(size=samples)


def test_least_squares_gradient_equals_central_differences():
    loss = least_squares(*problem())
    w = np.array([0.5, 0.1, -0.3])
    assert_gradient(loss.value, w, 1.3, 1.3 * loss.gradient(w, np.arange(12)))


def test_batch_gradients_are_unbiased_with_the_variance_of_a_draw_without_replacement():
    loss, w = least_squares(*problem(samples=8)), np.zeros(3)
    each = np.array([loss.gradient(w, np.array([i])) for i in range(8)])
    for batch_size in (1, 2, 5, 8):
        batches = itertools.combinations(range(8), batch_size)
        gradients = np.array([loss.gradient(w, np.array(batch)) for batch in batches])
        assert_close(gradients.mean(axis=0), each.mean(axis=0))  # (150)
        expected = each.var(axis=0) / batch_size * (8 - batch_size) / 7  # (151)
        np.testing.assert_allclose(gradients.var(axis=0), expected, rtol=1e-10, atol=1e-25)


def test_all_samples_in_one_batch_is_gradient_descent():
    x, y = problem()
    loss = least_squares(x, y)
    path = stochastic_descend(loss, np.zeros(3), batch_size=12, epochs=5, lr=0.1, generator=np.random.default_rng(3))
    w = np.zeros(3)
    for step in range(5):
        assert_close(path.values[step], 0.5 * np.mean((x @ w - y) ** 2))
        w = w - 0.1 * x.T @ (x @ w - y) / 12
    assert_close(path.points[-1], w)


@pytest.mark.parametrize("generator", [np.random.default_rng, np.random.RandomState])
def test_an_epoch_sees_each_sample_once(generator):
    loss = least_squares(*problem())
    seen = []
    watched = loss._replace(gradient=lambda w, batch: (seen.append(batch), loss.gradient(w, batch))[1])
    path = stochastic_descend(watched, np.zeros(3), batch_size=5, epochs=2, lr=0.01, generator=generator(4))
    assert [len(batch) for batch in seen] == [5, 5, 2, 5, 5, 2]
    assert sorted(np.concatenate(seen[:3])) == list(range(12))
    assert np.any(np.concatenate(seen[:3]) != np.concatenate(seen[3:]))
    assert len(path.points) == len(path.values) == 7


def test_smaller_batches_make_noisier_paths_to_the_same_place():
    x, y = problem(samples=200)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    distance = {}
    for batch_size in (1, 20, 200):
        path = stochastic_descend(
            least_squares(x, y), best, batch_size=batch_size, epochs=20, lr=0.05, generator=np.random.default_rng(5)
        )
        distance[batch_size] = np.mean(np.linalg.norm(path.points[1:] - best, axis=1))
    assert distance[1] > 2 * distance[20]
    assert distance[20] > 10 * distance[200]


# --- convexity ---


def test_convexity_gap_tells_the_convex_from_the_others():
    points = np.random.default_rng(6).normal(0.0, 2.0, (40, 2))
    assert convexity_gap(quadratic(10.0).value, points) <= 1e-12
    assert convexity_gap(lambda w: np.exp(w).sum(axis=-1), points) <= 1e-12
    assert convexity_gap(SADDLE.value, points) > 0.1
    assert convexity_gap(ROSENBROCK.value, points) > 1.0
    assert convexity_gap(WAVES.value, points[:, :1]) > 0.1
    assert abs(convexity_gap(lambda w: 3 * w[..., 0] - w[..., 1] + 2, points)) < 1e-12  # both convex and concave


def test_jensen_gap_of_a_quadratic_is_half_the_curvature_times_the_variance():
    rng = np.random.default_rng(7)
    points, weights = rng.normal(size=(30, 2)), rng.dirichlet(np.ones(30))
    variance = weights @ (points - weights @ points) ** 2
    assert_close(jensen_gap(quadratic(10.0).value, points, weights), 0.5 * variance @ [1.0, 10.0])  # (153)


def test_jensen_gap_has_the_sign_of_the_curvature():
    points = np.random.default_rng(8).uniform(0.5, 3.0, (50, 1))
    assert jensen_gap(lambda w: np.exp(w[..., 0]), points) > 0
    assert jensen_gap(lambda w: np.log(w[..., 0]), points) < 0
    assert abs(jensen_gap(lambda w: 2 * w[..., 0] + 1, points)) < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadratic(0.1), "must be at least 1, but are 0.1 and 2"),
        (lambda: descend(SADDLE, [1.0], steps=1, lr=0.1), r"start must have shape \(2,\), that of function\.start"),
        (lambda: descend(SADDLE, steps=1, lr=0.1, noise_std=1.0), "noise needs a generator"),
        (lambda: least_squares(np.ones(3), np.ones(3)), r"Try x\[:, None\]"),
        (
            lambda: stochastic_descend(
                least_squares(*problem()),
                np.zeros(3),
                batch_size=13,
                epochs=1,
                lr=0.1,
                generator=np.random.default_rng(0),
            ),
            "batch_size must be from 1 to 12, but is 13",
        ),
        (lambda: convexity_gap(SADDLE.value, [[0.0, 0.0]]), "N at least 2"),
        (lambda: convexity_gap(SADDLE.value, np.eye(2), shares=[2.0]), r"the shares are \[2\.0\]"),
        (lambda: jensen_gap(SADDLE.value, np.eye(2), [0.5, 0.6]), "sum to 1.1"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
