"""Every network at a size that is quick, and what the tests ask of any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchnorm.lab.models import Normalization, build, names

#: Height and width at which each has more than one position everywhere, as instance normalization needs.
SIDES = {
    "convnet": 8,
    "deep_convnet": 8,
    "vgg11": 32,
    "vgg_small": 8,
    "nin": 8,
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), 8),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), 33),
    **dict.fromkeys(("densenet40", "densenet_bc100"), 8),
    "densenet121": 64,
    "inception": 65,  # at 33 its last map is 2x2, and an average of 3x3 the same everywhere
    "inception_small": 8,
}
#: Those that at full width take long to draw.
WIDE = {"vgg11", "resnet18", "resnet34", "resnet50", "inception"}
#: One of each architecture, the smaller one where there are several.
ONE_OF_EACH = [
    *("mlp", "convnet", "deep_convnet", "vgg11", "vgg_small", "nin", "resnet20", "resnet18", "resnet50"),
    *("densenet40", "densenet_bc100", "densenet121", "inception", "inception_small"),
]
assert {*SIDES, "mlp"} == set(names())


def shape_of(name: str) -> tuple[int, ...]:
    """Return a shape of examples that the network takes, with sides that differ."""
    return (5,) if name == "mlp" else (2, SIDES[name] + 1, SIDES[name])


def make(name: str, norm: str = "batch", **options: object) -> nn.Module:
    narrow = {"width": 0.25} if name in WIDE else {}
    options = {"input_shape": shape_of(name), "classes": 3, **narrow, **options}
    return build(name, Normalization(norm), **options)


def images(name: str, count: int = 4, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape_of(name), generator=generator, dtype=dtype)


def layers(network: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return what has drawn weights, in order."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
