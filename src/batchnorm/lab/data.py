"""The data sets of the lab, wholly in memory, and the order in which their examples are drawn.

Files lie in the folder layout of torchvision (``<root>/MNIST/raw/*.gz``), so that one copy serves both. Nothing is
parsed before its SHA-256 matches, and a file that does not match is never overwritten: it is somebody's file.
"""

import gzip
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.lab.errors import DataError

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# SHA-256 of each file as published (.gz), and of what it holds.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
REPAIR = "delete the file to have it downloaded again, or copy it again from where it came"


@dataclass(frozen=True)
class Dataset:
    """Images and their classes, ready to train on.

    Parameters
    ----------
    name : str
        As in ``--data``.
    train_x : Tensor of shape (N, 1, H, W), float32
        Images to train on.
    train_y : Tensor of shape (N,), int64
        Their classes, from 0.
    test_x, test_y : Tensor
        The same to test on.
    classes : int
        Number of classes.
    preprocessing : str
        What was done to the images, for the report.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    preprocessing: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (1, H, W)."""
        return tuple(self.train_x.shape[1:])


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name : {'digits', 'mnist'}
        ``digits`` comes with scikit-learn; ``mnist`` is read from files, which are downloaded if they are not there.
    data_dir : Path, optional
        Folder that holds ``MNIST/raw``. None: the environment variable ``BATCHNORM_DATA``, else the user's cache.

    Returns
    -------
    Dataset
        All of it, in memory.

    Raises
    ------
    DataError
        A file is damaged, or is missing and cannot be downloaded.
    """
    return _digits() if name == "digits" else _mnist(data_root(data_dir))


def data_root(data_dir: Path | None = None) -> Path:
    """Folder in which data files are looked for, and into which they are downloaded.

    Parameters
    ----------
    data_dir : Path, optional
        Taken when given; else ``BATCHNORM_DATA`` from the environment, else the user's cache.

    Returns
    -------
    Path
        The folder; it need not exist.
    """
    if data_dir is not None:
        return data_dir
    if from_environment := os.environ.get("BATCHNORM_DATA"):
        return Path(from_environment)
    # Only when it comes to files, as digits need none.
    import pooch  # type: ignore[import-untyped]  # ships no types

    return Path(pooch.os_cache("batchnorm"))


def batches(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Draw mini-batches for ever, reshuffled in each epoch; examples that do not fill a batch wait for another epoch.

    The order depends on these three arguments alone, and on no other random number of the process, so that every arm
    and every learning rate sees the same batches.

    Parameters
    ----------
    n : int
        Number of training examples.
    batch_size : int
        Examples in a batch.
    seed : int
        Seed of the order.

    Yields
    ------
    Tensor of shape (batch_size,), int64
        Indices of examples.
    """
    assert n >= batch_size, (n, batch_size)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator)[: n - n % batch_size]
        yield from order.view(-1, batch_size)


def parse_idx(content: bytes, path: Path) -> NDArray[np.uint8]:
    """Parse the IDX format, in which MNIST is published, with unsigned bytes as elements.

    Two zero bytes, the type (8: unsigned byte), the number of dimensions; each dimension as a big-endian 32-bit
    integer; the elements, last dimension fastest.

    Parameters
    ----------
    content : bytes
        Whole content of the file, decompressed.
    path : Path
        Where it came from, for the message.

    Returns
    -------
    ndarray of uint8
        A copy, in the shape that the file states.

    Raises
    ------
    DataError
        The content is not IDX, or not as long as its dimensions say.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{path} must start with the bytes 00 00 08 of an IDX file of unsigned bytes; "
            f"got {content[:4].hex(' ') or 'an empty file'}; {REPAIR}"
        )
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{path} must hold a header of {start} bytes; got {len(content)} bytes in all; {REPAIR}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DataError(
            f"{path} must hold {expected} bytes, as its dimensions are {' x '.join(map(str, shape))}; "
            f"got {len(content)}; {REPAIR}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _digits() -> Dataset:
    # Imported here, because scikit-learn takes a second to import and mnist does not need it.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships no types
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)  # pixels are 0 to 16
    # The split belongs to the data set: it is the same for every seed of the comparison.
    train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=bunch.target, random_state=0)
    x = torch.from_numpy(images).unsqueeze(1)  # (N, 1, 8, 8)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset(
        "digits",
        x[train],
        y[train],
        x[test],
        y[test],
        classes=10,
        preprocessing="pixels scaled to [0, 1]; 1437 images to train and 360 to test, split at random by class",
    )


def _mnist(root: Path) -> Dataset:
    train_x, train_y, test_x, test_y = (
        parse_idx(_verified(root, name), root / "MNIST/raw" / name) for name in MNIST_FILES
    )

    def binary(images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy((images > 127).astype(np.float32)).unsqueeze(1)  # (N, 1, 28, 28)

    return Dataset(
        "mnist",
        binary(train_x),
        torch.from_numpy(train_y.astype(np.int64)),
        binary(test_x),
        torch.from_numpy(test_y.astype(np.int64)),
        classes=10,
        preprocessing="pixels scaled to [0, 1], then binary: 1 above 0.5, else 0",
    )


def _verified(root: Path, name: str) -> bytes:
    """Content of one file of MNIST: from its ``.gz``, else as torchvision extracts it, else downloaded."""
    published, plain = MNIST_FILES[name]
    extracted = root / "MNIST/raw" / name
    compressed = extracted.with_name(f"{name}.gz")
    if not compressed.exists() and extracted.exists():
        return _read(extracted, plain)
    if not compressed.exists():
        _download(compressed, published)
    return gzip.decompress(_read(compressed, published))


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} must be readable; got {error.strerror}; give another folder with --data-dir"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is damaged or is another file: its SHA-256 must be {sha256}; "
            f"got {found} over {len(content)} bytes; {REPAIR}"
        )
    return content


def _download(path: Path, sha256: str) -> None:
    import pooch  # only when a file is missing

    try:
        pooch.retrieve(MNIST_URL + path.name, known_hash=f"sha256:{sha256}", fname=path.name, path=path.parent)
    # Whatever fails in requests, in the file system or in the checksum: the user needs the same one message.
    except Exception as error:
        raise DataError(
            f"{path} must hold {path.name} of MNIST; it is not there, and downloading {MNIST_URL}{path.name} failed: "
            f"{type(error).__name__}: {error}; put the four .gz files of MNIST into {path.parent}, "
            f"or give the folder that holds MNIST/raw with --data-dir"
        ) from error
