"""Networks with all kinds of normalization in them, and their inputs as NumPy sees them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchnorm


def network() -> nn.Sequential:
    """Five layers of both makes, dropout and a group norm between them, statistics that are nobody's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 3),
        batchnorm.BatchNorm2d(6, activation="relu", momentum=None),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 5),
        nn.SyncBatchNorm(5, momentum=0.0),
        nn.Tanh(),
        nn.Linear(5, 7),
        batchnorm.BatchNorm1d(7, affine=False),
    )
    with torch.no_grad():
        for layer in layers(model).values():
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.num_batches_tracked.fill_(17)
            if layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
    return model


def layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def batches(sizes: tuple[int, ...] = (16, 16, 5, 9), seed: int = 1) -> list[Tensor]:
    """Batches that differ by more than chance, the last ones smaller."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 8, 8, generator=generator) * (k + 1) + 3 * k for k, n in enumerate(sizes)]


def inputs_by_layer(model: nn.Module, data: list[Tensor]) -> dict[str, list[np.ndarray]]:
    """What each layer gets when batch normalization alone is in training mode."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[np.ndarray]] = {}
    for name, layer in layers(model).items():
        layer.train()
        into = seen.setdefault(name, [])
        layer.register_forward_pre_hook(lambda _m, args, into=into: into.append(args[0].double().numpy().copy()))
    with torch.no_grad():
        for x in data:
            model(x)
    return seen
