"""Classes in the plane, where one can see what a network has learned. Drawn anew each time, and always the same."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm.lab.data.parts import Part, Parts

TRAIN, TEST = 2000, 1000
NOISE = 0.2
Array = NDArray[np.float64]
Classes = NDArray[np.int64]


def two_moons() -> Parts:
    """Return two half circles, each reaching into the other."""
    from sklearn.datasets import make_moons  # type: ignore[import-untyped]  # ships no types; a second to import

    return _parts(lambda n, seed: make_moons(n, noise=NOISE, random_state=seed), 2)


def circles() -> Parts:
    """Return a circle of one class around a circle of the other."""
    from sklearn.datasets import make_circles

    return _parts(lambda n, seed: make_circles(n, noise=NOISE / 2, factor=0.5, random_state=seed), 2)


def blobs() -> Parts:
    """Return five round clouds of points."""
    from sklearn.datasets import make_blobs

    angles = 2 * np.pi * np.arange(5) / 5
    centers = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _parts(lambda n, seed: make_blobs(n, centers=centers, cluster_std=2 * NOISE, random_state=seed), 5)


def spirals() -> Parts:
    """Return three arms that wind once around the middle."""
    return _parts(_spirals, 3)


def _spirals(n: int, seed: int) -> tuple[Array, Classes]:
    draw = np.random.default_rng(seed)
    y = np.arange(n) % 3
    radius = draw.uniform(0.05, 1, n)
    angle = 2 * np.pi * (y / 3 + radius) + draw.normal(0, NOISE, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


def _parts(draw: Callable[[int, int], tuple[Array, Classes]], classes: int) -> Parts:
    """Draw training and test points from different seeds, so that neither depends on how many the other has."""

    def part(n: int, seed: int) -> Part:
        x, y = draw(n, seed)
        return Part(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64)))

    return Parts(part(TRAIN, 0), part(TEST, 1), classes=classes, divisor=1, said="coordinates as they are drawn")
