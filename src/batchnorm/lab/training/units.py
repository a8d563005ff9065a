"""Percentiles of the inputs to each unit over the test data: figure 1b and 1c of Ioffe and Szegedy (2015)."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.lab.errors import LabError
from batchnorm.lab.models import Network
from batchnorm.probes import SATURATED


class UnitInputs:
    """Watch an evaluation: the saturated share of each hidden layer, and percentiles for each unit of the last one.

    Use as a context manager around the evaluation, in which batch normalization uses its running statistics. With
    several processes each watches its share of the examples.

    Parameters
    ----------
    network : Module
        A :class:`batchnorm.lab.models.Network`.

    Raises
    ------
    LabError
        The network does not name its nonlinearities.
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, Network) or not network.nonlinearities:
            raise LabError(
                "units are watched in mlp, convnet and other networks of layers in a row, not converted; "
                "leave out --units, or take --probes activations"
            )
        self._modules = network.nonlinearities
        self._names = {id(module): name for name, module in network.named_modules()}
        self._saturated = SATURATED[network.activation]
        self._counts = [[0, 0] for _ in self._modules]
        self._last: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "UnitInputs":
        self._handles = [
            module.register_forward_pre_hook(self._watcher(layer)) for layer, module in enumerate(self._modules)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def layers(self) -> dict[str, dict[str, Any]]:
        """Return ``saturated`` by the path of each nonlinearity, and ``p15``, ``p50`` and ``p85`` of the last.

        Returns
        -------
        dict
            The percentiles are lists with one value for each unit (channel).
        """
        seen: dict[str, dict[str, Any]] = {
            self._names[id(module)]: {"saturated": saturated / max(1, values)}
            for module, (saturated, values) in zip(self._modules, self._counts, strict=True)
        }
        low, middle, high = percentiles(torch.cat(self._last))
        for name, values in {"p15": low, "p50": middle, "p85": high}.items():
            seen[self._names[id(self._modules[-1])]][name] = [float(f"{value:.6g}") for value in values]
        return seen

    def _watcher(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            u = arguments[0].detach().float()
            self._counts[layer][0] += int(self._saturated(u).sum())
            self._counts[layer][1] += u.numel()
            if layer == len(self._modules) - 1:
                self._last.append(u.cpu())

        return watch


def percentiles(u: Tensor) -> NDArray[np.float64]:
    """Return the 15th, 50th and 85th percentile of the values of each unit, interpolated linearly.

    Parameters
    ----------
    u : Tensor of shape (N, units) or (N, channels, *)
        Inputs to a nonlinearity; a channel is a unit.

    Returns
    -------
    ndarray of shape (3, units)
        NaN for a unit with a NaN among its values.
    """
    by_unit = u.flatten(2) if u.dim() > 2 else u.unsqueeze(2)  # (N, units, positions)
    with np.errstate(invalid="ignore"):  # inf - inf, when interpolating in a network that diverges
        found: NDArray[np.float64] = np.percentile(by_unit.numpy(), (15, 50, 85), axis=(0, 2))
    return found
