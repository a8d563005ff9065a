"""Statistics by hand, against torch's buffers, against exact arithmetic, and where the one-pass variance fails."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.reference import batch_norm
from batchnorm.reference.statistics import (
    Statistics,
    averaging_factor,
    batch_statistics,
    blend,
    exact_population,
    from_rows,
    half_widths,
    merge,
    naive_var,
    population_statistics,
    to_rows,
    unbiased_var,
    update_running,
)

# Sums of some hundred terms in float64: 1e-16 each, so far below this.
RTOL = 1e-12


def assert_statistics_equal(actual, expected, rtol=RTOL):
    np.testing.assert_allclose(actual.mean, expected.mean, rtol=rtol)
    np.testing.assert_allclose(actual.var, expected.var, rtol=rtol)
    assert actual.count == expected.count


# --- one batch ---


def test_batch_statistics_by_hand():
    x = [[[0.0, 2.0], [5.0, 5.0]], [[4.0, 6.0], [5.0, 9.0]]]  # (2, 2, 2): channels [0 2 4 6] and [5 5 5 9]
    mean, var, count = batch_statistics(x)
    np.testing.assert_array_equal(mean, [3.0, 6.0])
    np.testing.assert_array_equal(var, [5.0, 3.0])
    assert count == 4
    np.testing.assert_allclose(unbiased_var(var, count), [20 / 3, 4.0], rtol=1e-15)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2), (2, 3, 4, 5), (0, 3, 2), (4, 0, 2)])
def test_rows_are_samples_and_positions_and_come_back(shape):
    x = np.arange(float(np.prod(shape))).reshape(shape)
    rows = to_rows(x)
    assert rows.shape == (shape[0] * int(np.prod(shape[2:])), shape[1])
    np.testing.assert_array_equal(from_rows(rows, shape), x)
    if len(shape) == 4:
        np.testing.assert_array_equal(rows[1], x[0, :, 0, 1])


def test_naive_variance_fails_where_batch_statistics_do_not():
    x = np.random.default_rng(0).normal(1e4, 1.0, (1000, 4)).astype(np.float32)
    exact = [exact_mean_and_var(column)[1] for column in x.T]
    assert naive_var(x).dtype == np.float32
    assert np.min(np.abs(naive_var(x) / exact - 1.0)) > 0.5  # 1e4^2 * 6e-8 = 6
    np.testing.assert_allclose(batch_statistics(x).var, exact, rtol=1e-15)


def test_naive_variance_loses_digits_in_float64_too():
    x = np.random.default_rng(1).normal(1e6, 1.0, (100, 1))
    mean, var = exact_mean_and_var(x[:, 0])
    assert abs(naive_var(x)[0] / var - 1.0) > 1e-6  # (60): 1e6^2 * 1e-16 = 1e-4
    np.testing.assert_allclose(batch_statistics(x).mean, mean, rtol=2**-52)
    np.testing.assert_allclose(batch_statistics(x).var, var, rtol=1e-15)


def test_mean_is_rounded_once():
    x = np.random.default_rng(9).normal(1e6, 1.0, (1000, 20))
    exact = [exact_mean_and_var(column)[0] for column in x.T]
    assert np.any(x.mean(axis=0) != exact)
    np.testing.assert_array_equal(batch_statistics(x).mean, exact)


def exact_mean_and_var(column):
    """Mean and biased variance in rational arithmetic."""
    values = [Fraction(float(v)) for v in column]
    mean = sum(values) / len(values)
    return float(mean), float(sum((v - mean) ** 2 for v in values) / len(values))


def test_empty_batch_has_no_statistics_and_updates_nothing():
    statistics = batch_statistics(np.empty((0, 2, 3)))
    assert np.isnan([statistics.mean, statistics.var]).all()
    assert statistics.count == 0
    running_mean, running_var = update_running([1.0, 2.0], [3.0, 4.0], *statistics, averaging_factor=0.1)
    assert (running_mean.tolist(), running_var.tolist()) == ([1.0, 2.0], [3.0, 4.0])


# --- over time ---


def run(momentum, batches, running_mean=0.0, running_var=1.0):
    """Running statistics after each batch of a list."""
    running = np.array([running_mean]), np.array([running_var])
    for n, batch in enumerate(batches, start=1):
        running = update_running(*running, *batch_statistics(batch), averaging_factor(momentum, n))
    return running[0][0], running[1][0]


BATCHES = [[[0.0], [2.0]], [[4.0], [10.0]]]  # means 1 and 7, biased variances 1 and 9, unbiased 2 and 18


@pytest.mark.parametrize(
    ("momentum", "after_one", "after_two"),
    [
        (0.0, (0.0, 1.0), (0.0, 1.0)),
        (0.1, (0.1, 1.1), (0.79, 2.79)),
        (0.25, (0.25, 1.25), (1.9375, 5.4375)),
        (1.0, (1.0, 2.0), (7.0, 18.0)),
        (None, (1.0, 2.0), (4.0, 10.0)),
    ],
)
def test_running_values_at_0_1_and_2_batches(momentum, after_one, after_two):
    assert run(momentum, []) == (0.0, 1.0)
    np.testing.assert_allclose(run(momentum, BATCHES[:1]), after_one, rtol=1e-15)
    np.testing.assert_allclose(run(momentum, BATCHES), after_two, rtol=1e-15)


def test_initial_running_values_are_the_identity_up_to_eps():
    y, _ = batch_norm.forward_test([[3.0], [-4.0]], [0.0], [1.0], eps=1e-5)
    np.testing.assert_allclose(y, np.array([[3.0], [-4.0]]) / np.sqrt(1.00001), rtol=1e-15)


def test_running_values_after_many_batches():  # (46)
    running_mean, running_var = run(0.1, [BATCHES[1]] * 50)
    remembered = 0.9**50
    np.testing.assert_allclose(running_mean, 7.0 * (1 - remembered), rtol=1e-14)
    np.testing.assert_allclose(running_var, 1.0 * remembered + 18.0 * (1 - remembered), rtol=1e-14)


def test_momentum_none_is_the_plain_mean_of_batches():
    batches = np.random.default_rng(2).normal(5.0, 2.0, (20, 8, 1))
    running_mean, running_var = run(None, batches, running_mean=-99.0, running_var=99.0)
    np.testing.assert_allclose(running_mean, batches.mean(), rtol=RTOL)
    np.testing.assert_allclose(running_var, batches.var(axis=1, ddof=1).mean(), rtol=RTOL)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, None])
def test_running_values_are_those_of_torch(momentum):
    batches = np.random.default_rng(3).normal(5.0, 2.0, (12, 6, 1))
    layer = nn.BatchNorm1d(1, momentum=momentum, dtype=torch.float64)
    for batch in batches:
        layer(torch.tensor(batch))
    expected = layer.running_mean.item(), layer.running_var.item()
    np.testing.assert_allclose(run(momentum, batches), expected, rtol=RTOL)


def test_a_batch_of_two_is_normalized_differently_in_eval():  # (47)
    # Printed by a user's program: the layer's input, and its output in training and in eval mode.
    x, in_training, in_eval = [[39928.2773], [79855.9531]], [[-8.2226], [8.2227]], [[-5.8143], [5.8143]]
    weight, bias = [8.22265], [0.00005]  # their half difference and mean, the batch being normalized to -1 and 1
    y, cache = batch_norm.forward_train(x, weight, bias)
    running_mean, running_var = run(0.1, [x] * 400)  # settled: 0.9^400 = 5e-19
    y_eval, _ = batch_norm.forward_test(x, [running_mean], [running_var], weight, bias)

    np.testing.assert_allclose(cache.x_hat, [[-1.0], [1.0]], rtol=1e-13)
    np.testing.assert_allclose(y, in_training, atol=1e-4)
    np.testing.assert_allclose(y_eval, in_eval, atol=1e-4)
    np.testing.assert_allclose((y - bias) / (y_eval - bias), np.full((2, 1), np.sqrt(2.0)), rtol=1e-12)


# --- populations ---


def test_algorithm_2_by_hand():
    mean, var = population_statistics(BATCHES)
    assert (mean.tolist(), var.tolist()) == ([4.0], [10.0])  # (1 + 7)/2 and 2/1 * (1 + 9)/2


def test_exact_population_by_hand():
    mean, var, count = exact_population(BATCHES)
    assert (mean.tolist(), var.tolist(), count) == ([4.0], [14.0], 4)  # of 0 2 4 10; 5 within and 9 between the batches


def test_algorithm_2_is_right_on_average_and_blind_to_sorted_data():
    values = np.random.default_rng(4).normal(0.0, 1.0, (4000, 4, 1))
    _, shuffled = population_statistics(values)
    _, in_order = population_statistics(np.sort(values.ravel()).reshape(4000, 4, 1))
    np.testing.assert_allclose(shuffled, 1.0, atol=0.04)  # 3 standard errors of a variance of 12000 degrees of freedom
    assert in_order < 1e-3
    np.testing.assert_allclose(exact_population(np.sort(values.ravel()).reshape(4000, 4, 1)).var, values.var())


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [5, 5, 29], [0, 17, 30]])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_exact_population_of_an_uneven_split_equals_the_whole(cuts, offset):
    x = np.random.default_rng(5).normal(offset, 2.0, (30, 3, 4))
    parts = np.split(x, cuts)
    assert_statistics_equal(exact_population(parts), batch_statistics(x))
    assert_statistics_equal(exact_population(parts[::-1]), batch_statistics(x))


def test_half_widths_of_equal_batches_are_the_standard_error_of_a_mean():  # (187), (188)
    x = np.random.default_rng(8).normal(2.0, 1.0, (12, 5, 3))
    of_mean, of_var = half_widths(list(x[:, :, :, None]), quantile=2.2)
    means = x.mean(1)
    np.testing.assert_allclose(of_mean, 2.2 * means.std(0, ddof=1) / np.sqrt(12))
    squares = ((x - x.mean((0, 1))) ** 2).mean(1)
    np.testing.assert_allclose(of_var, 2.2 * squares.std(0, ddof=1) / np.sqrt(12))
    with pytest.raises(ValueError, match="at least two batches"):
        half_widths([x[0]], quantile=2.2)


def test_half_widths_weigh_batches_by_their_counts():  # (187)
    rng = np.random.default_rng(9)
    parts = [rng.normal(rng.normal(), 1.0, (n, 1)) for n in (40, 2, 7, 30, 3)]
    of_mean, _ = half_widths(parts, quantile=1.0)
    shares = np.array([len(p) for p in parts]) / sum(map(len, parts))
    apart = np.array([p.mean() for p in parts]) - np.concatenate(parts).mean()
    np.testing.assert_allclose(of_mean, np.sqrt(5 / 4 * (shares**2 * apart**2).sum()))


@pytest.mark.parametrize("prior", [0.0, 0.25, 0.8, 1.0])
def test_a_blend_is_the_population_of_that_mixture(prior):  # (50)
    a, b = np.random.default_rng(10).normal(0.0, 1.0, (2, 40, 3)) * [[[1.0]], [[3.0]]] + [[[5.0]], [[0.0]]]
    weights = np.repeat([prior / 40, (1 - prior) / 40], 40)[:, None]
    values = np.concatenate([a, b])
    mean, var = blend(batch_statistics(a), batch_statistics(b), prior)
    np.testing.assert_allclose(mean, (weights * values).sum(0))
    np.testing.assert_allclose(var, (weights * (values - (weights * values).sum(0)) ** 2).sum(0))


def test_law_of_total_variance():  # (50)
    parts = np.split(np.random.default_rng(6).normal(3.0, 2.0, (20, 2)), [3, 11])
    weights = np.array([3, 8, 9])[:, None] / 20
    means = np.array([batch_statistics(part).mean for part in parts])
    variances = np.array([batch_statistics(part).var for part in parts])
    mean = np.sum(weights * means, axis=0)
    var = np.sum(weights * variances, axis=0) + np.sum(weights * (means - mean) ** 2, axis=0)
    assert_statistics_equal(exact_population(parts), Statistics(mean, var, 20))


def test_merge_keeps_digits_when_the_mean_is_large():
    x = np.random.default_rng(7).normal(1e6, 1.0, (200, 1))
    merged = merge(batch_statistics(x[:70]), batch_statistics(x[70:]))
    # The two means are rounded to 1e-10 deviations, and their difference of 0.1 deviations enters squared.
    np.testing.assert_allclose(merged.var, exact_mean_and_var(x[:, 0])[1], rtol=1e-10)


def test_merge_is_associative_commutative_and_has_a_neutral_element():
    a, b, c = (batch_statistics(part) for part in np.split(np.random.default_rng(8).normal(1, 2, (15, 2)), [4, 6]))
    nothing = batch_statistics(np.empty((0, 2)))
    assert_statistics_equal(merge(a, b), merge(b, a))
    assert_statistics_equal(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_statistics_equal(merge(a, nothing), a, rtol=0)
    assert_statistics_equal(merge(nothing, a), a, rtol=0)
    assert merge(nothing, nothing).count == 0


# --- the border ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_statistics(3.0), r"\(N, C, \*S\).*has shape \(\)"),
        (lambda: unbiased_var([1.0], 1), r"at least 2 values per channel, but count is 1\. Try"),
        (lambda: averaging_factor(1.5, 1), r"momentum must be in \[0, 1\] or None, but is 1\.5.*1 - momentum"),
        (lambda: averaging_factor(float("nan"), 1), r"momentum must be in \[0, 1\]"),
        (lambda: averaging_factor(None, 0), r"at least 1, but is 0\. Try to add 1"),
        (lambda: update_running([0.0], [1.0], [2.0], [0.0], 1, 0.1), r"count is 1"),
        (lambda: population_statistics([]), r"at least one batch"),
        (lambda: exact_population([]), r"at least one batch"),
        (lambda: population_statistics([np.ones((4, 1)), np.ones((3, 1))]), r"\[3, 4\]\. Try exact_population"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
