"""Residual networks for ImageNet, with the names of torchvision's submodules, so that its checkpoints load.

References
----------
He, Zhang, Ren and Sun 2016, :arxiv:`1512.03385`, table 1; the stride of a bottleneck sits in its 3x3 convolution, as in
torchvision.
"""

from torch import Tensor, nn

from batchnorm.lab.models import residual
from batchnorm.lab.models.recipe import Recipe

WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """A 7x7 convolution and a pool, both of stride 2, and four stages. Dropout is before the dense layer.

    Parameters
    ----------
    recipe : Recipe
        ``width`` multiplies all channels.
    block : type
        `residual.BasicBlock` or `residual.Bottleneck`.
    depths : tuple of int
        Blocks of each stage.
    name : str
        For messages.
    """

    def __init__(self, recipe: Recipe, block: type[residual.Block], depths: tuple[int, ...], name: str) -> None:
        super().__init__()
        inputs, _, _ = recipe.image(name)
        widths = tuple(map(recipe.scaled, WIDTHS))
        self.conv1 = recipe.conv(inputs, widths[0], 7, 2)
        self.bn1 = recipe.norm(widths[0])
        self.act = recipe.act()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        made = residual.stages(recipe, block, widths[0], widths, depths, residual.projected)
        self.layer1, self.layer2, self.layer3, self.layer4 = made
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(recipe.dropout)
        self.fc = nn.Linear(widths[-1] * block.expansion, recipe.classes)
        kind = "basic" if block is residual.BasicBlock else "bottleneck"
        self.description = (
            f"residual network of {sum(depths)} {kind} blocks ({', '.join(map(str, widths))} channels), projected "
            f"shortcuts, {recipe.nonlinearity.word}, stem of stride 4"
        )

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.dropout(self.flatten(self.avgpool(x))))
        return logits


def resnet18(recipe: Recipe) -> ResNet:
    """Build the network of 18 layers."""
    return ResNet(recipe, residual.BasicBlock, (2, 2, 2, 2), "resnet18")


def resnet34(recipe: Recipe) -> ResNet:
    """Build the network of 34 layers."""
    return ResNet(recipe, residual.BasicBlock, (3, 4, 6, 3), "resnet34")


def resnet50(recipe: Recipe) -> ResNet:
    """Build the network of 50 layers."""
    return ResNet(recipe, residual.Bottleneck, (3, 4, 6, 3), "resnet50")
