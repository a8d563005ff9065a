"""From a name and options to a network with its initial weights."""

from typing import Any

import torch
from torch import nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models.catalogue import architecture_named, asked, check_options
from batchnorm.lab.models.factory import from_factory, is_factory
from batchnorm.lab.models.initializers import initialize, resolve
from batchnorm.lab.models.normalization import Normalization
from batchnorm.lab.models.recipe import OPTIONS, Recipe
from batchnorm.lab.models.residual import zero_last


def build(
    model: str,
    normalization: Normalization,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    activation: str | None = None,
    initializer: str | None = None,
    weight_std: float | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    zero_init_residual: bool = False,
    width: float = 1.0,
    hidden: tuple[int, ...] | None = None,
    channels: tuple[int, ...] | None = None,
    convolutions: int | None = None,
) -> nn.Module:
    """Build a network and draw its initial weights.

    All arms get bit for bit the same weights: they are drawn for the dense and convolutional layers alone, in their
    order, from a generator of their own. Biases start at zero, normalization with weight 1 and bias 0.

    Parameters
    ----------
    model : str
        One of `names`, or ``package.module:factory``. A factory is called with ``normalization``, ``input_shape``,
        ``classes`` and ``seed`` as far as it takes them, and with those of the options below that are asked for or that
        it has no default for. It draws its own weights, from torch's global generator, seeded for this call.
    normalization : Normalization
        The arm.
    input_shape : tuple of int
        Shape of one example; of an image (C, H, W).
    classes : int
        Number of classes.
    activation : str, optional
        Nonlinearity of all hidden layers. None: sigmoid for mlp, relu for the others.
    initializer : str, optional
        Of the weights: default (torch's), normal, or xavier, kaiming (each _uniform or _normal) or orthogonal with the
        gain of the activation. None: normal if ``weight_std`` is given, else kaiming_normal.
    weight_std : float, optional
        Standard deviation for the initializer normal.
    seed : int, default=0
        Of the weights.
    dropout : float, default=0.0
        Probability to drop a value, at the place that suits the network.
    stochastic_depth : float, default=0.0
        Probability to drop the last residual branch; it falls linearly to the first.
    zero_init_residual : bool, default=False
        Whether the last weight in each residual branch, that of its normalization or else convolution, starts at 0.
    width : float, default=1.0
        Factor of all numbers of channels.
    hidden : tuple of int, optional
        Units of the hidden dense layers of mlp and the convnets.
    channels : tuple of int, optional
        Channels of the stages of the convnets.
    convolutions : int, optional
        Convolutions in each stage of the convnets.

    Returns
    -------
    Module
        In training mode. The lab's own have ``description``, the architecture in a line.

    Raises
    ------
    LabError
        A name or value that does not exist, an option that the network does not have, images that are too small for it,
        or a factory that does not work.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 3.2: position of the normalization, dropped bias.
    He, Zhang, Ren and Sun 2015, :arxiv:`1502.01852`, equation 10: kaiming_normal.

    Examples
    --------
    >>> network = build("resnet20", Normalization("batch"), input_shape=(3, 32, 32), classes=10)
    >>> describe_network(network)
    'residual network of 20 layers (16, 32, 64 channels), shortcuts without parameters, ReLU; 269,722 parameters'
    """
    kind = resolve(initializer, weight_std)
    recipe = Recipe(
        normalization,
        tuple(input_shape),
        classes,
        activation=activation or _default_activation(model),
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        zero_init_residual=zero_init_residual,
        width=width,
        hidden=hidden,
        channels=channels,
        convolutions=convolutions,
    )
    # What torch's layers draw for themselves is replaced; the user's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if is_factory(model):
            return _from_factory(model, recipe, seed, activation, initializer, weight_std)
        check_options(model, recipe)
        network = architecture_named(model).build(recipe)
        if normalization.norm == "instance":
            _check_positions(model, network, recipe.input_shape)
    initialize(network, kind, scale=recipe.nonlinearity.gain if weight_std is None else weight_std, seed=seed)
    if zero_init_residual:
        zero_last(network)
    return network


def parameter_count(network: nn.Module) -> int:
    """Count the numbers that are trained.

    Parameters
    ----------
    network : Module
        Any.

    Returns
    -------
    int
        A parameter that is used in several places counts once.
    """
    return sum(parameter.numel() for parameter in network.parameters())


def describe_network(network: nn.Module) -> str:
    """Describe a network in a line, for the report.

    Parameters
    ----------
    network : Module
        Any; one of the lab's says what it is, of another the class is given.

    Returns
    -------
    str
        The architecture, and the number of parameters.
    """
    own = getattr(network, "description", None)
    words = own if isinstance(own, str) else type(network).__name__
    return f"{words}; {parameter_count(network):,} parameters"


def _default_activation(model: str) -> str:
    return "relu" if is_factory(model) else architecture_named(model).activation


def _from_factory(
    model: str, recipe: Recipe, seed: int, activation: str | None, initializer: str | None, weight_std: float | None
) -> nn.Module:
    given: dict[str, Any] = {
        "normalization": recipe.normalization,
        "input_shape": recipe.input_shape,
        "classes": recipe.classes,
        "seed": seed,
    }
    named = {"activation": activation, "initializer": initializer, "weight_std": weight_std}
    wanted = [name for name, value in named.items() if value is not None] + asked(recipe)
    options = {**named, "activation": recipe.activation, **{name: getattr(recipe, name) for name in OPTIONS}}
    return from_factory(model, given, options, wanted)


def _check_positions(model: str, network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Refuse maps of one position: minus their mean they are zero, and torch raises when they come."""
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except ValueError as error:
        raise LabError(
            f"instance normalization needs more than one position in each channel; with images of shape {input_shape} "
            f"{model} comes down to one. Try larger images (image_size), or norm group or layer"
        ) from error
