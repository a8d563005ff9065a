"""Residual networks for images of 32x32: 6n + 2 layers in three stages.

References
----------
He, Zhang, Ren and Sun 2016, :arxiv:`1512.03385`, section 4.2: shortcuts without parameters (option A).
"""

from collections.abc import Callable

from torch import Tensor, nn

from batchnorm.lab.models import residual
from batchnorm.lab.models.recipe import Recipe

WIDTHS = (16, 32, 64)


class CifarResNet(nn.Module):
    """A 3x3 convolution and three stages of n blocks. Dropout is before the dense layer.

    Parameters
    ----------
    recipe : Recipe
        ``width`` multiplies all channels.
    depth : int
        Layers: 6n + 2.
    """

    def __init__(self, recipe: Recipe, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        assert not rest
        inputs, _, _ = recipe.image(f"resnet{depth}")
        widths = tuple(map(recipe.scaled, WIDTHS))
        self.conv1 = recipe.conv(inputs, widths[0], 3)
        self.bn1 = recipe.norm(widths[0])
        self.act = recipe.act()
        made = residual.stages(recipe, residual.BasicBlock, widths[0], widths, (blocks,) * 3, residual.padded)
        self.layer1, self.layer2, self.layer3 = made
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(recipe.dropout)
        self.fc = nn.Linear(widths[-1], recipe.classes)
        self.description = (
            f"residual network of {depth} layers ({', '.join(map(str, widths))} channels), shortcuts without "
            f"parameters, {recipe.nonlinearity.word}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        x = self.act(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


def of_depth(depth: int) -> Callable[[Recipe], CifarResNet]:
    """Make the builder of a depth."""
    return lambda recipe: CifarResNet(recipe, depth)
