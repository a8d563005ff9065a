"""ResNet-18 and ResNet-50 in plain torch, and their limit: the same networks with BN, ReLU and add taken out.

References
----------
He, Zhang, Ren and Sun 2016, :arxiv:`1512.03385`, table 1; the stride of the bottleneck sits in its 3x3 convolution, as
in torchvision.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from batchnorm.lab.bench.config import Network

STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)
CLASSES = 1000
EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them.

    Parameters
    ----------
    inputs, width : int
        Channels before, and of the convolutions.
    stride : int
        Of the first convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return cast("Tensor", self.relu(out))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and the shortcut around them.

    Parameters
    ----------
    inputs, width : int
        Channels before, and of the 3x3 convolution.
    stride : int
        Of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * EXPANSION, 1)
        self.bn3 = nn.BatchNorm2d(width * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, width * EXPANSION, stride)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return cast("Tensor", self.relu(out))


class LimitBlock(nn.Module):
    """A block's convolutions and nothing else.

    The shortcut's convolution, where there is one, still runs forward and backward; an identity shortcut is dropped.

    Parameters
    ----------
    block : BasicBlock or Bottleneck
        Whose convolutions these are.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(m for m in block.children() if isinstance(m, nn.Conv2d)))
        self.downsample = cast("nn.Sequential", block.downsample)[0] if block.downsample is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the block."""
        out = self.convolutions(x)
        if self.downsample is None:
            return cast("Tensor", out)
        return cast("Tensor", _Both.apply(out, self.downsample(x)))  # type: ignore[no-untyped-call]


class ResNet(nn.Module):
    """The network for 1000 classes.

    Parameters
    ----------
    name : {'resnet18', 'resnet50'}
        Which.
    last_weight : float, default=1.0
        Initial weight of the last BN of each block: how much of a block is added to its shortcut.
    """

    def __init__(self, name: Network, last_weight: float = 1.0) -> None:
        super().__init__()
        block: Any = BasicBlock if name == "resnet18" else Bottleneck
        expansion = 1 if name == "resnet18" else EXPANSION
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], 64
        for stage, (width, depth) in enumerate(zip(WIDTHS, STAGES[name], strict=True)):
            for index in range(depth):
                blocks.append(block(inputs, width, 2 if stage and not index else 1))
                inputs = width * expansion
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.constant_(module.bn2.weight, last_weight)
            elif isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, last_weight)

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, 3, H, W) to logits (N, 1000)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return cast("Tensor", self.fc(self.avgpool(self.blocks(x)).flatten(1)))


def limit(network: ResNet) -> ResNet:
    """Take BN, ReLU and add out of a network, and leave convolutions, pools and the classifier.

    Parameters
    ----------
    network : ResNet
        Changed in place.

    Returns
    -------
    ResNet
        The same; its convolutions keep values of unit size, so that the time is not that of infinities.
    """
    network.bn1, network.relu = nn.Identity(), nn.Identity()  # type: ignore[assignment]  # what takes a tensor and returns it
    network.blocks = nn.Sequential(*map(LimitBlock, network.blocks))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network


class _Both(torch.autograd.Function):
    """Return the first of two tensors as it is, and send the gradient to both: an addition that adds nothing."""

    @staticmethod
    def forward(ctx: object, first: Tensor, _second: Tensor) -> Tensor:  # noqa: ARG004
        return first.view_as(first)

    @staticmethod
    def backward(ctx: object, grad_output: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004
        return grad_output, grad_output


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
