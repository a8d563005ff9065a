"""What a network is built from, besides its architecture: the options, checked, and the parts made by them."""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models.activations import Activation, activation_named
from batchnorm.lab.models.normalization import Normalization


@dataclass(frozen=True)
class Recipe:
    """What an architecture takes its sizes and parts from.

    Parameters
    ----------
    normalization : Normalization
        The arm.
    input_shape : tuple of int
        Shape of one example; of an image (C, H, W).
    classes : int
        Number of classes.
    activation : str, default='relu'
        One of `batchnorm.lab.models.activations.ACTIVATIONS`.
    dropout : float, default=0.0
        Probability to drop a value, at the place that suits the architecture.
    stochastic_depth : float, default=0.0
        Probability to drop the last residual branch; it falls linearly to the first.
    zero_init_residual : bool, default=False
        Whether the last weight in each residual branch, that of its normalization or else convolution, starts at 0.
    width : float, default=1.0
        Factor of all numbers of channels.
    hidden : tuple of int, optional
        Units of the hidden dense layers. None: the architecture's own.
    channels : tuple of int, optional
        Channels of each stage. None: the architecture's own.
    convolutions : int, optional
        Convolutions in each stage. None: the architecture's own.

    Raises
    ------
    LabError
        A value out of range.
    """

    normalization: Normalization
    input_shape: tuple[int, ...]
    classes: int
    activation: str = "relu"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    zero_init_residual: bool = False
    width: float = 1.0
    hidden: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    convolutions: int | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on the architecture."""
        activation_named(self.activation)
        if not self.input_shape or min(self.input_shape) < 1 or self.classes < 1:
            raise LabError(
                "input_shape must hold sizes of at least 1, and classes be at least 1; "
                f"got {self.input_shape} and {self.classes}"
            )
        for name in ("dropout", "stochastic_depth"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise LabError(f"{name} is the probability to drop: at least 0 and below 1; got {value}")
        if not 0 < self.width < 1e3:
            raise LabError(f"width must be above 0 and below 1000: a factor of the channels; got {self.width}")
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            if sizes is not None and any(size < 1 for size in sizes):
                raise LabError(f"{name} must be sizes of at least 1; got {' '.join(map(str, sizes))}")
        if self.channels == ():
            raise LabError("channels must hold at least one stage; got none")
        if self.convolutions is not None and self.convolutions < 1:
            raise LabError(f"convolutions must be at least 1 in each stage; got {self.convolutions}")

    @property
    def nonlinearity(self) -> Activation:
        """The activation, with its gain and words."""
        return activation_named(self.activation)

    def act(self) -> nn.Module:
        """Make a nonlinearity: a new module for each place, so that its inputs can be watched."""
        return self.nonlinearity.module()

    def norm(self, channels: int) -> nn.Module:
        """Make the normalization of a convolution: the identity in the arm without."""
        return next(iter(self.normalization.spatial(channels)), nn.Identity())

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Make a convolution with normalization behind it: padded to keep the size, up to the stride."""
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=self.normalization.bias)

    def unit(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        """Make a convolution, its normalization and its nonlinearity, by the names conv, norm and act."""
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=self.conv(inputs, outputs, kernel, stride))
        for norm in self.normalization.spatial(outputs):
            parts["norm"] = norm
        parts["act"] = self.act()
        return nn.Sequential(parts)

    def dense(self, inputs: int, units: int) -> list[nn.Module]:
        """Make a hidden dense layer, its normalization and its nonlinearity, with dropout behind where there is any."""
        linear = nn.Linear(inputs, units, bias=self.normalization.dense_bias)
        drop = [nn.Dropout(self.dropout)] if self.dropout else []
        return [linear, *self.normalization.dense(units), self.act(), *drop]

    def scaled(self, channels: int) -> int:
        """Multiply a number of channels by the width, to the nearest integer and at least 1."""
        return max(1, round(channels * self.width))

    def image(self, name: str, least: int = 1, reason: str = "") -> tuple[int, int, int]:
        """Return channels, height and width of the images, which the network must have room for.

        Parameters
        ----------
        name : str
            Of the network, for the message.
        least : int, default=1
            Height and width that it needs.
        reason : str, default=''
            Why.

        Returns
        -------
        tuple of int

        Raises
        ------
        LabError
            The examples are no images, or too small ones.
        """
        if len(self.input_shape) != 3:
            raise LabError(
                f"{name} takes images of shape (channels, height, width); the examples are of shape "
                f"{self.input_shape}. Try mlp"
            )
        channels, height, width = self.input_shape
        if min(height, width) < least:
            raise LabError(
                f"{name} needs images of at least {least}x{least} pixels: {reason}; got {height}x{width}. "
                "Try larger images (image_size), or a network for small ones such as convnet, resnet20 or vgg_small"
            )
        return channels, height, width


_FIXED = {"normalization", "input_shape", "classes", "activation"}
#: The options that not every architecture has, and the values that stand for not asked for.
OPTIONS: dict[str, Any] = {field.name: field.default for field in fields(Recipe) if field.name not in _FIXED}
