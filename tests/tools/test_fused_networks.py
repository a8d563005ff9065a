"""Whole families of networks, in small: what each layer's call ends up doing, and that all of it computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import batchnorm
from tools import zoo
from tools.same import check, runs_fused, settle


class Inception(nn.Module):
    """Branches side by side, each of them a list, that end in one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = zoo.ConvNorm(3, 4, nn.ReLU())
        self.branches = nn.ModuleList(
            [
                zoo.ConvNorm(4, 2, nn.ReLU(inplace=True)),
                nn.Sequential(zoo.ConvNorm(4, 3, nn.ReLU6()), zoo.ConvNorm(3, 2, nn.ReLU())),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([branch(x) for branch in self.branches], 1)


class UNet(nn.Module):
    """Down, and up again over what was kept on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([zoo.ConvNorm(3, 4, nn.ReLU()), zoo.ConvNorm(4, 6, nn.ReLU())])
        self.bottom = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.LeakyReLU(inplace=True))
        self.up = nn.ModuleList([zoo.ConvNorm(12, 4, nn.ReLU()), zoo.ConvNorm(8, 2, nn.ReLU())])

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        x = self.bottom(F.avg_pool2d(x, 2))
        x = F.interpolate(x, scale_factor=2)
        for block in self.up:
            x = block(torch.cat([x, kept.pop()], 1))
        return x


class Resolutions(nn.Module):
    """HRNet's: every resolution is the sum of what all of them send, activated at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = zoo.ConvNorm(3, 4, nn.ReLU()), zoo.ConvNorm(3, 4, nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2))
        self.down = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(F.max_pool2d(x, 2))
        sent = [self.relu(fine + self.up(coarse)), self.relu(coarse + self.down(fine))]
        return torch.cat([F.avg_pool2d(sent[0], 2), sent[1]], 1)


class Preactivated(nn.Module):
    """ResNet v2's: layer and activation before the convolution, the shortcut from behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return y + self.shortcut(activated)


class SqueezeExcitation(nn.Module):
    """The layer's output scales itself before it is added."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.squeeze, self.excite = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        weight = self.excite(torch.relu(self.norm(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return torch.relu(y * weight.sigmoid() + x)


class Shuffled(nn.Module):
    """ShuffleNet's: half of the channels go past, and all are mixed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = zoo.ConvNorm(3, 4, nn.ReLU6())
        self.depthwise = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(2)
        self.pointwise = zoo.ConvNorm(2, 2, nn.Hardtanh(0.0, 6.0))

    def forward(self, x: Tensor) -> Tensor:
        past, through = self.first(x).chunk(2, dim=1)
        y = torch.cat([past, self.pointwise(self.norm(self.depthwise(through)))], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


NETWORKS = {
    Inception: {
        "stem.bn": "fused relu",
        "branches.0.bn": "fused relu",
        "branches.1.0.bn": "fused relu6",
        "branches.1.1.bn": "fused relu",
    },
    UNet: {
        "down.0.bn": "fused relu",
        "down.1.bn": "fused relu",
        "bottom.1": "fused leaky_relu",
        "up.0.bn": "fused relu",
        "up.1.bn": "fused relu",
    },
    Resolutions: {
        "fine.bn": "fused relu",
        "coarse.bn": "fused relu",
        "up.1": "swapped",  # it is resized before it is added
        "down.1": "fused add + relu",
    },
    Preactivated: {"bn1": "fused relu", "bn2": "fused relu"},
    SqueezeExcitation: {"body.1": "swapped", "norm": "fused relu"},
    Shuffled: {"first.bn": "fused relu6", "norm": "swapped", "pointwise.bn": "fused relu6"},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_families_of_networks(network: type[nn.Module], training: bool) -> None:
    model = settle(network()).train(training)
    converted, report = batchnorm.convert(model, report=True)
    assert {row.name: row.done for row in report} == NETWORKS[network]
    assert all(row.reason for row in report if row.done == "swapped")
    assert runs_fused(converted) == sum(row.done.startswith("fused") for row in report)
    check(model, converted)
    check(model, batchnorm.revert(converted))
