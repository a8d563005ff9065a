"""The cases: every combination of operation, shape, layout and dtype that is measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from batchnorm.lab.bench.config import BenchConfig, Dtype, Layout, Network, Op, parse_shape
from batchnorm.lab.errors import LabError

ITEM_SIZE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One operation on one tensor.

    Attributes
    ----------
    op : {'bn', 'bn_relu', 'bn_add_relu', 'eval_bn_relu'}
        What is computed.
    shape : tuple of int
        N, C, then space.
    layout : {'contiguous', 'channels_last'}
        Memory format of every tensor of this shape; channels_last_3d for five dimensions.
    dtype : {'float32', 'bfloat16'}
        Of every tensor of this shape; parameters and statistics are float32.
    """

    op: Op
    shape: tuple[int, ...]
    layout: Layout
    dtype: Dtype

    @property
    def shape_name(self) -> str:
        """The shape as on the command line."""
        return "x".join(map(str, self.shape))

    @property
    def bytes(self) -> int:
        """Size of x."""
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    @property
    def training(self) -> bool:
        """Whether it is a forward and a backward in training; otherwise a forward in evaluation."""
        return not self.op.startswith("eval_")

    @property
    def activation(self) -> str | None:
        """What follows the normalization."""
        return "relu" if self.op.endswith("relu") else None

    @property
    def has_residual(self) -> bool:
        """Whether something is added before the activation."""
        return "_add_" in self.op

    def __str__(self) -> str:
        return f"{self.op} {self.shape_name} {self.layout} {self.dtype}"


@dataclass(frozen=True)
class StepCase:
    """One training step of one network.

    Attributes
    ----------
    network : {'resnet18', 'resnet50'}
        Which.
    batch, resolution : int
        Images, and their height and width.
    layout : {'contiguous', 'channels_last'}
        Memory format of the images and of the convolutions' weights.
    dtype : {'float32', 'bfloat16'}
        bfloat16 is autocast.
    """

    network: Network
    batch: int
    resolution: int
    layout: Layout
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.network} {self.batch}x3x{self.resolution}x{self.resolution} {self.layout} {self.dtype}"


def cases(config: BenchConfig) -> list[Case]:
    """List what ``config`` asks for, one operation after the other.

    Parameters
    ----------
    config : BenchConfig
        Resolved.

    Returns
    -------
    list of Case

    Raises
    ------
    LabError
        No shape has any of the layouts.
    """
    found = list(_cases(config))
    if not found:
        raise LabError(
            f"layouts must fit a shape: {' '.join(config.layouts)} exists for four and five sizes only; "
            f"got shapes {' '.join(config.shapes or ())}"
        )
    return found


def _cases(config: BenchConfig) -> Iterator[Case]:
    for op in config.ops:
        for name in config.shapes or ():
            shape = parse_shape(name)
            for layout in config.layouts:
                if layout == "contiguous" or len(shape) in (4, 5):
                    for dtype in config.dtypes or ():
                        yield Case(op, shape, layout, dtype)


def step_cases(config: BenchConfig) -> list[StepCase]:
    """List the training steps that ``config`` asks for.

    Parameters
    ----------
    config : BenchConfig
        Resolved.

    Returns
    -------
    list of StepCase
    """
    assert config.batch is not None
    assert config.resolution is not None
    return [
        StepCase(network, config.batch, config.resolution, layout, dtype)
        for network in config.networks or ()
        for layout in config.layouts
        for dtype in config.dtypes or ()
    ]
