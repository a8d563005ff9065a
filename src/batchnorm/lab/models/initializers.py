"""Initial weights, drawn by the order of the modules from a generator of their own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchnorm.lab.errors import LabError

Draw = Callable[[Tensor, float, torch.Generator], object]


def _kaiming_normal(weight: Tensor, gain: float, generator: torch.Generator) -> object:
    return nn.init.normal_(weight, std=gain / math.sqrt(_fan_in(weight)), generator=generator)


def _kaiming_uniform(weight: Tensor, gain: float, generator: torch.Generator) -> object:
    bound = math.sqrt(3.0) * gain / math.sqrt(_fan_in(weight))  # its variance is a third of its square
    return nn.init.uniform_(weight, -bound, bound, generator=generator)


def _default(weight: Tensor, _gain: float, generator: torch.Generator) -> object:
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


#: By name: what draws a weight in place, with the gain of the activation. ``normal`` takes its deviation instead.
INITIALIZERS: dict[str, Draw] = {
    "default": _default,
    "normal": lambda weight, std, generator: nn.init.normal_(weight, std=std, generator=generator),
    "xavier_uniform": lambda weight, gain, generator: nn.init.xavier_uniform_(weight, gain, generator),
    "xavier_normal": lambda weight, gain, generator: nn.init.xavier_normal_(weight, gain, generator),
    "kaiming_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
    "orthogonal": lambda weight, gain, generator: nn.init.orthogonal_(weight, gain, generator),
}


def resolve(initializer: str | None, weight_std: float | None) -> str:
    """Name the initializer that is meant.

    Parameters
    ----------
    initializer : str or None
        One of `INITIALIZERS`. None: normal if there is a deviation, else kaiming_normal.
    weight_std : float or None
        Standard deviation for normal.

    Returns
    -------
    str

    Raises
    ------
    LabError
        An unknown initializer, or a deviation that is missing, superfluous or not a positive number.
    """
    name = initializer or ("kaiming_normal" if weight_std is None else "normal")
    if name not in INITIALIZERS:
        raise LabError(f"initializer must be one of {', '.join(INITIALIZERS)}; got {name!r}")
    if name == "normal" and weight_std is None:
        raise LabError("initializer normal needs weight_std, its standard deviation; got none. Try 0.01")
    if name != "normal" and weight_std is not None:
        raise LabError(f"weight_std is for initializer normal; got {weight_std} with {name}, which computes its own")
    if weight_std is not None and not 0 < weight_std < math.inf:
        raise LabError(f"weight_std must be a finite number above 0; got {weight_std}")
    return name


def initialize(network: nn.Module, initializer: str, *, scale: float, seed: int) -> None:
    """Draw the weights of all dense and convolutional layers, and set their biases.

    Layers of other kinds are left as they are, and draw nothing: networks that differ in their normalization get bit
    for bit the same weights.

    Parameters
    ----------
    network : Module
        Changed in place.
    initializer : str
        One of `INITIALIZERS`. Biases start at zero; with ``default`` they are torch's, uniform in 1 / sqrt(fan_in).
    scale : float
        The gain of the activation; the standard deviation for ``normal``. One for all layers: the last one, too, gets
        what has been through the activation.
    seed : int
        Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        INITIALIZERS[initializer](module.weight, scale, generator)
        bias = torch.zeros(len(module.weight))
        if initializer == "default":
            # Drawn also where the layer has none: what follows must not depend on it.
            bound = 1 / math.sqrt(_fan_in(module.weight))
            bias.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            with torch.no_grad():
                module.bias.copy_(bias)


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()
