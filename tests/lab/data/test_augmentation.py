"""What is done to images, against the textbook in float64 and against loops that say it one image at a time."""

import numpy as np
import pytest
import torch

from batchnorm.lab.data.augmentation import (
    CUTOUT,
    MIXUP,
    RATIO,
    TRIES,
    Augmentation,
    box_of,
    crop,
    generator,
    mixed,
)
from batchnorm.lab.errors import LabError
from batchnorm.reference import augmentation as reference

SHAPE = (3, 6, 8)
N = 40
IMAGES = torch.randn((N, *SHAPE), generator=torch.Generator().manual_seed(0))
PLACE = (7, 2, 5)  # seed, epoch, batch


def drawn(**settings):
    return Augmentation(**settings).draw(N, SHAPE, *PLACE)


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_is_that_of_the_textbook(size):
    expected, mask = reference.cutout(IMAGES.numpy(), size, generator(CUTOUT, *PLACE))
    assert 0 < mask.mean() < 1 or size == 20
    changed = drawn(cutout=size).change(IMAGES.clone())
    np.testing.assert_array_equal(changed.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_that_of_the_textbook(alpha):
    targets = np.eye(4)[np.arange(N) % 4]
    expected = reference.mixup(IMAGES.numpy(), targets, alpha, generator(MIXUP, *PLACE))
    draw = drawn(mixup=alpha)
    assert draw.share == expected.share
    np.testing.assert_array_equal(draw.partners.numpy(), expected.order)
    # Values up to 5, a difference, a product and a sum in float32.
    found = mixed(IMAGES, IMAGES[draw.partners], draw.share)
    np.testing.assert_allclose(found.numpy(), expected.x, rtol=0, atol=3 * 5 * 1.2e-7)
    y = torch.from_numpy(targets).float()
    np.testing.assert_allclose(mixed(y, y[draw.partners], draw.share).numpy(), expected.y, rtol=0, atol=3 * 1.2e-7)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image(padding):
    draw = drawn(crop=2, padding=padding)
    changed = draw.change(IMAGES.clone())
    mode = {"zero": "constant", "reflect": "reflect"}[padding]
    for image, found, (row, column) in zip(IMAGES.numpy(), changed.numpy(), draw.corners.T.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode=mode)
        np.testing.assert_array_equal(found, padded[:, row : row + 6, column : column + 8])
    # Both ways and all the way, each for itself.
    assert {*draw.corners[0].tolist()} == {*draw.corners[1].tolist()} == set(range(5))
    assert not torch.equal(draw.corners[0], draw.corners[1])


def test_a_crop_in_the_middle_changes_nothing():
    assert torch.equal(crop(IMAGES, 2, torch.full((2, N), 2), "reflect"), IMAGES)


def test_half_of_the_images_are_mirrored_left_and_right():
    draw = Augmentation(flip=True).draw(1000, SHAPE, *PLACE)
    assert abs(len(draw.flipped) - 500) < 4 * np.sqrt(250)
    draw = drawn(flip=True)
    changed = draw.change(IMAGES.clone())
    for k in range(N):
        expected = IMAGES[k].numpy()[:, :, ::-1] if k in draw.flipped else IMAGES[k].numpy()
        np.testing.assert_array_equal(changed[k].numpy(), expected)


def test_the_order_is_crop_then_flip_then_cutout():
    draw = drawn(crop=2, flip=True, cutout=3)
    one_by_one = drawn(cutout=3).change(drawn(flip=True).change(drawn(crop=2).change(IMAGES.clone())))
    assert torch.equal(draw.change(IMAGES.clone()), one_by_one)
    other_order = drawn(crop=2).change(drawn(flip=True).change(drawn(cutout=3).change(IMAGES.clone())))
    assert not torch.equal(one_by_one, other_order)


def test_turning_one_kind_on_leaves_the_others_as_they_were():
    alone, all_of_them = drawn(flip=True), drawn(crop=1, flip=True, cutout=2, mixup=1.0)
    assert torch.equal(alone.flipped, all_of_them.flipped)


def test_what_is_drawn_depends_on_seed_epoch_and_batch_alone():
    augmentation = Augmentation(crop=2, flip=True, cutout=2, mixup=1.0)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # must not matter
    first = augmentation.draw(N, SHAPE, *PLACE).change(IMAGES.clone())
    state = torch.get_rng_state()
    assert torch.equal(augmentation.draw(N, SHAPE, *PLACE).change(IMAGES.clone()), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in ((8, 2, 5), (7, 3, 5), (7, 2, 6), (2, 7, 5), (5, 2, 7)):
        assert not torch.equal(augmentation.draw(N, SHAPE, *other).change(IMAGES.clone()), first)


def test_some_examples_are_changed_as_they_are_among_all():
    draw = drawn(crop=2, flip=True, cutout=3)
    whole = draw.change(IMAGES.clone())
    positions = torch.tensor([31, 4, 5, 17])
    assert torch.equal(draw.of(positions).change(IMAGES[positions]), whole[positions])


def test_random_resized_crops_have_the_area_the_ratio_and_any_place():
    draw = Augmentation(resized_crop=0.1).draw(2000, SHAPE, *PLACE)
    assert draw.crops.shape == (2000, TRIES, 4)
    boxes = np.array([box_of(tries, 400, 300) for tries in draw.crops])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    area, ratio = width * height / 400 / 300, width / height
    assert 0.1 <= area.min() < 0.11
    assert area.max() > 0.95
    assert RATIO[0] - 1e-9 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= RATIO[1] + 1e-9
    # Square on average in the logarithm (deviation of the mean: 0.17 / sqrt(2000)), as wide and as tall.
    small = area < 0.5
    assert abs(np.log(ratio[small]).mean()) < 4 * 0.17 / np.sqrt(small.sum())
    free = (boxes[:, 0] / (400 - width))[small]
    assert abs(free.mean() - 0.5) < 4 * 0.29 / np.sqrt(small.sum())


def test_a_crop_that_never_fits_is_the_middle():
    never = np.array([[1.0, 1.0, 0.3, 0.3]] * TRIES)  # a square of the area of a strip
    assert box_of(never, 300, 100) == pytest.approx((300 / 2 - 200 / 3, 0, 300 / 2 + 200 / 3, 100))
    assert box_of(never, 100, 300) == pytest.approx((0, 150 - 200 / 3, 100, 150 + 200 / 3))
    # The first that fits is taken.
    never[3] = [0.25, 1.0, 0.0, 1.0]
    side = np.sqrt(0.25 * 300 * 100)
    assert box_of(never, 300, 100) == pytest.approx((0, 100 - side, side, 100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": -1}, "crop must be at least 0 pixels; got -1"),
        ({"cutout": -2}, "cutout must be at least 0 pixels"),
        ({"mixup": -0.1}, "mixup must be a finite number of at least 0"),
        ({"mixup": float("inf")}, "mixup must be a finite number"),
        ({"mixup": float("nan")}, "mixup must be a finite number"),
        ({"resized_crop": 1.5}, r"resized_crop is the least share of the area, in \(0, 1\]"),
        ({"padding": "wrap"}, "padding must be one of zero, reflect; got 'wrap'"),
        ({"crop": 4, "resized_crop": 0.1}, "take one of them"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(LabError, match=message):
        Augmentation(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"flip": True, "cutout": 2}, (2,), r"flip, cutout can be done to images .*; got examples of shape \(2,\)"),
        ({"crop": 8, "padding": "reflect"}, (1, 8, 8), "crop must be below the size of the images, 8"),
        ({"resized_crop": 0.5}, (3, 8, 8), "resized_crop needs images from a folder"),
    ],
)
def test_what_cannot_be_done_to_these_examples_is_refused(settings, shape, message):
    with pytest.raises(LabError, match=message):
        Augmentation(**settings).check(shape, croppable=False)
