"""What a data set is: parts to train, validate and test on, from which examples are fetched by index."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Examples(Protocol):
    """One part of a data set: N examples, fetched by their indices, and their classes."""

    @property
    def targets(self) -> Tensor:
        """Class of each example, from 0: (N,) int64."""

    def __len__(self) -> int:
        """Count the examples."""

    def fetch(self, indices: Tensor) -> Tensor:
        r"""Return the examples of these indices, (n, \*input_shape) float32, preprocessed, as a new tensor."""


@runtime_checkable
class Croppable(Protocol):
    """Examples that are cut out of larger images when they are fetched."""

    def fetch_crops(self, indices: Tensor, tries: NDArray[np.float64]) -> Tensor:
        """Fetch with a crop of one's own for each image: see ``augmentation.box_of`` for ``tries``, (n, tries, 4)."""


@dataclass(frozen=True)
class Dataset:
    """Examples and their classes, ready to train on.

    Parameters
    ----------
    name : str
        As in ``--data``.
    train : Examples
        To train on.
    validation : Examples or None
        To choose by. Never part of ``test``.
    test : Examples
        To test on.
    classes : int
        Number of classes.
    input_shape : tuple of int
        Shape of one example: (C, H, W), or (D,).
    preprocessing : str
        What was done to the examples, and which were held out, for the report.
    class_names : tuple of str
        What the classes are called; empty if the data do not say.
    """

    name: str
    train: Examples
    validation: Examples | None
    test: Examples
    classes: int
    input_shape: tuple[int, ...]
    preprocessing: str
    class_names: tuple[str, ...] = ()


class InMemory:
    r"""Examples that are wholly in memory, as they were read; normalized when they are fetched.

    Images stay bytes, a quarter of the memory of float32, and the conversion of a batch costs less than its copy.

    Parameters
    ----------
    values : Tensor of shape (N, \*input_shape), uint8 or float32
        The examples.
    targets : Tensor of shape (N,), int64
        Their classes.
    mean, std : Tensor, optional
        What is subtracted from the values, and what they are divided by after that, in the unit of the values; their
        shape broadcasts against one example. None: 0 and 1.
    """

    def __init__(self, values: Tensor, targets: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        assert values.dtype in (torch.uint8, torch.float32), values.dtype
        assert targets.shape == values.shape[:1], (targets.shape, values.shape)
        assert targets.dtype == torch.int64, targets.dtype
        self._values = values
        self._targets = targets
        self._mean = mean
        self._std = std

    @property
    def targets(self) -> Tensor:
        """Class of each example, (N,) int64."""
        return self._targets

    @property
    def x(self) -> Tensor:
        r"""All examples, preprocessed: (N, \*input_shape) float32, a new tensor each time."""
        return self._normalized(self._values.clone())

    def __len__(self) -> int:
        """Count the examples."""
        return len(self._values)

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the examples of these indices, preprocessed, as a new tensor."""
        return self._normalized(self._values.index_select(0, indices))

    def _normalized(self, values: Tensor) -> Tensor:
        x = values.float()
        if self._mean is not None:
            x.sub_(self._mean)
        if self._std is not None:
            x.div_(self._std)
        return x


def everything(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return all examples of a part that fits into memory, preprocessed, and their classes."""
    return examples.fetch(torch.arange(len(examples))), examples.targets
