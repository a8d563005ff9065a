"""Two classes in the plane: generated, or from a file of one's own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchnorm.lab.data import arrays
from batchnorm.lab.errors import DataError

TRAIN, TEST = 211, 200

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
        As for `batchnorm.lab.data.arrays.read`, with points of two coordinates in two classes, and some to test on.

    Returns
    -------
    Points
        The larger of the two numbers is class 1.

    Raises
    ------
    DataError
        A file that is missing, damaged, or holds something else.
    """
    found = arrays.read(path)
    if len(found.labels) != 2 or found.test is None:
        raise DataError(
            f"{path} must hold two classes, and points to test on; got {len(found.labels)} classes"
            f"{'' if found.test else ' and none to test on'}; give X, y, Xval, yval or Xtrain, ytrain, Xtest, ytest"
        )
    for raw in (found.train, found.test):
        if raw.x.ndim != 2 or raw.x.shape[1] != 2 or not np.isfinite(raw.x).all():
            raise DataError(
                f"{path}: {raw.x_name} must hold finite numbers of shape (N, 2) or (2, N), with one class for each of "
                f"the N; got shape {raw.x.shape}"
            )
    (x, y, *_), (x_test, y_test, *_) = found.train, found.test
    return Points(*(values.astype(np.float64) for values in (x, y, x_test, y_test)))
