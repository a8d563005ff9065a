"""Cutout, Mixup and stochastic depth: where the hole is, what is mixed with what, and that means are kept."""

import numpy as np
import pytest

from batchnorm.reference import dropout, losses
from batchnorm.reference.augmentation import cutout, linear_survival, mixup, stochastic_depth_forward
from numeric import assert_close, assert_gradient

IMAGES = np.random.default_rng(0).normal(size=(200, 3, 6, 8))


def test_cutout_is_one_square_in_all_channels_and_may_leave_the_image():
    y, mask = cutout(IMAGES, 4, np.random.default_rng(1))
    np.testing.assert_array_equal(y, IMAGES * mask)
    holes = ~mask[:, 0]
    areas = set()
    for hole in holes:
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)  # a rectangle: the square, cut at the border
        assert np.all(np.diff(rows) == 1)
        assert np.all(np.diff(columns) == 1)
        areas.add(int(hole.sum()))
    assert max(areas) == 16
    assert min(areas) < 16
    # The centre is uniform over pixels: the corner is covered by centres 0 to 2 of 6 and of 8 alone.
    corner = holes[:, 0, 0].mean()
    assert abs(corner - 3 / 6 * 3 / 8) < 4 * np.sqrt(0.19 * 0.81 / 200)


def test_cutout_of_nothing_and_of_everything():
    np.testing.assert_array_equal(cutout(IMAGES, 0, np.random.default_rng(2))[0], IMAGES)
    assert not cutout(IMAGES, 17, np.random.default_rng(2))[0].any()


def test_cutout_gradient_is_dy_times_the_mask():
    x, dy = IMAGES[:2], np.random.default_rng(3).normal(size=(2, 3, 6, 8))
    _, mask = cutout(x, 4, np.random.default_rng(4))
    assert_gradient(lambda x: cutout(x, 4, np.random.default_rng(4))[0], x, dy, dy * mask)


@pytest.mark.parametrize("generator", [np.random.default_rng, np.random.RandomState])
def test_mixup_mixes_samples_and_targets_alike(generator):
    y = np.eye(4)[np.arange(200) % 4]
    mixed = mixup(IMAGES, y, 0.4, generator(5))
    assert 0 <= mixed.share <= 1
    assert sorted(mixed.order) == list(range(200))
    assert_close(mixed.x, mixed.share * IMAGES + (1 - mixed.share) * IMAGES[mixed.order])
    assert_close(mixed.y.sum(axis=1), np.ones(200))
    assert_close(mixed.x.mean(axis=0), IMAGES.mean(axis=0))  # a permutation: the mean of the batch stays


def test_the_loss_of_mixed_targets_is_the_mixture_of_the_losses():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=6), (np.arange(6) % 2).astype(float)
    mixed = mixup(np.zeros((6, 1)), y[:, None], 1.0, rng)
    loss, _ = losses.sigmoid_cross_entropy(x, mixed.y[:, 0])
    own, other = losses.sigmoid_cross_entropy(x, y)[0], losses.sigmoid_cross_entropy(x, y[mixed.order])[0]
    assert_close(loss, mixed.share * own + (1 - mixed.share) * other)


def test_mixup_share_follows_alpha():
    def spread(alpha):
        return np.std([mixup([[0.0]], [[1.0]], alpha, np.random.default_rng(seed)).share for seed in range(200)])

    assert spread(0.1) > 0.4 > 0.2 > spread(20.0)  # Beta(a, a) has the variance 1 / (4 (2 a + 1))


def test_stochastic_depth_drops_whole_samples_or_the_whole_batch_and_keeps_the_mean():
    y, cache = stochastic_depth_forward(IMAGES, keep_prob=0.8, generator=np.random.default_rng(7))
    kept = (y != 0).all(axis=(1, 2, 3))
    assert_close(y[kept], IMAGES[kept] / 0.8)
    assert not y[~kept].any()
    assert 0.65 < kept.mean() < 0.95
    dy = np.random.default_rng(8).normal(size=IMAGES.shape)
    assert_close(dropout.backward(dy, cache), np.where(kept[:, None, None, None], dy / 0.8, 0.0))
    decisions = []
    for seed in range(100):
        y, _ = stochastic_depth_forward(
            np.ones((3, 2)), drop_prob=0.2, generator=np.random.default_rng(seed), mode="batch"
        )
        assert len(np.unique(y)) == 1
        decisions.append(y[0, 0])
    assert 0.65 < np.mean(np.array(decisions) > 0) < 0.95


def test_stochastic_depth_of_the_paper_scales_at_test_time_instead():
    trained, _ = stochastic_depth_forward(IMAGES, keep_prob=0.8, generator=np.random.default_rng(9), inverted=False)
    assert set(np.unique(trained / IMAGES)) == {0.0, 1.0}
    tested, _ = stochastic_depth_forward(IMAGES, keep_prob=0.8, training=False, inverted=False)
    assert_close(tested, 0.8 * IMAGES)
    np.testing.assert_array_equal(stochastic_depth_forward(IMAGES, keep_prob=0.8, training=False)[0], IMAGES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cutout(IMAGES[0], 4, np.random.default_rng(0)), r"has shape \(3, 6, 8\).*Try x\[None\]"),
        (lambda: mixup(IMAGES, np.arange(200), 1.0, np.random.default_rng(0)), r"Try np\.eye\(classes\)\[y\]"),
        (lambda: mixup(IMAGES, np.ones((200, 2)), 0.0, np.random.default_rng(0)), "alpha is 0.0"),
        (lambda: stochastic_depth_forward(IMAGES, keep_prob=0.8, mode="pixel"), "mode must be one of row, batch"),
        (lambda: stochastic_depth_forward(IMAGES, keep_prob=0.8), "needs a generator"),
        (lambda: linear_survival(0, 4), "block must be from 1 to 4, but is 0"),
    ],
)
def test_errors_say_what_must_hold(call, message):
    with pytest.raises(ValueError, match=message):
        call()
