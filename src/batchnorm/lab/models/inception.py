"""Inception with batch normalization, the network of the paper: each 5x5 convolution is two of 3x3.

References
----------
Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 4.2 and the table in figure 5 of its appendix. The filters are the
table's. Its output sizes for 4c, 4d (576) and 4e (1024) are not the sums of them, which are 608, 608 and 1056: the
published Caffe network has these, 11,295,240 parameters with the biases before the normalizations, and so has this one.
The 13.6 million that section 4.2 gives are not the table's.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.lab.models.recipe import Recipe


class Filters(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    one : int
        1x1 convolutions; 0: none, and the module halves the image.
    three_reduce, three : int
        1x1 before, and 3x3.
    double_reduce, double : int
        1x1 before, and each of the two 3x3.
    pool : {'avg', 'max'}
        Kind of the pool.
    proj : int
        1x1 behind the pool; 0: the pool's channels pass through.
    """

    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pool: str
    proj: int


TABLE = {
    "3a": Filters(64, 64, 64, 64, 96, "avg", 32),
    "3b": Filters(64, 64, 96, 64, 96, "avg", 64),
    "3c": Filters(0, 128, 160, 64, 96, "max", 0),
    "4a": Filters(224, 64, 96, 96, 128, "avg", 128),
    "4b": Filters(192, 96, 128, 96, 128, "avg", 128),
    "4c": Filters(160, 128, 160, 128, 160, "avg", 128),
    "4d": Filters(96, 128, 192, 160, 192, "avg", 128),
    "4e": Filters(0, 128, 192, 192, 256, "max", 0),
    "5a": Filters(352, 192, 320, 160, 224, "avg", 128),
    "5b": Filters(352, 192, 320, 192, 224, "max", 128),
}
SMALL_SHARE = 0.25


class InceptionModule(nn.Module):
    """Branches side by side, their channels one behind the other.

    Parameters
    ----------
    recipe : Recipe
        Normalization, activation and width.
    inputs : int
        Channels before.
    filters : Filters
        Its row of the table, at width 1.
    """

    def __init__(self, recipe: Recipe, inputs: int, filters: Filters) -> None:
        super().__init__()
        one, three_reduce, three, double_reduce, double = (recipe.scaled(n) if n else 0 for n in filters[:5])
        proj = recipe.scaled(filters.proj) if filters.proj else 0
        stride = 1 if one else 2
        self.branch1x1 = recipe.unit(inputs, one, 1) if one else None
        self.branch3x3 = nn.Sequential(
            recipe.unit(inputs, three_reduce, 1), recipe.unit(three_reduce, three, 3, stride)
        )
        self.double3x3 = nn.Sequential(
            recipe.unit(inputs, double_reduce, 1),
            recipe.unit(double_reduce, double, 3),
            recipe.unit(double, double, 3, stride),
        )
        pool = nn.AvgPool2d(3, stride, 1) if filters.pool == "avg" else nn.MaxPool2d(3, stride, 1)
        self.pool = nn.Sequential(pool, *([recipe.unit(inputs, proj, 1)] if proj else []))
        self.outputs = one + three + double + (proj or inputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        branches = [self.branch3x3(x), self.double3x3(x), self.pool(x)]
        return torch.cat(branches if self.branch1x1 is None else [self.branch1x1(x), *branches], 1)


class Inception(nn.Module):
    """A stem, the ten modules of the table, and the mean over positions. Dropout is before the dense layer.

    Parameters
    ----------
    recipe : Recipe
        ``width`` multiplies all channels.
    stem : sequence of Module
        What comes before the modules.
    channels : int
        That the stem gives.
    description : str
        Of the stem and the width, for the report.
    """

    def __init__(self, recipe: Recipe, stem: nn.Sequential, channels: int, description: str) -> None:
        super().__init__()
        self.stem = stem
        self.body = nn.Sequential()
        for name, filters in TABLE.items():
            module = InceptionModule(recipe, channels, filters)
            self.body.add_module(f"inception{name}", module)
            channels = module.outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(recipe.dropout)
        self.fc = nn.Linear(channels, recipe.classes)
        self.description = f"Inception of ten modules, {description}, {recipe.nonlinearity.word}"

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(self.body(self.stem(x))))))
        return logits


def inception(recipe: Recipe) -> Inception:
    """Build the network for ImageNet: a stem of convolutions and pools that leaves an eighth of the side."""
    inputs, _, _ = recipe.image("inception")
    first, second = recipe.scaled(64), recipe.scaled(192)
    stem = nn.Sequential(
        recipe.unit(inputs, first, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        recipe.unit(first, first, 1),
        recipe.unit(first, second, 3),
        nn.MaxPool2d(3, 2, 1),
    )
    return Inception(recipe, stem, second, f"stem of stride 8 ({second} channels)")


def inception_small(recipe: Recipe) -> Inception:
    """Build the network for 32x32 images, the size (28x28) that the first module sees in the other.

    One 3x3 convolution is the stem, and a quarter of the table's filters makes it a network for small data.
    """
    inputs, _, _ = recipe.image("inception_small")
    recipe = replace(recipe, width=recipe.width * SMALL_SHARE)
    channels = recipe.scaled(192)
    return Inception(
        recipe,
        nn.Sequential(recipe.unit(inputs, channels, 3)),
        channels,
        f"one 3x3 convolution before ({channels} channels)",
    )
