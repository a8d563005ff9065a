"""Dropout: both conventions, the mean is kept, the mask is reused, nothing happens at test time."""

import numpy as np
import pytest

from batchnorm.reference import dropout
from numeric import assert_close, assert_gradient

X = np.random.default_rng(0).normal(3.0, 1.0, (50, 40))


def test_by_hand():
    y, cache = dropout.forward([2.0, 4.0, 6.0], keep_prob=0.5, mask=[True, False, True])
    np.testing.assert_array_equal(y, [4.0, 0.0, 12.0])
    np.testing.assert_array_equal(dropout.backward([1.0, 1.0, -1.0], cache), [2.0, 0.0, -2.0])


def test_what_is_kept_is_divided_by_the_keep_probability_not_by_the_drop_rate():
    y, _ = dropout.forward([1.0], drop_prob=0.2, mask=[True])
    np.testing.assert_allclose(y, [1 / 0.8], rtol=1e-15)
    assert abs(y[0] - 1 / 0.2) > 3  # the rule "divide by the drop rate"


def test_keep_and_drop_are_two_names_of_one_number():
    kept, _ = dropout.forward(X, keep_prob=0.75, generator=np.random.default_rng(1))
    dropped, _ = dropout.forward(X, drop_prob=0.25, generator=np.random.default_rng(1))
    np.testing.assert_array_equal(kept, dropped)


@pytest.mark.parametrize("keep_prob", [0.3, 0.6, 0.75])
def test_the_mean_over_masks_is_the_input(keep_prob):
    x = np.full(200_000, 2.0)
    y, cache = dropout.forward(x, keep_prob=keep_prob, generator=np.random.default_rng(2))
    deviation = 2.0 * np.sqrt((1 - keep_prob) / keep_prob)  # (107)
    assert abs(y.mean() - 2.0) < 4 * deviation / np.sqrt(x.size)  # (106)
    assert abs(y.std() / deviation - 1) < 0.02
    assert abs((y == 0).mean() - (1 - keep_prob)) < 0.01
    original, _ = dropout.original_forward(x, keep_prob=keep_prob, mask=cache.mask)
    assert abs(original.mean() - 2.0 * keep_prob) < 0.03  # not rescaled: the mean shrinks


def test_mean_over_all_masks_is_exact():
    x = np.array([1.0, -2.0, 3.0])
    masks = (np.arange(8)[:, None] >> np.arange(3)) % 2
    chance = np.prod(np.where(masks, 0.7, 0.3), axis=1)
    outputs = np.array([dropout.forward(x, keep_prob=0.7, mask=mask)[0] for mask in masks])
    assert_close(chance @ outputs, x)  # (106)
    assert_close(chance @ outputs**2 - x**2, x**2 * 0.3 / 0.7)  # (107)


def test_test_time_does_nothing_and_returns_a_copy():
    y, cache = dropout.forward(X, drop_prob=0.9, training=False)
    np.testing.assert_array_equal(y, X)
    assert y is not X
    np.testing.assert_array_equal(dropout.backward(X, cache), X)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("forward", [dropout.forward, dropout.original_forward])
def test_gradient_uses_the_mask_of_the_forward(forward, training):
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    mask = dropout.draw_mask(x.shape, keep_prob=0.6, generator=rng)
    _, cache = forward(x, keep_prob=0.6, mask=mask, training=training)
    dx = dropout.backward(dy, cache)
    assert_gradient(lambda x: forward(x, keep_prob=0.6, mask=mask, training=training)[0], x, dy, dx)
    if training:
        other = dropout.draw_mask(x.shape, keep_prob=0.6, generator=rng)
        assert np.abs(dx - dropout.backward(dy, cache._replace(mask=other))).max() > 0.1


def test_inverted_is_the_original_divided_by_the_keep_probability_in_both_modes():
    for training in (True, False):
        inverted, cache = dropout.forward(X, keep_prob=0.6, generator=np.random.default_rng(4), training=training)
        original, _ = dropout.original_forward(X, keep_prob=0.6, mask=cache.mask, training=training)
        assert_close(inverted * 0.6, original)


def test_legacy_seeding_draws_the_published_mask():
    former = np.random.get_state()  # noqa: NPY002 - the published protocol is the legacy one
    np.random.seed(1)  # noqa: NPY002
    published = np.random.rand(20, 211) < 0.86  # noqa: NPY002
    np.random.set_state(former)  # noqa: NPY002
    ours = dropout.draw_mask((20, 211), keep_prob=0.86, generator=np.random.RandomState(1))
    np.testing.assert_array_equal(ours, published)


def test_a_dropped_infinity_is_zero():
    y, cache = dropout.forward([np.inf, 1.0], keep_prob=0.5, mask=[False, True])
    np.testing.assert_array_equal(y, [0.0, 2.0])
    np.testing.assert_array_equal(dropout.backward([np.nan, 1.0], cache), [0.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dropout.forward(X),
            "exactly one of keep_prob and drop_prob must be given, but they are None and None",
        ),
        (lambda: dropout.forward(X, keep_prob=0.8, drop_prob=0.2), "but they are 0.8 and 0.2"),
        (lambda: dropout.forward(X, keep_prob=1.5), r"keep_prob must be in \[0, 1\], but is 1.5"),
        (lambda: dropout.forward(X, drop_prob=1.0), "something must be kept"),
        (lambda: dropout.forward(X, keep_prob=0.5), r"needs a generator or a mask"),
        (lambda: dropout.forward(X, keep_prob=0.5, mask=[True]), r"mask must have shape \(50, 40\)"),
        (lambda: dropout.backward([1.0], dropout.forward(X, keep_prob=0.5, mask=X > 0)[1]), "dy must have shape"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
