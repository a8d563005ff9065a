"""VGG: 3x3 convolutions and max pools, with the names of torchvision's submodules, so that its checkpoints load.

References
----------
Simonyan and Zisserman 2015, :arxiv:`1409.1556`, table 1, column A. Batch normalization before each ReLU of the
convolutions, and none in the dense layers, as in torchvision's vgg11_bn.
"""

from typing import Any

from torch import Tensor, nn

from batchnorm.lab.models.recipe import Recipe

#: Channels of the convolutions of each stage; a 2x2 max pool ends it.
A = ((64,), (128,), (256, 256), (512, 512), (512, 512))
SMALL = ((64,), (128,), (256, 256))

HEAD_SIDE = 224  # from here on the dense layers of the paper: below, its map of 7x7 would be mostly made up
HEAD_MAP = 7
HEAD_UNITS = 4096


class VGG(nn.Module):
    """Stages of convolutions, and a head by the size of the images.

    From 224x224 pixels on the head is the paper's: two hidden layers of 4096. Below it is what is used for CIFAR-10:
    the mean over positions and one dense layer. Dropout is behind the hidden layers, or before the one layer.

    A checkpoint whose convolutions have biases in front of batch normalization loads too: they go into the running
    means, from which they would be subtracted.

    Parameters
    ----------
    recipe : Recipe
        ``width`` multiplies all channels and hidden units.
    stages : tuple of tuple of int
        Channels of the convolutions of each stage.
    name : str
        For messages.
    """

    def __init__(self, recipe: Recipe, stages: tuple[tuple[int, ...], ...], name: str) -> None:
        super().__init__()
        inputs, height, width = recipe.image(name, 2 ** len(stages), f"{len(stages)} max pools halve them")
        layers: list[nn.Module] = []
        for stage in stages:
            for channels in map(recipe.scaled, stage):
                layers += [recipe.conv(inputs, channels, 3), *recipe.normalization.spatial(channels), recipe.act()]
                inputs = channels
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        large = min(height, width) >= HEAD_SIDE
        self.avgpool = nn.AdaptiveAvgPool2d(HEAD_MAP if large else 1)
        self.flatten = nn.Flatten()
        self.classifier = _large_head(recipe, inputs) if large else _small_head(recipe, inputs)
        self.description = (
            f"VGG with {sum(map(len, stages))} convolutions of 3x3 ({recipe.scaled(stages[0][0])} to {inputs} channels)"
            f", {recipe.nonlinearity.word}, {len(stages)} max pools and {'three' if large else 'one'} dense layer"
            f"{'s' if large else ''}"
        )
        self.register_load_state_dict_pre_hook(_absorb_biases)  # type: ignore[no-untyped-call]  # torch has no annotation

    def forward(self, x: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def vgg11(recipe: Recipe) -> VGG:
    """Build configuration A."""
    return VGG(recipe, A, "vgg11")


def vgg_small(recipe: Recipe) -> VGG:
    """Build its first three stages: for images from 8x8 on."""
    return VGG(recipe, SMALL, "vgg_small")


def _large_head(recipe: Recipe, channels: int) -> nn.Sequential:
    units = recipe.scaled(HEAD_UNITS)
    return nn.Sequential(
        nn.Linear(channels * HEAD_MAP * HEAD_MAP, units),
        recipe.act(),
        nn.Dropout(recipe.dropout),
        nn.Linear(units, units),
        recipe.act(),
        nn.Dropout(recipe.dropout),
        nn.Linear(units, recipe.classes),
    )


def _small_head(recipe: Recipe, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(recipe.dropout), nn.Linear(channels, recipe.classes))


def _absorb_biases(network: VGG, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take biases that the network has no place for out of the state, and out of the running means behind them."""
    for position, layer in enumerate(network.features):
        bias, mean = f"{prefix}features.{position}.bias", f"{prefix}features.{position + 1}.running_mean"
        if isinstance(layer, nn.Conv2d) and layer.bias is None and bias in state and mean in state:
            state[mean] = state[mean] - state.pop(bias)
