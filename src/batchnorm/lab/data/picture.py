"""One image file to pixels: any format that Pillow reads, turned upright, as red, green and blue."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from batchnorm.lab.data.augmentation import box_of
from batchnorm.lab.errors import DataError

#: How much of the shorter side of an image the square in its middle keeps: 224 of 256, as usual on ImageNet.
MIDDLE = 7 / 8


def decode(path: str, size: int | None, tries: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """Read an image.

    Parameters
    ----------
    path : str
        The file.
    size : int or None
        Side of the square that it becomes. None: it stays as large as it is.
    tries : ndarray of shape (TRIES, 4), optional
        What was drawn for a random resized crop. None: a square in the middle, 7/8 of the shorter side; all of an
        image that is a square of that size already.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8

    Raises
    ------
    DataError
        It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_square(image, size, tries))
    except (OSError, SyntaxError, ValueError, ArithmeticError, EOFError, Image.DecompressionBombError) as error:
        # Pillow reports damage in all these ways.
        raise DataError(
            f"{path} must be an image that Pillow can read; got {type(error).__name__}: {error}; replace it or take it "
            f"out of the folder"
        ) from error


def _square(image: Image.Image, size: int | None, tries: NDArray[np.float64] | None) -> Image.Image:
    if size is None:
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    least = _shorter(_box(image.size, size, tries))
    if least > 2 * size:
        # A JPEG can be decoded at a half, quarter or eighth of its size at a fraction of the cost; what is left has at
        # least twice the pixels that are wanted, and is averaged down.
        scale = 2 * size / least
        image.draft("RGB", (math.ceil(scale * image.width), math.ceil(scale * image.height)))
    # An upright image is as wide as it looks, so the box is found again after turning.
    ImageOps.exif_transpose(image, in_place=True)
    box = _box(image.size, size, tries)
    upright = _rgb(image)
    if upright.size == (size, size) == (round(box[2] - box[0]), round(box[3] - box[1])):
        return upright
    return upright.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _box(shape: tuple[int, int], size: int, tries: NDArray[np.float64] | None) -> tuple[float, float, float, float]:
    width, height = shape
    if tries is not None:
        return box_of(tries, width, height)
    if shape == (size, size):
        return 0, 0, width, height
    side = MIDDLE * min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _shorter(box: tuple[float, float, float, float]) -> float:
    return min(box[2] - box[0], box[3] - box[1])


def _rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB: grey is repeated, what is transparent becomes white, as on a page."""
    if image.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255.
        grey: Any = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of mode {image.mode} without a white; save it as 8 or 16 bit")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")
