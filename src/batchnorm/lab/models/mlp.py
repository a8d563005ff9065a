"""The fully connected network: hidden layers of any number and size.

References
----------
Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 4.1: three hidden layers of 100 sigmoids.
"""

from math import prod

from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models.network import Network, hidden_layers
from batchnorm.lab.models.recipe import Recipe

HIDDEN = (100, 100, 100)


def mlp(recipe: Recipe) -> Network:
    """Build the network for examples of any shape. Dropout is behind each nonlinearity.

    Parameters
    ----------
    recipe : Recipe
        ``hidden`` are the units of its hidden layers.

    Returns
    -------
    Network

    Raises
    ------
    LabError
        A norm that has nothing to normalize in a dense layer.
    """
    hidden = HIDDEN if recipe.hidden is None else recipe.hidden
    if recipe.normalization.dense_bias and not recipe.normalization.bias:
        raise LabError(
            f"norm {recipe.normalization.norm} takes its statistics over the positions of a channel, and a unit of mlp "
            "has one value for each example. Try layer, or a convolutional network"
        )
    layers: list[nn.Module] = [nn.Flatten()]  # (N, *) -> (N, features)
    fan_in = prod(recipe.input_shape)
    for units in hidden:
        layers += recipe.dense(fan_in, units)
        fan_in = units
    layers += [nn.Linear(fan_in, recipe.classes)]
    return Network(
        layers,
        activation=recipe.activation,
        hidden_units=hidden,
        description=f"{hidden_layers(hidden, recipe.nonlinearity)}, fully connected",
    )
