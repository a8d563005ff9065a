"""The nonlinearities of the networks, modules of their own, and the gains by which initializers make up for them."""

from dataclasses import dataclass

from torch import nn

from batchnorm.lab.errors import LabError


@dataclass(frozen=True)
class Activation:
    """A nonlinearity.

    Attributes
    ----------
    module : type
        Its module; made without arguments.
    gain : float
        Factor of the deviation of the weights. Where `torch.nn.init.calculate_gain` has none: 1 / sqrt(E[f(z)^2]) for
        z ~ N(0, 1), so that the mean square of what a layer passes on is that of what it got.
    word, words : str
        One and several of them in a sentence.
    """

    module: type[nn.Module]
    gain: float
    word: str
    words: str


#: By their names in `torch.nn.functional`.
ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.ReLU, nn.init.calculate_gain("relu"), "ReLU", "ReLUs"),
    "relu6": Activation(nn.ReLU6, 1.414214, "ReLU6", "ReLU6s"),
    "leaky_relu": Activation(nn.LeakyReLU, nn.init.calculate_gain("leaky_relu", 0.01), "leaky ReLU", "leaky ReLUs"),
    "silu": Activation(nn.SiLU, 1.676532, "SiLU", "SiLUs"),
    "gelu": Activation(nn.GELU, 1.533530, "GELU", "GELUs"),
    "hardswish": Activation(nn.Hardswish, 1.736657, "hard-swish", "hard-swishes"),
    "elu": Activation(nn.ELU, 1.245198, "ELU", "ELUs"),
    "sigmoid": Activation(nn.Sigmoid, nn.init.calculate_gain("sigmoid"), "sigmoid", "sigmoids"),
    "tanh": Activation(nn.Tanh, nn.init.calculate_gain("tanh"), "tanh", "tanhs"),
}


def activation_named(name: str) -> Activation:
    """Find an activation.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`.

    Returns
    -------
    Activation

    Raises
    ------
    LabError
        There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise LabError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]
