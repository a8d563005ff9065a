"""Plain convolutional networks: stages of 3x3 convolution, normalization and nonlinearity, each ended by a max pool."""

from torch import nn

from batchnorm.lab.models.network import Network, hidden_layers, number
from batchnorm.lab.models.recipe import Recipe


def convnet(recipe: Recipe) -> Network:
    """Build two stages of one convolution, and a hidden layer of 100."""
    return _stages(recipe, "convnet", channels=(16, 32), convolutions=1, hidden=(100,))


def deep_convnet(recipe: Recipe) -> Network:
    """Build three stages of two convolutions, and no hidden layer."""
    return _stages(recipe, "deep_convnet", channels=(64, 128, 256), convolutions=2, hidden=())


def _stages(
    recipe: Recipe, name: str, *, channels: tuple[int, ...], convolutions: int, hidden: tuple[int, ...]
) -> Network:
    """Build a network; what the recipe says goes before the defaults. Dropout: dense layers, the last one's input."""
    channels = channels if recipe.channels is None else recipe.channels
    convolutions = convolutions if recipe.convolutions is None else recipe.convolutions
    hidden = hidden if recipe.hidden is None else recipe.hidden
    inputs, height, width = recipe.image(
        name, 2 ** len(channels), f"{len(channels)} max pools halve them, one for each stage of channels"
    )
    layers: list[nn.Module] = []
    for maps in channels:
        for _ in range(convolutions):
            layers += [recipe.conv(inputs, maps, 3), *recipe.normalization.spatial(maps), recipe.act()]
            inputs = maps
        layers += [nn.MaxPool2d(2)]
        height, width = height // 2, width // 2
    layers += [nn.Flatten()]  # (N, C, H, W) -> (N, C*H*W)
    if recipe.dropout and not hidden:
        layers += [nn.Dropout(recipe.dropout)]
    fan_in = inputs * height * width
    for units in hidden:
        layers += recipe.dense(fan_in, units)
        fan_in = units
    layers += [nn.Linear(fan_in, recipe.classes)]
    return Network(
        layers,
        activation=recipe.activation,
        hidden_units=(*(maps for maps in channels for _ in range(convolutions)), *hidden),
        description=_words(recipe, channels, convolutions, hidden),
    )


def _words(recipe: Recipe, channels: tuple[int, ...], convolutions: int, hidden: tuple[int, ...]) -> str:
    maps = f"({', '.join(map(str, channels))} channels)"
    word = recipe.nonlinearity.word
    several = f"{number(convolutions)} 3x3 convolutions {maps}, each with {word}, and 2x2 max pool"
    once = f"3x3 convolution {maps}, {word} and 2x2 max pool"
    stages = once if convolutions == 1 else several
    return f"{number(len(channels))} of {stages}; {hidden_layers(hidden, recipe.nonlinearity)}"
