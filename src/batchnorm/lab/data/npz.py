"""One's own arrays, from a file that ``numpy.savez`` wrote."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.lab.data.parts import Part, Parts
from batchnorm.lab.errors import DataError
from batchnorm.lab.files import reason_of

#: How people call the arrays: examples and classes to train, to validate and to test on. The first style found counts.
STYLES = (
    ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"),
    ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
    ("X_train", "y_train", "X_val", "y_val", "X_test", "y_test"),
    ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ("x", "y", "x_val", "y_val", "x_test", "y_test"),
    ("X", "y", "X_val", "y_val", "X_test", "y_test"),
)
OFFER = "x_train and y_train, x_val and y_val (optional), x_test and y_test (optional); or x and y"


def load(path: Path) -> Parts:
    """Read examples and classes.

    Parameters
    ----------
    path : Path
        A .npz file. Examples are numbers of shape (N, D), or images: (N, H, W), (N, C, H, W) or (N, H, W, C), the
        latter with 1 or 3 channels. Classes are integers from 0, of shape (N,) or (N, 1). Nothing is unpickled.

    Returns
    -------
    Parts
        Bytes stay bytes, other numbers become float32.

    Raises
    ------
    DataError
        A file that is missing, damaged, or holds something else.
    """
    arrays = _arrays(path)
    style = next((style for style in STYLES if {*style[:2]} <= arrays.keys()), None)
    if style is None:
        raise DataError(f"{path} must hold {OFFER}; got {', '.join(sorted(arrays)) or 'nothing'}")
    train, validation, test = (_part(path, arrays, *style[k : k + 2]) for k in (0, 2, 4))
    assert train is not None
    classes = int(train.y.max()) + 1
    missing = sorted({*range(classes)} - {*train.y.tolist()})
    if classes < 2 or missing:
        raise DataError(
            f"{path}: {style[1]} must hold at least two classes, numbered from 0 without a gap; got "
            f"{_few(sorted({*train.y.tolist()}))}; number them with np.unique({style[1]}, return_inverse=True)"
        )
    for part, keys in ((validation, style[2:4]), (test, style[4:6])):
        if part is None:
            continue
        if int(part.y.max()) >= classes:
            raise DataError(
                f"{path}: {keys[1]} must hold classes from 0 to {classes - 1}, as {style[1]} does; got "
                f"{int(part.y.max())}"
            )
        if part.x.shape[1:] != train.x.shape[1:] or part.x.dtype != train.x.dtype:
            raise DataError(
                f"{path}: {keys[0]} must hold examples like {style[0]}, {_like(train.x)}; got {_like(part.x)}"
            )
    return Parts(train, test, classes=classes, validation=validation)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Opened here, as NumPy leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} must be a .npz file with {OFFER}; got one array; write it with np.savez")
            return {name: _array(path, name, file) for name in file.files}
    except OSError as error:
        raise DataError(f"{path} must be readable; got {reason_of(error)}") from error
    except (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} must be a .npz file; it is damaged or something else ({error})") from error


def _array(path: Path, name: str, file: np.lib.npyio.NpzFile) -> NDArray[Any]:
    try:
        array: NDArray[Any] = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: {name} must hold numbers; got Python objects, which are not read, as reading them can run any "
            f"program; save it as an array of one number type"
        ) from error
    return array


def _part(path: Path, arrays: dict[str, NDArray[Any]], x_key: str, y_key: str) -> Part | None:
    if x_key not in arrays and y_key not in arrays:
        return None
    for key, other in ((x_key, y_key), (y_key, x_key)):
        if key not in arrays:
            raise DataError(f"{path} must hold {key} as well as {other}; got {', '.join(sorted(arrays))}")
    x, y = _examples(path, x_key, arrays[x_key]), _classes(path, y_key, arrays[y_key])
    if len(x) != len(y):
        raise DataError(f"{path}: {y_key} must have one class per example of {x_key}, {len(x)}; got {len(y)}")
    return Part(x, y)


def _examples(path: Path, key: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "biuf" or array.size == 0 or array.ndim not in (2, 3, 4):
        raise DataError(
            f"{path}: {key} must hold numbers of shape (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C); got "
            f"{array.dtype} of shape {array.shape}"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype != np.uint8:
        # A float64 beyond float32 becomes infinite, and is refused for what it then is.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {key} must hold finite numbers; got NaN or infinity")
    return torch.from_numpy(np.ascontiguousarray(array))


def _classes(path: Path, key: str, array: NDArray[Any]) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = f"; from one-hot rows take {key}.argmax(1)" if array.ndim == 2 else ""
        raise DataError(f"{path}: {key} must have shape (N,) or (N, 1); got {array.shape}{hint}")
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: {key} must hold integers; got {array.dtype}; save it as {key}.astype(np.int64)")
    if array.size == 0 or array.min() < 0:
        raise DataError(
            f"{path}: {key} must hold classes from 0; got {array.min() if array.size else 'none'}; number them with "
            f"np.unique({key}, return_inverse=True)"
        )
    return torch.from_numpy(array.astype(np.int64))


def _few(values: list[int]) -> str:
    return f"{' '.join(map(str, values[:8]))}{' ...' if len(values) > 8 else ''}"


def _like(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])}"
