"""MNIST and Fashion-MNIST, in the format IDX, as published or as torchvision extracts them."""

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm.lab.data import verified
from batchnorm.lab.data.parts import Part, Parts
from batchnorm.lab.data.verified import REPAIR
from batchnorm.lab.errors import DataError


@dataclass(frozen=True)
class Archive:
    """Four files that are published together.

    Parameters
    ----------
    title : str
        What people call the set.
    folder : str
        Where torchvision puts its files, under the data root.
    url : str
        Where they are published.
    files : dict of str to (str, str)
        SHA-256 of each file as published (.gz), and of what it holds: images and classes to train on, then to test on.
    """

    title: str
    folder: str
    url: str
    files: dict[str, tuple[str, str]]


MNIST = Archive(
    "MNIST",
    "MNIST/raw",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
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
    },
)
FASHION_MNIST = Archive(
    "Fashion-MNIST",
    "FashionMNIST/raw",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    {
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)
DIGIT_NAMES = tuple("0123456789")
CLOTHES = (
    *("T-shirt or top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def mnist(root: Path) -> Parts:
    """Return 60000 and 10000 grey digits of 28x28 pixels."""
    return Parts(*_parts(MNIST, root), classes=10, class_names=DIGIT_NAMES)


def mnist_binary(root: Path) -> Parts:
    """Return MNIST in black and white, as the paper trains on it."""
    train, test = (Part((part.x > 127).to(torch.uint8), part.y) for part in _parts(MNIST, root))
    said = "pixels scaled to [0, 1], then binary: 1 above 0.5, else 0"
    return Parts(train, test, classes=10, class_names=DIGIT_NAMES, divisor=1, said=said)


def fashion_mnist(root: Path) -> Parts:
    """Return 60000 and 10000 grey pictures of clothes, 28x28 pixels."""
    return Parts(*_parts(FASHION_MNIST, root), classes=10, class_names=CLOTHES)


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


def _parts(archive: Archive, root: Path) -> tuple[Part, Part]:
    """Images (N, 1, 28, 28) and classes, to train and to test on."""
    arrays = [
        torch.from_numpy(parse_idx(_content(archive, root, name), root / archive.folder / name))
        for name in archive.files
    ]
    train_x, train_y, test_x, test_y = arrays
    return Part(train_x.unsqueeze(1), train_y.long()), Part(test_x.unsqueeze(1), test_y.long())


def _content(archive: Archive, root: Path, name: str) -> bytes:
    """Content of one file: from its ``.gz``, else as torchvision extracts it, else downloaded."""
    published, plain = (f"sha256:{checksum}" for checksum in archive.files[name])
    extracted = root / archive.folder / name
    compressed = extracted.with_name(f"{name}.gz")
    if not compressed.exists():
        if extracted.exists():
            return verified.read(extracted, [plain])
        verified.download(
            compressed,
            archive.url + compressed.name,
            published,
            what=archive.title,
            instead=f"put the four .gz files of {archive.title} into {compressed.parent}, or give the folder that "
            f"holds {archive.folder} with --data-dir",
        )
    return gzip.decompress(verified.read(compressed, [published]))
