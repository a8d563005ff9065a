"""Two classes in the plane: generated, or from a file of one's own."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.errors import DataError
from batchnorm.lab.files import reason_of

TRAIN, TEST = 211, 200
#: Names of training points, their classes, test points, their classes; the first set that a file has counts.
STYLES = (("Xtrain", "ytrain", "Xtest", "ytest"), ("X", "y", "Xval", "yval"))
_OFFER = "give a .npz or .mat file with X, y, Xval, yval or Xtrain, ytrain, Xtest, ytest"

Array = NDArray[np.float64]


class Points(NamedTuple):
    """Points of shape (N, 2) and classes 0 or 1 of shape (N,), to train on and to test on."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


def generate(seed: int) -> Points:
    """Draw two classes on the two sides of a wavy line, mixed near it.

    Parameters
    ----------
    seed : int
        Of the draw.

    Returns
    -------
    Points
        211 and 200 points in a square of side 1.2, as many as in the source.
    """
    draw = np.random.default_rng([seed, 20])
    x = draw.uniform(-0.6, 0.6, (TRAIN + TEST, 2))
    above = x[:, 1] + 0.5 * x[:, 0] - 0.12 * np.sin(6 * x[:, 0])
    y = (draw.random(len(x)) < 1 / (1 + np.exp(-18 * above))).astype(np.float64)
    return Points(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def load(path: Path) -> Points:
    """Read points from a file.

    Parameters
    ----------
    path : Path
        .npz or .mat (up to version 7.2), with either set of names. Points are (N, 2) or (2, N); classes are any two
        numbers, in any shape.

    Returns
    -------
    Points
        The larger of the two numbers is class 1.

    Raises
    ------
    DataError
        A file that is missing, damaged, or holds something else.
    """
    arrays = _arrays(path)
    names = next((names for names in STYLES if set(names) <= set(arrays)), None)
    if names is None:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path} holds {found}; {_OFFER}")
    x, x_test = (_points(path, name, arrays[name]) for name in names[::2])
    y, y_test = (_numbers(path, name, arrays[name]).reshape(-1) for name in names[1::2])
    for points, name, classes in ((x, names[1], y), (x_test, names[3], y_test)):
        if len(points) != len(classes):
            raise DataError(f"{path}: {name} must have one class per point, {len(points)}, but has {len(classes)}")
    values = np.unique(y)
    if len(values) != 2 or not set(np.unique(y_test)) <= set(values):
        raise DataError(
            f"{path}: {names[1]} must hold two classes and {names[3]} no others, but they hold {_few(values)} and "
            f"{_few(np.unique(y_test))}"
        )
    return Points(x, (y == values[1]).astype(np.float64), x_test, (y_test == values[1]).astype(np.float64))


def _arrays(path: Path) -> dict[str, Any]:
    if path.suffix not in (".npz", ".mat"):
        raise DataError(f"{path} is neither .npz nor .mat; {_OFFER}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        from scipy.io import loadmat  # type: ignore[import-untyped]  # comes with scikit-learn
        from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

        try:
            return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        except MatReadError as error:
            raise ValueError(path) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        raise DataError(f"cannot read {path}: it is damaged, or not what its name says; {_OFFER}") from error


def _numbers(path: Path, name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size == 0 or not np.all(np.isfinite(array)):
        raise DataError(f"{path}: {name} must hold finite numbers, but is {array.dtype} of shape {array.shape}")
    return array.astype(np.float64)


def _points(path: Path, name: str, value: Any) -> Array:
    array = _numbers(path, name, value)
    if array.ndim != 2 or 2 not in array.shape:
        raise DataError(f"{path}: {name} must have shape (N, 2) or (2, N), but has shape {array.shape}")
    return array if array.shape[1] == 2 else array.T


def _few(values: Array) -> str:
    shown = " ".join(f"{value:g}" for value in values[:4])
    return f"{shown} ..." if len(values) > 4 else shown
