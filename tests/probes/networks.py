"""Networks to probe: with dropout, batch normalization of both makes, a shared module, a residual."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.probes import Step


class Residual(nn.Module):
    """As in torchvision: one ReLU, in place, for two calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def convnet(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            batchnorm.BatchNorm2d(6, activation="silu"),
            Residual(6),
            nn.Dropout2d(0.3),
            nn.Flatten(),
            nn.Linear(6 * 5 * 7, 8),
            nn.BatchNorm1d(8, momentum=None),
            nn.Sigmoid(),
            nn.Dropout(0.5),
            nn.Linear(8, 4),
        )
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
    return model


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 5, 7, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: nn.functional.cross_entropy(model(x), y)


def momentum(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def probed(probe, model, closure, optimizer, scale: float = 1.0):
    """One step with a probe, up to the optimizer's part of it."""
    optimizer.zero_grad()
    with probe.watch():
        (closure() * scale).backward()
    return probe.measure(Step(model, closure, optimizer, scale))
