"""CIFAR-10 and CIFAR-100, from the published archive or as torchvision extracts it.

The archive is never unpacked onto the disk: its members are read by their names. Their pickles are data, but a pickle
is a program; theirs needs three names of NumPy, and the unpickler here knows no others.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm.lab.data import verified
from batchnorm.lab.data.parts import Part, Parts
from batchnorm.lab.errors import DataError


@dataclass(frozen=True)
class Archive:
    """A published archive and what is in it.

    Parameters
    ----------
    title : str
        What people call the set.
    folder : str
        Folder of its members, in the archive and under the data root.
    url : str
        Where the archive is published; its file name is the one under the data root.
    checksums : tuple of str
        Of the archive, SHA-256 first; MD5 as its authors publish it.
    train, test : dict of str to str
        Members and their checksums.
    meta : tuple of (str, str)
        The member with the names of the classes, and its checksum.
    labels, names : str
        Keys of the classes, and of their names.
    classes : int
        Number of classes.
    """

    title: str
    folder: str
    url: str
    checksums: tuple[str, ...]
    train: dict[str, str]
    test: dict[str, str]
    meta: tuple[str, str]
    labels: str
    names: str
    classes: int

    @property
    def members(self) -> dict[str, str]:
        """All members that are read, and their checksums."""
        return {**self.train, **self.test, self.meta[0]: self.meta[1]}


CIFAR10 = Archive(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    checksums=(
        "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "md5:c58f30108f718f92721af3b95e74349a",
    ),
    train={
        "data_batch_1": "sha256:54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "sha256:766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "sha256:0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "sha256:3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "sha256:d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    },
    test={"test_batch": "sha256:f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"},
    meta=("batches.meta", "sha256:f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
    labels="labels",
    names="label_names",
    classes=10,
)
# Of its members only MD5 is published.
CIFAR100 = Archive(
    title="CIFAR-100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    checksums=(
        "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
    ),
    train={"train": "md5:16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta=("meta", "md5:7973b15100ade9c7d40fb424638fde48"),
    labels="fine_labels",
    names="fine_label_names",
    classes=100,
)


def cifar10(root: Path) -> Parts:
    """Return 50000 and 10000 colour photographs of 32x32 pixels in 10 classes."""
    return _load(CIFAR10, root)


def cifar100(root: Path) -> Parts:
    """Return 50000 and 10000 colour photographs of 32x32 pixels in 100 classes."""
    return _load(CIFAR100, root)


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    """Read a dictionary of bytes, numbers, lists and arrays of bytes; nothing else can come out, and nothing is run.

    Parameters
    ----------
    content : bytes
        The pickle, as Python 2 wrote it.
    where : str
        Where it came from, for the message.

    Returns
    -------
    dict of str
        With bytes, numbers, lists and ndarrays of uint8 as values.

    Raises
    ------
    DataError
        It is damaged, or asks for anything else.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle raises nearly anything, also MemoryError and UnicodeDecodeError.
    except Exception as error:
        raise DataError(
            f"{where} must hold a dictionary of lists and arrays of bytes; got {type(error).__name__}: {error}; "
            f"{verified.REPAIR}"
        ) from error
    if not isinstance(value, dict) or not all(isinstance(key, bytes) for key in value):
        raise DataError(f"{where} must hold a dictionary; got {type(value).__name__}; {verified.REPAIR}")
    return {key.decode("ascii", "replace"): item for key, item in value.items()}


class _Name:
    """Stands in a pickle for one name of NumPy: may be called if it can do something, and cannot be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError("an array must be rebuilt by NumPy's _reconstruct")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        # Without this a pickle could set attributes of what it found.
        raise pickle.UnpicklingError("a name has no state")


_NDARRAY = _Name()


def _reconstruct(kind: object, *_: object) -> NDArray[np.int8]:
    """Return an array that the pickle then fills."""
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("only arrays can be rebuilt")
    return np.empty(0, np.int8)


def _dtype(name: object, *_: object) -> np.dtype[Any]:
    if name not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array must hold bytes (u1), not {name!r}")
    return np.dtype("u1")


class _Unpickler(pickle.Unpickler):
    """Knows the three names that these files need, and gives for each the little that they need of it."""

    KNOWN: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): _Name(_reconstruct),
        ("numpy._core.multiarray", "_reconstruct"): _Name(_reconstruct),
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Name(_dtype),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for; called for every name in the pickle."""
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not allowed in a data file") from None


def _load(archive: Archive, root: Path) -> Parts:
    content, where = _members(archive, root)
    tables = {name: unpickle(content.pop(name), where[name]) for name in archive.members}
    names = tables[archive.meta[0]].get(archive.names)
    if not isinstance(names, list) or len(names) != archive.classes:
        raise DataError(f"{where[archive.meta[0]]} must name {archive.classes} classes; {verified.REPAIR}")

    def part(members: dict[str, str]) -> Part:
        pairs = [_images(tables.pop(name), archive, where[name]) for name in members]
        images, classes = zip(*pairs, strict=True)
        return Part(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(classes)))

    return Parts(
        part(archive.train),
        part(archive.test),
        classes=archive.classes,
        class_names=tuple(name.decode() for name in names),
    )


def _images(table: dict[str, Any], archive: Archive, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data, labels = table.get("data", np.empty(0)), table.get(archive.labels)
    shaped = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (3072,)
    if not shaped or not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(
            f"{where} must hold data of shape (N, 3072) and as many {archive.labels}; got {', '.join(sorted(table))}; "
            f"{verified.REPAIR}"
        )
    if not all(isinstance(label, int) and 0 <= label < archive.classes for label in labels):
        raise DataError(f"{where} must hold {archive.labels} from 0 to {archive.classes - 1}; {verified.REPAIR}")
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


def _members(archive: Archive, root: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Verified content of each member, and where it was found: extracted, else in the archive, else downloaded."""
    folder = root / archive.folder
    if all((folder / name).exists() for name in archive.members):
        paths = {name: folder / name for name in archive.members}
        return (
            {name: verified.read(path, [archive.members[name]]) for name, path in paths.items()},
            {name: str(path) for name, path in paths.items()},
        )
    file = root / archive.url.rpartition("/")[2]
    if not file.exists():
        verified.download(
            file,
            archive.url,
            archive.checksums[0],
            what=archive.title,
            instead=f"put it, or the extracted folder {archive.folder} with all its files, into {root}, or give the "
            f"folder that holds them with --data-dir",
        )
    whole = verified.read(file, archive.checksums)
    content = {}
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as archived:
        # In one pass, as going back in a compressed file means to begin again.
        for member in archived:
            name = member.name.removeprefix(f"{archive.folder}/")
            if member.isfile() and name in archive.members and name not in content:
                opened = archived.extractfile(member)
                assert opened is not None
                content[name] = opened.read()
                verified.verify(content[name], [archive.members[name]], f"{member.name} in {file}", verified.REPAIR)
    assert set(content) == set(archive.members), "the checksum of the archive matched, so its members are known"
    return content, {name: f"{archive.folder}/{name} in {file}" for name in archive.members}
