"""Densely connected networks, with the names of torchvision's submodules, so that its checkpoints load.

References
----------
Huang, Liu, van der Maaten and Weinberger 2017, :arxiv:`1608.06993`: section 3 and table 2 (CIFAR), table 1 (ImageNet).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from batchnorm.lab.models.recipe import Recipe

BOTTLENECK = 4  # the 1x1 convolution before has this many channels for each that is added

Parts = OrderedDict[str, nn.Module]


class DenseBlock(nn.Module):
    """Layers that each add their output to the channels that all later ones see.

    Parameters
    ----------
    recipe : Recipe
        Of the layers.
    inputs, layers, growth : int
        Channels before, number of layers, and channels that each adds.
    bottleneck : bool
        Whether the layers have a 1x1 convolution before their 3x3 one.
    """

    def __init__(self, recipe: Recipe, inputs: int, layers: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", _layer(recipe, inputs + index * growth, growth, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, inputs + layers * growth, H, W)."""
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseNet(nn.Module):
    """Dense blocks, and transitions that halve the image between them. Dropout: behind each convolution but the first.

    Parameters
    ----------
    recipe : Recipe
        Options and sizes.
    stem : Parts
        What comes before the first block.
    channels : int
        That the stem gives.
    layers : tuple of int
        Of each block.
    growth : int
        Channels that a layer adds.
    compression : bool
        Whether layers have a bottleneck and transitions halve the channels (BC).
    """

    def __init__(
        self, recipe: Recipe, stem: Parts, channels: int, layers: tuple[int, ...], growth: int, *, compression: bool
    ) -> None:
        super().__init__()
        parts = Parts(stem)
        for index, count in enumerate(layers, 1):
            parts[f"denseblock{index}"] = DenseBlock(recipe, channels, count, growth, compression)
            channels += count * growth
            if index < len(layers):
                outputs = channels // 2 if compression else channels
                parts[f"transition{index}"] = _transition(recipe, channels, outputs)
                channels = outputs
        parts |= _before(recipe, channels, str(len(layers) + 1))
        self.features = nn.Sequential(parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, recipe.classes)
        self.description = (
            f"densely connected network of {len(layers)} blocks ({', '.join(map(str, layers))} layers), growth rate "
            f"{growth}, {'with bottlenecks and compression, ' if compression else ''}{recipe.nonlinearity.word}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def densenet40(recipe: Recipe) -> DenseNet:
    """Build the network for CIFAR of 40 layers, growth rate 12."""
    inputs, _, _ = recipe.image("densenet40", 4, "two transitions halve them")
    stem = Parts(conv0=recipe.conv(inputs, 16, 3))
    return DenseNet(recipe, stem, 16, (12, 12, 12), 12, compression=False)


def densenet_bc100(recipe: Recipe) -> DenseNet:
    """Build the network for CIFAR of 100 layers, growth rate 12, with bottlenecks and compression."""
    inputs, _, _ = recipe.image("densenet_bc100", 4, "two transitions halve them")
    stem = Parts(conv0=recipe.conv(inputs, 24, 3))
    return DenseNet(recipe, stem, 24, (16, 16, 16), 12, compression=True)


def densenet121(recipe: Recipe) -> DenseNet:
    """Build the network for ImageNet of 121 layers, growth rate 32."""
    inputs, _, _ = recipe.image("densenet121", 29, "the stem and three transitions halve them five times")
    stem = Parts(conv0=recipe.conv(inputs, 64, 7, 2))
    stem |= _named(norm0=recipe.normalization.spatial(64), relu0=[recipe.act()], pool0=[nn.MaxPool2d(3, 2, 1)])
    return DenseNet(recipe, stem, 64, (6, 12, 24, 16), 32, compression=True)


def _layer(recipe: Recipe, inputs: int, growth: int, bottleneck: bool) -> nn.Sequential:
    parts = Parts()
    if bottleneck:
        middle = BOTTLENECK * growth
        parts |= _before(recipe, inputs, "1") | _named(conv1=[recipe.conv(inputs, middle, 1)], drop1=_dropout(recipe))
        inputs = middle
    last = "2" if bottleneck else "1"
    parts |= _before(recipe, inputs, last)
    parts |= {f"conv{last}": recipe.conv(inputs, growth, 3)}
    parts |= {f"drop{last}": drop for drop in _dropout(recipe)}
    return nn.Sequential(parts)


def _transition(recipe: Recipe, inputs: int, outputs: int) -> nn.Sequential:
    conv = recipe.conv(inputs, outputs, 1)
    parts = _before(recipe, inputs, "") | _named(conv=[conv], drop=_dropout(recipe), pool=[nn.AvgPool2d(2)])
    return nn.Sequential(parts)


def _before(recipe: Recipe, channels: int, suffix: str) -> Parts:
    """Make what stands before a convolution (and before the last pool): normalization and nonlinearity."""
    return _named(**{f"norm{suffix}": recipe.normalization.spatial(channels), f"relu{suffix}": [recipe.act()]})


def _dropout(recipe: Recipe) -> list[nn.Module]:
    return [nn.Dropout(recipe.dropout)] if recipe.dropout else []


def _named(**parts: list[nn.Module]) -> Parts:
    """Name parts, and leave out those that are empty."""
    return Parts((name, found[0]) for name, found in parts.items() if found)
