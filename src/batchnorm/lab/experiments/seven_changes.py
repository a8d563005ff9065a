"""Inception as Ioffe and Szegedy trained it, and the seven changes of their section 4.2.1, each a switch.

References
----------
Ioffe and Szegedy 2015, :arxiv:`1502.03167`, sections 4.2.1 and 4.2.2.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batchnorm.lab.experiments.bare_loop import Images, accuracy, descend, network


class Change(NamedTuple):
    """One change: what it is called, the setting of training that it changes, before, and after."""

    words: str
    setting: str
    before: Any
    after: Any


CHANGES = {
    "rate": Change("higher learning rate", "times", 1.0, 5.0),
    "dropout": Change("no dropout", "dropout", 0.4, 0.0),
    "l2": Change("L2 divided by 5", "l2", 1e-4, 2e-5),
    "decay": Change("decay 6 times faster", "decay", 0.5, 3.0),
    "lrn": Change("no local response normalization", "lrn", True, False),
    "shuffle": Change("more thorough shuffling", "reshuffled", False, True),
    "distortion": Change("less photometric distortion", "distortion", 0.4, 0.1),
}
CHOICES = (
    "Of the settings before the changes, 0.4 for dropout is the paper's. Chosen here: momentum 0.9, an L2 of 1e-4, a "
    "rate that falls exponentially to exp(-0.5) of itself (after: exp(-3)), local response normalization (5 channels) "
    "behind the stem, one order of the examples for all epochs, and brightness and contrast of each image off by up to "
    "40 % (after: 10 %)."
)


class Curve(NamedTuple):
    """Test accuracy, (T,), after (T,) steps. What follows a loss that is not finite is missing."""

    steps: list[float]
    accuracy: list[float]


def settings_with(changes: Collection[str]) -> dict[str, Any]:
    """Return the settings of training with some of the changes made."""
    return {one.setting: one.after if name in changes else one.before for name, one in CHANGES.items()}


class Distortion:
    """Change brightness and contrast of each image at random.

    Parameters
    ----------
    most : float
        Both are off by a uniform draw from -most to most; brightness in standard deviations of the data.
    seed : int
        Of the draws.
    """

    def __init__(self, most: float, seed: int) -> None:
        self.most, self.generator = most, torch.Generator().manual_seed(seed)

    def __call__(self, _step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """From images (N, C, H, W) to the same, distorted."""
        off = self.most * (2 * torch.rand(2, len(x), 1, 1, 1, generator=self.generator) - 1)
        middle = x.mean((1, 2, 3), keepdim=True)
        return middle + (1 + off[0]) * (x - middle) + off[1], y


def inception(images: Images, how: Mapping[str, Any], sizes: Mapping[str, Any], *, norm: str, seed: int) -> nn.Module:
    """Build the network.

    Parameters
    ----------
    images : Images
        What it is for.
    how : mapping
        Of :func:`settings_with`.
    sizes : mapping
        With its width.
    norm : str
        Its normalization.
    seed : int
        Of its weights.

    Returns
    -------
    Module
    """
    made = network("inception_small", norm, images, seed=seed, width=sizes["width"], dropout=how["dropout"],
                   activation=how.get("activation"))  # fmt: skip
    if how["lrn"]:
        made.stem.append(nn.LocalResponseNorm(5))  # type: ignore[operator, union-attr]  # a Sequential
    return made


def train(
    model: nn.Module, images: Images, how: Mapping[str, Any], sizes: Mapping[str, Any], *, seed: int
) -> Iterator[tuple[int, float]]:
    """Train the network, and evaluate it on the test data.

    Parameters
    ----------
    model : Module
        Of :func:`inception`.
    images : Images
        The data.
    how : mapping
        Of :func:`settings_with`.
    sizes : mapping
        With steps, batch, lr and every, the steps between evaluations.
    seed : int
        Of the order.

    Yields
    ------
    step : int
    accuracy : float
        Ends early where the loss is not finite.
    """
    steps = descend(model, images, steps=sizes["steps"], batch=sizes["batch"], lr=sizes["lr"] * how["times"], seed=seed,
                    l2=how["l2"], schedule=lambda done: math.exp(-how["decay"] * done), reshuffled=how["reshuffled"],
                    changed=Distortion(how["distortion"], seed))  # fmt: skip
    for step, loss in enumerate(steps, 1):
        if step % sizes["every"] == 0 and np.isfinite(loss):
            yield step, accuracy(model, images.x_test, images.y_test)


def curve_of(images: Images, how: Mapping[str, Any], sizes: Mapping[str, Any], *, norm: str, seed: int) -> Curve:
    """Build and train; return the accuracies."""
    found = list(train(inception(images, how, sizes, norm=norm, seed=seed), images, how, sizes, seed=seed))
    return Curve([float(step) for step, _ in found], [right for _, right in found])
