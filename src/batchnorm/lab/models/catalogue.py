"""The networks by name: who builds them, for what, and which options they have."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from batchnorm.lab.errors import LabError, meant
from batchnorm.lab.models import convnet, densenet, inception, mlp, nin, resnet, resnet_cifar, vgg
from batchnorm.lab.models.recipe import OPTIONS, Recipe


@dataclass(frozen=True)
class Architecture:
    """A network that has a name.

    Attributes
    ----------
    family : str
        Under which it is listed.
    words : str
        What it is, in a few words.
    build : callable
        From a recipe to the network.
    options : frozenset of str
        Those of `recipe.OPTIONS` that it has.
    activation : str
        Its nonlinearity where none is asked for.
    """

    family: str
    words: str
    build: Callable[[Recipe], nn.Module]
    options: frozenset[str]
    activation: str = "relu"


_PLAIN = frozenset({"dropout", "hidden"})
_STAGES = _PLAIN | {"channels", "convolutions"}
_WIDE = frozenset({"dropout", "width"})
_DENSE = frozenset({"dropout"})
_RESIDUAL = _WIDE | {"stochastic_depth", "zero_init_residual"}

CATALOGUE: dict[str, Architecture] = {
    "mlp": Architecture("plain", "three hidden layers of 100 sigmoids, the paper's", mlp.mlp, _PLAIN, "sigmoid"),
    "convnet": Architecture("plain", "two convolutions and a hidden layer of 100", convnet.convnet, _STAGES),
    "deep_convnet": Architecture("plain", "three stages of two convolutions", convnet.deep_convnet, _STAGES),
    "vgg11": Architecture(
        "VGG", "configuration A; from 32x32, dense layers of the paper from 224x224", vgg.vgg11, _WIDE
    ),
    "vgg_small": Architecture("VGG", "its first three stages; from 8x8", vgg.vgg_small, _WIDE),
    "nin": Architecture("NIN", "Network in Network", nin.NIN, _WIDE),
    **{
        f"resnet{depth}": Architecture("ResNet (CIFAR)", f"{depth} layers", resnet_cifar.of_depth(depth), _RESIDUAL)
        for depth in (20, 32, 44, 56, 110)
    },
    "resnet18": Architecture("ResNet (ImageNet)", "18 layers", resnet.resnet18, _RESIDUAL),
    "resnet34": Architecture("ResNet (ImageNet)", "34 layers", resnet.resnet34, _RESIDUAL),
    "resnet50": Architecture("ResNet (ImageNet)", "50 layers, bottlenecks", resnet.resnet50, _RESIDUAL),
    "densenet40": Architecture("DenseNet", "40 layers, growth 12, for CIFAR", densenet.densenet40, _DENSE),
    "densenet_bc100": Architecture("DenseNet", "100 layers, growth 12, BC, for CIFAR", densenet.densenet_bc100, _DENSE),
    "densenet121": Architecture("DenseNet", "121 layers, for ImageNet", densenet.densenet121, _DENSE),
    "inception": Architecture(
        "Inception", "with batch normalization, the paper's, for ImageNet", inception.inception, _WIDE
    ),
    "inception_small": Architecture(
        "Inception", "a quarter of its filters, for 32x32", inception.inception_small, _WIDE
    ),
}


def names() -> tuple[str, ...]:
    """Name the networks that `build` knows, family by family.

    Returns
    -------
    tuple of str
    """
    return tuple(CATALOGUE)


def describe() -> str:
    """List the networks by family, for the help of a command line.

    Returns
    -------
    str
        One line for each family, and one for a factory of one's own.
    """
    families: dict[str, list[str]] = {}
    for name, architecture in CATALOGUE.items():
        families.setdefault(architecture.family, []).append(f"{name} ({architecture.words})")
    lines = [f"{family}: {', '.join(found)}." for family, found in families.items()]
    return "\n".join([*lines, "Your own: package.module:factory, called with the options that it takes."])


def architecture_named(name: str) -> Architecture:
    """Find a network.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Architecture

    Raises
    ------
    LabError
        There is none of that name.
    """
    if name not in CATALOGUE:
        raise LabError(
            f"model must be package.module:factory or one of {', '.join(CATALOGUE)}; got {name!r}"
            f"{meant(name, CATALOGUE)}"
        )
    return CATALOGUE[name]


def check_options(model: str, recipe: Recipe) -> None:
    """Refuse an option that was asked for and that the network does not have.

    Parameters
    ----------
    model : str
        One of `names`.
    recipe : Recipe
        The options.

    Raises
    ------
    LabError
        With the networks that have it.
    """
    for option in asked(recipe):
        if option not in CATALOGUE[model].options:
            have = [name for name, architecture in CATALOGUE.items() if option in architecture.options]
            raise LabError(f"{option} does not apply to {model}; leave it out, or choose one of {', '.join(have)}")


def asked(recipe: Recipe) -> list[str]:
    """Name the options of a recipe that are not at their default."""
    return [option for option, default in OPTIONS.items() if getattr(recipe, option) != default]
