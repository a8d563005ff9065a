"""Small models in the ways that people write them; classes at the top, so that they can be pickled."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


class BasicBlock(nn.Module):
    """torchvision's: one ReLU for two calls, a branch that may be missing, an addition in place."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)

    def channels(self) -> int:
        return self.bn2.num_features * self.expansion


class Bottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2)
        self.conv3 = nn.Conv2d(2, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(torch.add(x, self.bn3(self.conv3(y))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 6, 2))
        self.layer2 = Bottleneck(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))


class After(nn.Module):
    """A layer, and any function of its output."""

    def __init__(self, after: Callable[..., Tensor]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.bn(x)) * 2


class ConvNorm(nn.Module):
    """A convolution with its layer, and an activation unless the caller has one."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module | None = None, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.active = activation is not None
        if self.active:
            self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        if self.active:
            x = self.act(x)
        return x


class Wraps(nn.Module):
    """What transformers' activations are: a function in an attribute."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = function

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class WithDefaults(nn.BatchNorm2d):
    """A subclass with a constructor and a method, and no forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.03)
        self.tag = "mine"

    def channels(self) -> int:
        return self.num_features


class Configuration:
    """Attributes, some of which a forward reads."""

    def __init__(self) -> None:
        self.padding = False
        self.label = "a name"
        self.nested = {"names": {0: "cat"}, "layers": [object()]}


class Configured(nn.Module):
    """What transformers' models are: a forward that reads self.config."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.config = Configuration()
        self.whole = whole
        self.conv = nn.Conv2d(3, 3, 3)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.whole and not self.config:
            return x
        if self.config.padding:
            x = F.pad(x, (1, 1, 1, 1))
        return torch.relu(self.bn(self.conv(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class HandMadeHardswish(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3.0, inplace=self.inplace) / 6.0


class InvertedResidual(nn.Module):
    """MobileNet's: the last layer's addition stands in the caller, behind an identity."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(3, 6, activation), ConvNorm(6, 6, activation, groups=6), ConvNorm(6, 3), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DenseLayer(nn.Module):
    """torchvision's: takes a tensor or a list of tensors; layer and ReLU before the convolution."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 4, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 2, 3, padding=1, bias=False)
        self.drop_rate = 0.0

    def forward(self, inputs: Tensor | list[Tensor]) -> Tensor:
        features = [inputs] if isinstance(inputs, Tensor) else inputs
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        y = self.conv2(F.relu(self.norm2(y)))
        if self.drop_rate > 0:
            y = F.dropout(y, p=self.drop_rate, training=self.training)
        return y


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = DenseLayer(3), DenseLayer(5)
        self.norm = nn.BatchNorm2d(7)

    def forward(self, x: Tensor) -> Tensor:
        features = [x, self.first(x)]
        features.append(self.second(features))
        return F.relu(self.norm(torch.cat(features, 1)), inplace=True).mean((2, 3))


class Untraceable(nn.Module):
    """No graph can stand for the whole, and one for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 4)
        self.blocks = nn.ModuleList([BasicBlock(4, 4), BasicBlock(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            if x.mean() > 1e6:
                return x
            x = block(x)
        return x


class SharedLayer(nn.Module):
    """One layer called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.again = self.bn

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.bn(x)) * 2).sigmoid()


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return torch.relu(y) - y


class Broadcast(nn.Module):
    """An addition that only looks like a residual's."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(x) + x.mean((2, 3), keepdim=True))


class Optional(nn.Module):
    """An argument that is usually left out, and modes that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.scale = 2.0

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.bn(x)
        if shift is not None:
            y = y + shift
        if not self.training:
            y = torch.sigmoid(y)
        return F.relu(y) * self.scale


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.rand(1) < 0.5:
            return x
        return torch.relu(self.bn(x))


class PythonRandom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(x)) * (1 if random.random() < 0.5 else -1)


class NumpyRandom(PythonRandom):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(x)) * float(np.random.rand())  # noqa: NPY002  # what people write


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.relu(self.bn(x))


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.relu(self.bn(x))
        return y + x


class ChangedInput(nn.Module):
    """What the layer has read is changed before its output is activated."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.bn(x)
        x.mul_(3)
        return torch.relu(y + x)


class ChangedInputInPlace(ChangedInput):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.bn(x)
        x *= 3
        return torch.relu(y + x)


class AddedInPlace(ChangedInput):
    """The sum is written into a tensor that the caller goes on with."""

    def forward(self, x: Tensor) -> Tensor:
        total = x * 1
        again = total
        total += self.bn(x)
        return torch.relu(total) * again


class AsksItsLayer(nn.Module):
    """Depends on an attribute of the module that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return torch.relu(y) * 2 if self.bn.training else torch.tanh(y)


class Appending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.shapes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(3)
        return torch.relu(self.bn(x))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: object, dy: Tensor) -> Tensor:
        return dy


class Binarized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(StraightThrough.apply(x)) + x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda z: torch.relu(self.bn(z)), x, use_reentrant=True)
