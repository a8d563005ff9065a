"""Folders of images: how they are listed, what comes out of a file, and what happens to broken ones."""

import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from batchnorm.lab import data
from batchnorm.lab.data import Augmentation, Loader, folder, picture
from batchnorm.lab.errors import DataError

MEAN, STD = (np.array(values)[:, None, None] for values in (folder.MEAN, folder.STD))


def scene(width, height):
    """Smooth colours that tell left from right and top from bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x / 2 - y / 2], 2).round().astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def flat(value, width=10, height=8):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def root(tmp_path):
    """Three training and two test images of two classes; the red channel of an image is its number."""
    for k, name in enumerate(["train/dog/b.png", "train/dog/a.PNG", "train/cat/deep/er/c.png", "test/dog/x.png"]):
        save(tmp_path / name, flat(10 * k))
    save(tmp_path / "test/cat/y.png", flat(40))
    (tmp_path / "train/dog/notes.txt").touch()
    save(tmp_path / "train/dog/.hidden.png", flat(200))
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def numbers(x):
    """The number of each image, from its middle pixel."""
    middle = x[:, :, x.shape[2] // 2, x.shape[3] // 2].double().numpy()
    return ((middle * STD[:, 0, 0] + MEAN[:, 0, 0]) * 255).round().astype(int)[:, 0].tolist()


def everything(part):
    return part.fetch(torch.arange(len(part)))


def test_classes_and_images_are_sorted_and_nothing_else_is_taken(root):
    found = data.load(str(root))
    assert found.class_names == ("cat", "dog")
    assert (found.classes, found.input_shape, found.validation) == (2, (3, 8, 10), None)
    assert found.train.targets.tolist() == [0, 1, 1]
    assert numbers(everything(found.train)) == [20, 10, 0]
    assert numbers(everything(found.test)) == [40, 30]
    assert "images of 10x8, as RGB, each channel minus 0.485 0.456 0.406" in found.preprocessing


def test_listing_opens_no_image(root, monkeypatch):
    monkeypatch.setattr(picture.Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(data.load(str(root), image_size=4).train) == 3


def test_pixels_are_normalized_by_the_numbers_of_imagenet(tmp_path):
    pixels = scene(9, 7)
    save(tmp_path / "train/a/1.png", pixels)
    save(tmp_path / "train/b/1.png", pixels)
    save(tmp_path / "val/b/1.png", pixels)
    x = data.load(str(tmp_path)).test.fetch(torch.tensor([0, 0]))
    assert (x.dtype, x.shape) == (torch.float32, (2, 3, 7, 9))
    # Three roundings of float32 of values up to 3.
    np.testing.assert_allclose(x[1].numpy(), (pixels.transpose(2, 0, 1) / 255 - MEAN) / STD, rtol=0, atol=1.2e-6)
    assert data.load(str(tmp_path)).train.fetch(torch.arange(0)).shape == (0, 3, 7, 9)


def test_a_lone_val_is_to_test_on_and_beside_test_it_is_to_validate(root):
    (root / "test").rename(root / "val")
    found = data.load(str(root))
    assert (found.validation, numbers(everything(found.test))) == (None, [40, 30])
    save(root / "test/cat/z.png", flat(90))
    found = data.load(str(root))
    assert numbers(everything(found.validation)) == [40, 30]
    assert numbers(everything(found.test)) == [90]
    with pytest.raises(DataError, match="has validation examples of its own"):
        data.load(str(root), validation=0.5)


def test_a_folder_without_parts_is_split(tmp_path):
    for k in range(20):
        save(tmp_path / "ab"[k % 2] / f"{k:02}.png", flat(10 * k))
    found = data.load(str(tmp_path), validation=0.2)
    parts = [found.train, found.validation, found.test]
    assert [part.targets.bincount().tolist() for part in parts] == [[6, 6], [2, 2], [2, 2]]
    assert sorted(number for part in parts for number in numbers(everything(part))) == [10 * k for k in range(20)]
    for part in parts:
        assert [(number // 10) % 2 for number in numbers(everything(part))] == part.targets.tolist()
    with pytest.raises(DataError, match="has no test examples of its own: give --validation"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32), (16, 16), (20, 20)])
def test_the_middle_is_cut_out_and_resized(tmp_path, size):
    pixels = scene(*size)
    save(tmp_path / "image.png", pixels)
    found = picture.decode(str(tmp_path / "image.png"), 16).astype(float)
    assert found.shape == (16, 16, 3)
    # Linear colours: a pixel of the result has the colour of the place that it covers.
    width, height = size
    side = (1 if size == (16, 16) else 7 / 8) * min(size)
    at = (np.arange(16) + 0.5) / 16 * side
    x, y = (length / 2 - side / 2 + at - 0.5 for length in size)
    expected_x, expected_y = 255 * x / (width - 1), 255 * y / (height - 1)
    # Rounded twice, and at the border the filter reaches over the box, not over the image.
    inner = slice(1, -1)
    assert np.abs(found[:, inner, 0] - expected_x[inner]).max() < 1.5
    assert np.abs(found[inner, :, 1] - expected_y[inner, None]).max() < 1.5


def test_a_large_jpeg_decoded_small_looks_as_if_decoded_whole(tmp_path):
    path = tmp_path / "image.jpg"
    save(path, scene(1600, 1200), quality=95)
    found = picture.decode(str(path), 32).astype(float)
    with Image.open(path) as image:
        image.load()  # whole; what comes after is the same
        box = (275, 75, 1325, 1125)
        whole = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box=box)).astype(float)
    assert np.abs(found - whole).max() <= 2
    # Turned, it is not the same: so the comparison can fail.
    assert np.abs(found - whole.transpose(1, 0, 2)).max() > 100


def test_random_resized_crops_are_cut_where_they_were_drawn(tmp_path):
    path = tmp_path / "image.png"
    save(path, scene(101, 51))
    tries = np.array([[0.25 * 51 / 101, 1.0, 1.0, 0.0]] * 10)  # a square of half the height, at the right, on top
    found = picture.decode(str(path), 8, tries).astype(float)
    side = 25.5
    x, y = 101 - side + (np.arange(8) + 0.5) / 8 * side - 0.5, (np.arange(8) + 0.5) / 8 * side - 0.5
    assert np.abs(found[:, 1:-1, 0] - 255 / 100 * x[1:-1]).max() < 1.5
    assert np.abs(found[1:-1, :, 1] - 255 / 50 * y[1:-1, None]).max() < 1.5


def test_every_mode_becomes_rgb(tmp_path):
    colours = scene(8, 8)
    grey = colours[..., 0]
    half = np.dstack([colours, np.full((8, 8), 0, np.uint8)])
    half[:4, :, 3] = 255
    over_white = np.where(half[..., 3:] == 255, colours, 255)
    palette = Image.fromarray(colours).quantize(64)
    masked = Image.fromarray(half[..., 0]).convert("P")
    masked.info["transparency"] = 255
    files = {
        "rgb.png": (Image.fromarray(colours), colours),
        "grey.png": (Image.fromarray(grey), grey[..., None].repeat(3, 2)),
        "bilevel.png": (Image.fromarray(grey > 127), np.where(grey > 127, 255, 0)[..., None].repeat(3, 2)),
        "rgba.png": (Image.fromarray(half), over_white),
        "grey alpha.png": (Image.fromarray(half).convert("LA"), None),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "transparent palette.png": (masked, grey[..., None].repeat(3, 2)),
        "16 bit.png": (Image.fromarray(grey.astype(np.uint16) * 257), grey[..., None].repeat(3, 2)),
    }
    for name, (image, expected) in files.items():
        image.save(tmp_path / name)
        found = picture.decode(str(tmp_path / name), None)
        assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8), name
        if expected is not None:
            np.testing.assert_array_equal(found, expected, name)
    assert (picture.decode(str(tmp_path / "grey alpha.png"), None)[4:] == 255).all()
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert picture.decode(str(tmp_path / "cmyk.jpg"), None).shape == (8, 8, 3)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float.tif must be an image .* mode F without a white"):
        picture.decode(str(tmp_path / "float.tif"), None)


@pytest.mark.parametrize("size", [None, 8, 40])
def test_images_are_turned_upright(tmp_path, size):
    upright = Image.fromarray(scene(400, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a quarter clockwise makes it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    upright.save(tmp_path / "upright.jpg", quality=95)
    turned, expected = (picture.decode(str(tmp_path / f"{name}.jpg"), size) for name in ("turned", "upright"))
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(float) - expected).max() < 12  # compressed the other way round
    assert expected[:, -1, 0].mean() > expected[:, 0, 0].mean() + 90


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_broken_image_is_named_and_leaves_no_thread(root, damage):
    file = root / "train/dog/b.png"
    save(file, scene(64, 64))
    file.write_bytes(
        {"cut": file.read_bytes()[: file.stat().st_size // 2], "text": b"not an image", "empty": b""}[damage]
    )
    train = data.load(str(root), image_size=4).train
    with pytest.raises(DataError, match=f"{file} must be an image that Pillow can read; got .*; replace it or take it"):
        everything(train)
    epoch = Loader(train, 3, seed=0, classes=2).epoch(0)
    with pytest.raises(DataError, match=f"{file} must be an image"):
        next(epoch)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("batchnorm")] == []


def test_images_of_several_sizes_need_an_image_size(root):
    save(root / "train/dog/large.png", flat(77, 30, 20))
    train = data.load(str(root)).train
    with pytest.raises(
        DataError, match=r"large.png must be as large as the first image, 10x8; it is 30x20; give --image-size"
    ):
        everything(train)
    assert numbers(everything(data.load(str(root), image_size=6).train)) == [20, 10, 0, 77]


def test_a_loader_draws_crops_that_processes_share(tmp_path):
    for k in range(8):
        save(tmp_path / "train" / "ab"[k % 2] / f"{k}.png", scene(20 + k, 24))
        save(tmp_path / "val" / "ab"[k % 2] / f"{k}.png", scene(20 + k, 24))
    train = data.load(str(tmp_path), image_size=8).train

    def epoch(number, **settings):
        augmentation = Augmentation(resized_crop=0.2, flip=True, mixup=1.0)
        drawn = Loader(train, 4, seed=0, classes=2, augmentation=augmentation, **settings)
        return [batch.x for batch in drawn.epoch(number)]

    alone = epoch(0)
    shares = [epoch(0, rank=rank, world=2) for rank in (0, 1)]
    for batch, *share in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat(share), batch)
    assert torch.equal(alone[1], epoch(0, prefetch=0)[1])
    assert not torch.equal(torch.cat(alone).sort().values, torch.cat(epoch(1)).sort().values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], r"must hold at least two classes, one folder per class, .*; got no folder"),
        (["one/a.png"], "must hold at least two classes, .*; got one"),
        (["train/one/a.png", "train/two/"], r"train/two must hold images \(.jpg .*\); got none"),
        (["train/one/a.png", "train/two/a.png", "val/"], "val must hold images, in one folder per class; got none"),
        (
            ["train/one/a.png", "train/two/a.png", "val/one/a.png", "val/three/a.png"],
            "val must hold no class that training does not know; got three",
        ),
    ],
)
def test_folders_that_cannot_be_are_refused(tmp_path, make, message):
    for name in make:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            save(tmp_path / name, flat(0))
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path), validation=0.0)


def test_an_image_size_below_one_is_refused(root):
    with pytest.raises(DataError, match="the image size must be at least 1 pixel; got 0"):
        data.load(str(root), image_size=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_among_the_images_is_named_and_not_waited_for(root):
    os.mkfifo(root / "train/dog/pipe.png")
    with pytest.raises(DataError, match=r"pipe.png must be an image file; it is a pipe, a device or a broken link"):
        data.load(str(root))


def test_a_link_to_an_image_is_an_image_and_a_broken_one_is_named(root):
    (root / "train/dog/link.png").symlink_to(root / "train/cat/deep/er/c.png")
    assert len(data.load(str(root)).train) == 4
    (root / "train/dog/broken.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"broken.png must be an image file"):
        data.load(str(root))
