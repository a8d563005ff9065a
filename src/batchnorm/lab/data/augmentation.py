"""Random changes of images while training: what is drawn, and what it does to a batch.

Everything is drawn for the whole batch from generators that know only (seed, epoch, batch number), one for each kind:
so a run resumes bit for bit, several processes do to their shares what one would do to all, and turning one kind on
leaves the others as they were.

References
----------
He et al. 2016, :arxiv:`1512.03385`, section 4.2 (crop and flip). DeVries and Taylor 2017, :arxiv:`1708.04552` (Cutout).
Zhang et al. 2018, :arxiv:`1710.09412` (Mixup). Szegedy et al. 2015, :arxiv:`1409.4842`, section 6 (random
resized crop).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.lab.errors import LabError

Padding = Literal["zero", "reflect"]
PADDINGS: tuple[Padding, ...] = ("zero", "reflect")
#: One generator for each kind. Numbers, not names, as they seed it; never renumber them.
ORDER, FLIP, CROP, CUTOUT, MIXUP, RESIZED_CROP = range(6)
#: A random resized crop that does not fit into the image is drawn again, so often; then the middle is taken.
TRIES = 10
RATIO = (3 / 4, 4 / 3)


def generator(kind: int, *coordinates: int) -> np.random.Generator:
    """Return the random numbers of one kind at one place of a run, for instance at (seed, epoch, batch number)."""
    return np.random.default_rng([kind, *coordinates])


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a training batch, in this order.

    Parameters
    ----------
    resized_crop : float
        Least share of the area, in (0, 1], of a random rectangle that is cut out and resized; its ratio of width to
        height is between 3/4 and 4/3. Only for images that are read from a folder. 0: not done.
    crop : int
        Pixels by which each side is padded before a random part of the former size is cut out. 0: not done.
    padding : {'zero', 'reflect'}
        What it is padded with: zeros, which are the mean of the training images after normalization, or the image
        mirrored at its edge.
    flip : bool
        Mirror left and right, half of the time.
    cutout : int
        Side of the square that is set to zero, around any pixel. 0: not done.
    mixup : float
        Each image is mixed with another of the batch, and so are their targets, by a share from Beta(mixup, mixup).
        0: not done.

    Raises
    ------
    LabError
        A value that cannot be.
    """

    resized_crop: float = 0.0
    crop: int = 0
    padding: Padding = "zero"
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        """Check every field; nothing behind this border checks again."""
        if not 0 <= self.resized_crop <= 1:
            raise LabError(
                f"resized_crop is the least share of the area, in (0, 1], or 0 for none; got {self.resized_crop}"
            )
        for name in ("crop", "cutout"):
            if getattr(self, name) < 0:
                raise LabError(f"{name} must be at least 0 pixels; got {getattr(self, name)}")
        if self.padding not in PADDINGS:
            raise LabError(f"padding must be one of {', '.join(PADDINGS)}; got {self.padding!r}")
        if not 0 <= self.mixup < math.inf:
            raise LabError(f"mixup must be a finite number of at least 0, the alpha of Beta; got {self.mixup}")
        if self.crop and self.resized_crop:
            raise LabError("crop and resized_crop both choose a part of the image; take one of them")

    def check(self, input_shape: tuple[int, ...], *, croppable: bool) -> None:
        """Check that it can be done to examples of this shape.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one example.
        croppable : bool
            Whether the examples are cut out of larger images.

        Raises
        ------
        LabError
            It cannot.
        """
        if self.resized_crop and not croppable:
            raise LabError("resized_crop needs images from a folder with an image size; for images in memory take crop")
        wanted = [name for name in ("crop", "flip", "cutout") if getattr(self, name)]
        if wanted and len(input_shape) != 3:
            raise LabError(
                f"{', '.join(wanted)} can be done to images of shape (C, H, W); got examples of shape {input_shape}; "
                f"only mixup can be done to these"
            )
        if self.crop and self.padding == "reflect" and self.crop >= min(input_shape[1:]):
            raise LabError(
                f"crop must be below the size of the images, {min(input_shape[1:])}, as they are mirrored into the "
                f"padding; got {self.crop}; take padding zero"
            )

    def draw(self, n: int, input_shape: tuple[int, ...], seed: int, epoch: int, batch: int) -> "Draw":
        """Draw for a whole batch.

        Parameters
        ----------
        n : int
            Examples in it.
        input_shape : tuple of int
            Shape of one of them.
        seed, epoch, batch : int
            Which batch it is.

        Returns
        -------
        Draw
        """

        def random(kind: int) -> np.random.Generator:
            return generator(kind, seed, epoch, batch)

        draw = Draw(self)
        if self.resized_crop:
            draw.crops = random(RESIZED_CROP).random((n, TRIES, 4))
            draw.crops[..., 0] = self.resized_crop + (1 - self.resized_crop) * draw.crops[..., 0]
            draw.crops[..., 1] = np.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * draw.crops[..., 1])
        if self.crop:
            draw.corners = torch.from_numpy(random(CROP).integers(0, 2 * self.crop + 1, (2, n)))
        if self.flip:
            draw.flipped = torch.from_numpy(np.flatnonzero(random(FLIP).random(n) < 0.5))
        if self.cutout:
            source = random(CUTOUT)
            draw.centres = torch.from_numpy(
                np.stack([np.floor(size * source.random(n)) for size in input_shape[1:]]).astype(np.int64)
            )
        if self.mixup:
            source = random(MIXUP)
            draw.share = float(source.beta(self.mixup, self.mixup))
            draw.partners = torch.from_numpy(source.permutation(n))
        return draw


@dataclass
class Draw:
    """What was drawn for one batch of n examples, or for some of them.

    Parameters
    ----------
    augmentation : Augmentation
        What is done.
    crops : ndarray of shape (n, TRIES, 4), optional
        Of a random resized crop: share of the area, ratio, and where the rest lies, both ways.
    corners : Tensor of shape (2, n), int64, optional
        First row and column of a crop of the padded image.
    flipped : Tensor of shape (k,), int64, optional
        Which examples are mirrored.
    centres : Tensor of shape (2, n), int64, optional
        Row and column of the centre of the hole.
    share : float
        How much of itself each example keeps when it is mixed.
    partners : Tensor of shape (n,), int64, optional
        With which example each is mixed.
    """

    augmentation: Augmentation
    crops: NDArray[np.float64] | None = None
    corners: Tensor | None = None
    flipped: Tensor | None = None
    centres: Tensor | None = None
    share: float = 1.0
    partners: Tensor | None = None

    def of(self, positions: Tensor) -> "Draw":
        """Return what was drawn for the examples at these positions, without whom they are mixed with."""

        def some(drawn: Tensor | None) -> Tensor | None:
            return None if drawn is None else drawn[:, positions]

        return Draw(
            self.augmentation,
            crops=None if self.crops is None else self.crops[positions.numpy()],
            corners=some(self.corners),
            flipped=None if self.flipped is None else torch.isin(positions, self.flipped).nonzero().squeeze(1),
            centres=some(self.centres),
            share=self.share,
        )

    def change(self, x: Tensor) -> Tensor:
        """Crop, mirror and cut out.

        Parameters
        ----------
        x : Tensor of shape (n, C, H, W)
            The images that this was drawn for; may be written to.

        Returns
        -------
        Tensor of the same shape
        """
        if self.corners is not None:
            x = crop(x, self.augmentation.crop, self.corners, self.augmentation.padding)
        if self.flipped is not None:
            x[self.flipped] = x[self.flipped].flip(3)
        if self.centres is not None:
            x.masked_fill_(hole(self.centres, self.augmentation.cutout, x.shape[2], x.shape[3]), 0.0)
        return x


def crop(x: Tensor, pad: int, corners: Tensor, padding: Padding) -> Tensor:
    """Pad images and cut the former size out of each.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        The images.
    pad : int
        Pixels on each side.
    corners : Tensor of shape (2, n), int64
        First row and column, from 0 to ``2 * pad``.
    padding : {'zero', 'reflect'}
        What they are padded with.

    Returns
    -------
    Tensor of the same shape
    """
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (pad, pad, pad, pad), mode="constant" if padding == "zero" else "reflect")
    # A view of all windows, (n, C, 2 pad + 1, 2 pad + 1, H, W), of which one per image is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x)), :, corners[0], corners[1]]


def hole(centres: Tensor, size: int, height: int, width: int) -> Tensor:
    """Say which pixels lie in the square around a centre.

    Parameters
    ----------
    centres : Tensor of shape (2, n), int64
        Row and column of the centre.
    size : int
        Side of the square; an even one reaches one pixel further up and left.
    height, width : int
        Size of the images.

    Returns
    -------
    Tensor of shape (n, 1, height, width), bool
    """

    def inside(centre: Tensor, length: int) -> Tensor:
        distance = torch.arange(length) - (centre[:, None] - size // 2)  # (n, length)
        return (distance >= 0) & (distance < size)

    return inside(centres[0], height)[:, None, :, None] & inside(centres[1], width)[:, None, None, :]


def mixed(x: Tensor, partner: Tensor, share: float) -> Tensor:
    """Return ``share`` of one and the rest of the other."""
    return torch.lerp(partner, x, share)


def box_of(tries: NDArray[np.float64], width: int, height: int) -> tuple[float, float, float, float]:
    """Turn what was drawn for a random resized crop into a rectangle of one image.

    Parameters
    ----------
    tries : ndarray of shape (TRIES, 4)
        Of each try: share of the area, ratio of width to height, and how far right and down it lies, from 0 to 1.
    width, height : int
        Size of the image.

    Returns
    -------
    left, top, right, bottom : float
        The first try that fits; else the largest rectangle in the middle whose ratio is allowed.
    """
    for area, ratio, right, down in tries.tolist():
        w, h = math.sqrt(area * width * height * ratio), math.sqrt(area * width * height / ratio)
        if w <= width and h <= height:
            left, top = right * (width - w), down * (height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h
