"""The networks of the lab, each with and without batch normalization, from the same initial weights."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from batchnorm.nn import BatchNorm1d, BatchNorm2d


@dataclass(frozen=True)
class Normalization:
    """How an arm normalizes.

    Parameters
    ----------
    norm : {'none', 'batch'}
        The arm.
    eps, momentum : float
        Arguments of the batch normalization layers.
    """

    norm: str
    eps: float = 1e-5
    momentum: float = 0.1

    @property
    def bias(self) -> bool:
        """Whether the layer before keeps its bias: behind it batch normalization would subtract it again."""
        return self.norm == "none"

    def dense(self, units: int) -> list[nn.Module]:
        """Make what comes between a dense layer and its nonlinearity.

        Parameters
        ----------
        units : int
            Outputs of the dense layer, which are of shape (N, units).

        Returns
        -------
        list of Module
            Empty without normalization.
        """
        return [] if self.norm == "none" else [BatchNorm1d(units, eps=self.eps, momentum=self.momentum)]

    def spatial(self, channels: int) -> list[nn.Module]:
        """Make what comes between a convolution and its nonlinearity.

        Parameters
        ----------
        channels : int
            Outputs of the convolution, which are of shape (N, channels, H, W).

        Returns
        -------
        list of Module
            Empty without normalization.
        """
        return [] if self.norm == "none" else [BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)]


class Network(nn.Module):
    """A classifier that knows its nonlinearities, so that their inputs can be watched in either arm.

    In training mode batch normalization uses the statistics of the mini-batch and updates its running statistics; in
    evaluation mode it uses the running statistics.

    Parameters
    ----------
    layers : sequence of Module
        From the image, of shape (N, C, H, W), to one number for each class, of shape (N, classes).
    activation : {'sigmoid', 'relu'}
        Nonlinearity of every hidden layer, a module of its own.
    hidden_units : tuple of int
        Units of each hidden layer; a channel is a unit.
    description : str
        The architecture in a line, for the report.
    """

    def __init__(
        self, layers: list[nn.Module], *, activation: str, hidden_units: tuple[int, ...], description: str
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.activation = activation
        self.hidden_units = hidden_units
        self.description = description

    @property
    def nonlinearities(self) -> list[nn.Module]:
        """The nonlinearity of each hidden layer, from the input on."""
        return [module for module in self.layers if isinstance(module, NONLINEARITIES[self.activation])]

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
            Images.

        Returns
        -------
        Tensor of shape (N, classes)
            Logits.
        """
        logits: Tensor = self.layers(x)
        return logits


NONLINEARITIES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


def build(
    model: str,
    normalization: Normalization,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    weight_std: float | None,
    seed: int,
) -> Network:
    """Build a network and draw its initial weights.

    Both arms get bit for bit the same weights: they are drawn for the dense and convolutional layers alone, in their
    order, from a generator of their own. Biases start at zero, batch normalization with weight 1 and bias 0.

    Parameters
    ----------
    model : {'mlp', 'convnet'}
        Architecture.
    normalization : Normalization
        The arm.
    input_shape : tuple of int
        Shape of one image, (C, H, W).
    classes : int
        Number of classes.
    weight_std : float or None
        Standard deviation of the Gaussian weights; None: He's sqrt(2 / fan_in) in each layer.
    seed : int
        Seed of the weights.

    Returns
    -------
    Network
        In training mode.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, sections 3.2 (position, dropped bias) and 4.1 (the mlp).
    He, Zhang, Ren and Sun 2015, :arxiv:`1502.01852`, equation 10.
    """
    architecture = _mlp if model == "mlp" else _convnet
    # torch's layers draw initial weights of their own, which are replaced; the user's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        network = architecture(normalization, input_shape, classes)
    _initialize(network, weight_std, torch.Generator().manual_seed(seed))
    return network


def _mlp(normalization: Normalization, input_shape: tuple[int, ...], classes: int) -> Network:
    layers: list[nn.Module] = [nn.Flatten()]  # (N, C, H, W) -> (N, C*H*W)
    hidden_units = (100, 100, 100)
    fan_in = prod(input_shape)
    for units in hidden_units:
        layers += [nn.Linear(fan_in, units, bias=normalization.bias), *normalization.dense(units), nn.Sigmoid()]
        fan_in = units
    layers += [nn.Linear(fan_in, classes)]
    return Network(
        layers,
        activation="sigmoid",
        hidden_units=hidden_units,
        description="three hidden layers of 100 sigmoids, fully connected",
    )


def _convnet(normalization: Normalization, input_shape: tuple[int, ...], classes: int) -> Network:
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for maps in (16, 32):
        layers += [
            nn.Conv2d(channels, maps, kernel_size=3, padding=1, bias=normalization.bias),
            *normalization.spatial(maps),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels, height, width = maps, height // 2, width // 2
    layers += [
        nn.Flatten(),  # (N, C, H, W) -> (N, C*H*W)
        nn.Linear(channels * height * width, 100, bias=normalization.bias),
        *normalization.dense(100),
        nn.ReLU(),
        nn.Linear(100, classes),
    ]
    return Network(
        layers,
        activation="relu",
        hidden_units=(16, 32, 100),
        description="two of 3x3 convolution (16, 32 channels), ReLU and 2x2 max pool; one hidden layer of 100 ReLUs",
    )


def _initialize(network: Network, weight_std: float | None, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if weight_std is None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.normal_(module.weight, std=weight_std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
