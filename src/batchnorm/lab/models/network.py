"""A network of layers one behind the other, and the words that describe its layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from batchnorm.lab.models.activations import ACTIVATIONS, Activation

_NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class Network(nn.Module):
    """A classifier that knows its nonlinearities, so that their inputs can be watched in either arm.

    In training mode batch normalization uses the statistics of the mini-batch and updates its running statistics; in
    evaluation mode it uses the running statistics.

    Parameters
    ----------
    layers : sequence of Module
        From the image, of shape (N, C, H, W), to one number for each class, of shape (N, classes).
    activation : str
        Nonlinearity of every hidden layer, a module of its own.
    hidden_units : tuple of int
        Units of each hidden layer; a channel is a unit.
    description : str
        The architecture in a line, for the report.
    """

    def __init__(
        self, layers: Sequence[nn.Module], *, activation: str, hidden_units: tuple[int, ...], description: str
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.activation = activation
        self.hidden_units = hidden_units
        self.description = description

    @property
    def nonlinearities(self) -> list[nn.Module]:
        """The nonlinearity of each hidden layer, from the input on."""
        return [module for module in self.layers if isinstance(module, ACTIVATIONS[self.activation].module)]

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


def number(count: int) -> str:
    """Write a small number as a word."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def hidden_layers(units: tuple[int, ...], activation: Activation) -> str:
    """Describe hidden dense layers: two hidden layers of 100 ReLUs."""
    if not units:
        return "no hidden layer"
    sizes = [str(n) for n in (units[:1] if len(set(units)) == 1 else units)]
    listed = sizes[0] if len(sizes) == 1 else f"{', '.join(sizes[:-1])} and {sizes[-1]}"
    return f"{number(len(units))} hidden layer{'' if len(units) == 1 else 's'} of {listed} {activation.words}"
