"""A folder of images, larger than memory if need be: listed without opening them, decoded when they are fetched.

``root/train/CLASS/*`` and ``root/val/CLASS/*`` or ``root/test/CLASS/*``; or ``root/CLASS/*``, of which a share is held
out. Classes are numbered in the order of their sorted names.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.lab.data import picture
from batchnorm.lab.data.dataset import Dataset
from batchnorm.lab.data.parts import check_share, division, held_out_text
from batchnorm.lab.errors import DataError
from batchnorm.lab.files import reason_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Of red, green and blue over ImageNet, as published with torchvision's weights.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageFolder:
    """Images on the disk, and their classes.

    Parameters
    ----------
    files : list of str
        The images.
    targets : Tensor of shape (N,), int64
        Their classes.
    size : int or None
        Side of the square that each image becomes. None: images are as large as ``shape`` says, and are not resized.
    shape : tuple of int
        Shape of one example, (3, H, W).
    """

    def __init__(self, files: list[str], targets: Tensor, size: int | None, shape: tuple[int, int, int]) -> None:
        assert len(files) == len(targets), (len(files), targets.shape)
        self._files = files
        self._targets = targets
        self._size = size
        self._shape = shape

    @property
    def targets(self) -> Tensor:
        """Class of each image, (N,) int64."""
        return self._targets

    def __len__(self) -> int:
        """Count the images."""
        return len(self._files)

    def fetch(self, indices: Tensor) -> Tensor:
        """Decode these images, cut out the middle, resize and normalize.

        Parameters
        ----------
        indices : Tensor of shape (n,), int64
            Which ones.

        Returns
        -------
        Tensor of shape (n, 3, H, W), float32

        Raises
        ------
        DataError
            An image cannot be read, or has another size than the first one and no image size was given.
        """
        return self._decode([(self._files[index], None) for index in indices.tolist()])

    def fetch_crops(self, indices: Tensor, tries: NDArray[np.float64]) -> Tensor:
        """Decode these images, cut a rectangle out of each, resize and normalize.

        Parameters
        ----------
        indices : Tensor of shape (n,), int64
            Which ones.
        tries : ndarray of shape (n, TRIES, 4)
            What was drawn for each: see ``augmentation.box_of``.

        Returns
        -------
        Tensor of shape (n, 3, H, W), float32

        Raises
        ------
        DataError
            As for :meth:`fetch`.
        """
        return self._decode([(self._files[index], own) for index, own in zip(indices.tolist(), tries, strict=True)])

    def _decode(self, wanted: list[tuple[str, NDArray[np.float64] | None]]) -> Tensor:
        x = np.empty((len(wanted), *self._shape), np.float32)
        mean, std = (255 * np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))

        # In NumPy, as torch would start workers of its own in each of these threads.
        def work(k: int) -> None:
            path, tries = wanted[k]
            pixels = picture.decode(path, self._size, tries).transpose(2, 0, 1)  # (3, H, W)
            if pixels.shape != self._shape:
                raise DataError(
                    f"{path} must be as large as the first image, {self._shape[2]}x{self._shape[1]}; it is "
                    f"{pixels.shape[2]}x{pixels.shape[1]}; give --image-size to have all of them resized"
                )
            np.subtract(pixels, mean, out=x[k])
            x[k] /= std

        # A pool per batch costs a few hundred microseconds of the tens of milliseconds that decoding takes, and leaves
        # no thread behind, whatever happens.
        with ThreadPoolExecutor(_cores(), thread_name_prefix="batchnorm-decode") as pool:
            try:
                for _ in pool.map(work, range(len(wanted))):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the first error is the answer: begin no other image
                raise
        return torch.from_numpy(x)


def load(root: Path, *, validation: float, seed: int, image_size: int | None) -> Dataset:
    """List a folder of images.

    Parameters
    ----------
    root : Path
        The folder.
    validation : float
        Share of the training images to hold out; 0 for none.
    seed : int
        Of the choice.
    image_size : int or None
        Side of the square that images become. None: they must all have one size already.

    Returns
    -------
    Dataset
        On the disk: of each part the names and classes are in memory.

    Raises
    ------
    DataError
        There are no images, or of one class only, or a part has a class that training does not know.
    """
    name = str(root)
    if image_size is not None and image_size < 1:
        raise DataError(f"the image size must be at least 1 pixel; got {image_size}")
    train_root = root / "train" if (root / "train").is_dir() else root
    found = [folder for folder in ("val", "test") if train_root != root and (root / folder).is_dir()]
    class_names = _class_names(train_root)
    if len(class_names) < 2:
        raise DataError(
            f"{train_root} must hold at least two classes, one folder per class, or these folders in train and in val "
            f"or test; got {', '.join(class_names) or 'no folder'}"
        )
    files, targets = _list(train_root, class_names)
    # As in ImageNet, a lone val is what people test on.
    test_root = root / found[-1] if found else None
    validation_root = root / found[0] if len(found) == 2 else None
    check_share(name, validation, has_validation=validation_root is not None, has_test=test_root is not None)
    if image_size is None:
        height, width, _ = picture.decode(files[0], None).shape
    else:
        height = width = image_size
    shape = (3, height, width)

    def part(files: list[str], targets: Tensor) -> ImageFolder:
        return ImageFolder(files, targets, image_size, shape)

    def some(indices: Tensor) -> ImageFolder:
        return part([files[index] for index in indices.tolist()], targets[indices])

    train, held, tested = division(targets, validation, seed, name, test=test_root is None)
    validated = part(*_list(validation_root, class_names)) if validation_root else some(held) if validation else None
    resized = f"resized to {image_size}x{image_size}" if image_size else f"of {width}x{height}"
    said = (
        f"images {resized}, as RGB, each channel minus {_numbers(MEAN)} and divided by {_numbers(STD)} (those of "
        f"ImageNet; 1 is white)"
    )
    return Dataset(
        name,
        some(train),
        validated,
        part(*_list(test_root, class_names)) if test_root else some(tested),
        classes=len(class_names),
        input_shape=shape,
        preprocessing="; ".join(filter(None, [said, held_out_text(validation, held, seed, test_root)])),
        class_names=tuple(class_names),
    )


def _class_names(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} must be a readable folder of images; got {reason_of(error)}") from error


def _list(root: Path, class_names: list[str]) -> tuple[list[str], Tensor]:
    """List the images of each class, sorted, in its folder and below."""
    unknown = sorted(set(_class_names(root)) - set(class_names))
    if unknown:
        raise DataError(f"{root} must hold no class that training does not know; got {', '.join(unknown)}")
    files: list[str] = []
    targets: list[int] = []
    for target, name in enumerate(class_names):
        before = len(files)
        if (root / name).is_dir():
            files += _images(root / name)
        targets += [target] * (len(files) - before)
        if len(files) == before and (root / name).is_dir():
            raise DataError(f"{root / name} must hold images ({' '.join(SUFFIXES)}); got none")
    if not files:
        raise DataError(f"{root} must hold images, in one folder per class; got none")
    return files, torch.tensor(targets)


def _images(folder: Path) -> list[str]:
    """List the images in a folder, then those in the folders below."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} must be a readable folder of images; got {reason_of(error)}") from error
    found, below = [], []
    for entry in entries:
        if entry.is_dir():
            below.append(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            if not entry.is_file():  # reading a pipe would wait for ever
                raise DataError(
                    f"{entry.path} must be an image file; it is a pipe, a device or a broken link; take it out of the "
                    f"folder"
                )
            found.append(entry.path)
    return found + [image for inner in below for image in _images(inner)]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
