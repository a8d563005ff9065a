"""Your own arrays, from a file of NumPy (.npz) or MATLAB (.mat, up to version 7.2).

Sizes are checked before anything is read: a header must agree with its file, and what is read must fit into memory.
"""

import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.lab.data.parts import Part, Parts
from batchnorm.lab.environment import memory
from batchnorm.lab.errors import DataError
from batchnorm.lab.files import reason_of

SUFFIXES = (".npz", ".mat")
#: Names of the arrays: examples and classes to train, to validate and to test on. Of several styles whose training
#: arrays are there, the one with most arrays counts.
STYLES = (
    ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"),
    ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
    ("X_train", "y_train", "X_val", "y_val", "X_test", "y_test"),
    ("Xtrain", "ytrain", "Xval", "yval", "Xtest", "ytest"),
    ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ("x", "y", "x_val", "y_val", "x_test", "y_test"),
    ("X", "y", "X_val", "y_val", "X_test", "y_test"),
    ("X", "y", "Xval", "yval", "Xtest", "ytest"),
)
OFFER = (
    "x_train and y_train, x_val and y_val (optional), x_test and y_test (optional); or x and y; or Xtrain and ytrain"
)
ITEM_SIZE = {"single": 4, "int32": 4, "uint32": 4, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "logical": 1}


class Raw(NamedTuple):
    """Examples as the file has them, first axis first, and classes from 0, (N,) int64; and the names of the two."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    x_name: str
    y_name: str


@dataclass(frozen=True)
class Arrays:
    """The content of a file.

    Attributes
    ----------
    train : Raw
        To train on.
    validation, test : Raw or None
        To choose by, and to test on. A lone validation set is tested on, as in a folder of images.
    labels : tuple of int
        The number that the file has for each class.
    """

    train: Raw
    validation: Raw | None
    test: Raw | None
    labels: tuple[int, ...]


def load(path: Path) -> Parts:
    """Read examples and classes to train on.

    Parameters
    ----------
    path : Path
        A .npz or .mat file; see `read`. Examples are numbers of shape (N, D), or images: (N, H, W), (N, C, H, W) or
        (N, H, W, C), the latter with 1 or 3 channels.

    Returns
    -------
    Parts
        Bytes stay bytes, other numbers become float32.

    Raises
    ------
    DataError
        A file that is missing, damaged, or holds something else.
    """
    found = read(path)
    train = _part(path, found.train)
    parts = {}
    for use, raw in (("validation", found.validation), ("test", found.test)):
        parts[use] = part = _part(path, raw) if raw else None
        if raw and part and (part.x.shape[1:] != train.x.shape[1:] or part.x.dtype != train.x.dtype):
            raise DataError(
                f"{path}: {raw.x_name} must hold examples like {found.train.x_name}, {_like(train.x)}; got "
                f"{_like(part.x)}"
            )
    plain = found.labels == tuple(range(len(found.labels)))
    return Parts(
        train,
        parts["test"],
        classes=len(found.labels),
        validation=parts["validation"],
        class_names=() if plain else tuple(map(str, found.labels)),
    )


def read(path: Path, free: int | None = None) -> Arrays:
    """Read arrays under one of the sets of names in `STYLES`.

    Parameters
    ----------
    path : Path
        A .npz or .mat file. Examples come first or, as MATLAB keeps them, last: the axis that is as long as there are
        classes. Classes are whole numbers of any type, (N,), (N, 1) or (1, N): numbered from 0 or from 1 without a gap,
        or any two. Nothing is unpickled, and other arrays are not read.
    free : int, optional
        Bytes that may be used. None: the memory that is available.

    Returns
    -------
    Arrays

    Raises
    ------
    DataError
        A file that is missing, damaged, too large, or holds something else.
    """
    arrays, style = _read(path, memory().available if free is None else free)
    train, validation, test = (_raw(path, arrays, *style[k : k + 2]) for k in (0, 2, 4))
    assert train is not None
    labels = np.unique(train.y)
    consecutive = labels[0] in (0, 1) and labels[-1] - labels[0] == len(labels) - 1
    if len(labels) < 2 or not (consecutive or len(labels) == 2):
        raise DataError(
            f"{path}: {style[1]} must hold at least two classes, numbered from 0 or 1 without a gap, or any two "
            f"numbers; got {_few(labels)}; number them with np.unique({style[1]}, return_inverse=True)"
        )
    for part in filter(None, (validation, test)):
        if len(unknown := np.setdiff1d(part.y, labels)):
            raise DataError(
                f"{path}: {part.y_name} must hold the classes of {style[1]}, {_few(labels)}, and no others; got "
                f"{_few(unknown)}"
            )

    def numbered(raw: Raw) -> Raw:
        return raw._replace(y=np.searchsorted(labels, raw.y).astype(np.int64))

    if test is None:
        validation, test = None, validation
    return Arrays(
        numbered(train),
        numbered(validation) if validation else None,
        numbered(test) if test else None,
        tuple(labels.tolist()),
    )


def _read(path: Path, free: int | None) -> tuple[dict[str, NDArray[Any]], Sequence[str]]:
    """Return the arrays that are wanted, and the names of their style."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} must end in {' or '.join(SUFFIXES)}; give a file with {OFFER}")
    reader = _npz if path.suffix == ".npz" else _mat
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DataError(f"{path} must be a file; it is a pipe, a device or a folder")
        with path.open("rb") as file:
            return reader(path, file, free)
    except DataError:
        raise
    except Exception as error:  # a damaged file raises nearly anything, also an OSError that is none of the system's
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {reason_of(error)}") from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} must be a {path.suffix} file; it is damaged or something else ({said})") from error


def _npz(path: Path, file: BinaryIO, free: int | None) -> tuple[dict[str, NDArray[Any]], Sequence[str]]:
    if file.read(6) == np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{path} must be a .npz file with {OFFER}; got one array; write it with np.savez")
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        style = _style(path, members.keys())
        wanted = {name: members[name] for name in style if name in members}
        sizes = {name: _checked_size(path, name, archive, info) for name, info in wanted.items()}
        _check_memory(path, sum(sizes.values()), free)
        arrays = {}
        for name, info in wanted.items():
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        return arrays, style


def _checked_size(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return how many bytes an array takes here, after a comparison of its header with the size of its member."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
        stored = info.file_size - member.tell()
    if dtype.hasobject:
        raise DataError(
            f"{path}: {name} must hold numbers; got Python objects, which are not read, as reading them can run any "
            f"program; save it as an array of one number type"
        )
    size = math.prod(shape) * dtype.itemsize
    if size != stored or min(shape, default=0) < 0:
        raise DataError(
            f"{path} is damaged: the header of {name} says shape {shape} of {dtype}, {size:,} bytes, and {stored:,} "
            f"follow; write the file again"
        )
    return _size_here(math.prod(shape), dtype.itemsize)


def _mat(path: Path, file: BinaryIO, free: int | None) -> tuple[dict[str, NDArray[Any]], Sequence[str]]:
    from scipy.io import loadmat, whosmat  # type: ignore[import-untyped]  # comes with scikit-learn; ships no types

    try:
        found = {name: (shape, kind) for name, shape, kind in whosmat(file)}
    except NotImplementedError as error:
        raise DataError(f"{path} is of MATLAB version 7.3; save it with -v7") from error
    style = _style(path, found.keys())
    names = [name for name in style if name in found]
    sizes = [_size_here(math.prod(shape), ITEM_SIZE.get(kind, 8)) for shape, kind in map(found.__getitem__, names)]
    _check_memory(path, sum(sizes), free)
    file.seek(0)
    loaded = loadmat(file, variable_names=names)
    return {name: np.asarray(loaded[name]) for name in names}, style


def _style(path: Path, names: Iterable[str]) -> Sequence[str]:
    there = set(names)
    fitting = [style for style in STYLES if {*style[:2]} <= there]
    if not fitting:
        raise DataError(f"{path} must hold {OFFER}; got {', '.join(sorted(there)) or 'nothing'}")
    return max(fitting, key=lambda style: len({*style} & there))


def _size_here(count: int, item: int) -> int:
    """Return the bytes of an array, and of its copy in float32 where there is one."""
    return count * (item if item == 1 else item + 4)


def _check_memory(path: Path, size: int, free: int | None) -> None:
    if free is not None and size > free:
        raise DataError(
            f"{path} needs {size / 1e9:,.2f} GB of memory, and {free / 1e9:,.2f} GB are available; store fewer "
            f"examples, or pixels as uint8, or give a folder of images, which is read batch by batch"
        )


def _raw(path: Path, arrays: dict[str, NDArray[Any]], x_name: str, y_name: str) -> Raw | None:
    if x_name not in arrays and y_name not in arrays:
        return None
    for name, other in ((x_name, y_name), (y_name, x_name)):
        if name not in arrays:
            raise DataError(f"{path} must hold {name} as well as {other}; got {', '.join(sorted(arrays))}")
    x = arrays[x_name]
    if x.dtype.kind not in "biuf" or x.size == 0 or x.ndim not in (2, 3, 4):
        raise DataError(
            f"{path}: {x_name} must hold numbers of shape (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C); got "
            f"{x.dtype} of shape {x.shape}"
        )
    y = _classes(path, y_name, arrays[y_name])
    if len(x) != len(y) and x.shape[-1] == len(y):
        x = np.moveaxis(x, -1, 0)
    if len(x) != len(y):
        raise DataError(f"{path}: {y_name} must have one class per example of {x_name}, {len(x)}; got {len(y)}")
    return Raw(x, y, x_name, y_name)


def _classes(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        hint = f"; from one-hot rows take {name}.argmax(1)" if array.ndim == 2 else ""
        raise DataError(f"{path}: {name} must have shape (N,), (N, 1) or (1, N); got {array.shape}{hint}")
    if array.size == 0 or array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} must hold integers; got {array.dtype} of shape {array.shape}")
    # Whole numbers below 2**53 are the same in every type.
    if array.dtype.kind in "uf" and not (np.all(array == np.rint(array)) and np.abs(array).max() < 2**53):
        raise DataError(f"{path}: {name} must hold integers; got {array.dtype}; save it as {name}.astype(np.int64)")
    return array.astype(np.int64)


def _part(path: Path, raw: Raw) -> Part:
    array = raw.x
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype != np.uint8:
        # A float64 beyond float32 becomes infinite, and is refused for what it then is.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {raw.x_name} must hold finite numbers; got NaN or infinity")
    return Part(torch.from_numpy(np.ascontiguousarray(array)), torch.from_numpy(raw.y))


def _few(values: NDArray[np.int64]) -> str:
    return f"{' '.join(map(str, values[:8].tolist()))}{' ...' if len(values) > 8 else ''}"


def _like(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])}"
