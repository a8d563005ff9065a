"""Deep linear networks on Gaussian data, normalized in several ways, by full-batch descent.

References
----------
Santurkar, Tsipras, Ilyas and Madry 2018, :arxiv:`1805.11604`: 25 layers, targets ``A x`` of a random matrix.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm import BatchNorm1d
from batchnorm.probes.probe import Probe, Reading, Step

#: Average l_p norms to divide by, by name.
POWERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
EPS = 1e-12


class Problem(NamedTuple):
    """Inputs and targets, both (N, units), and the loss of a network that gives 0."""

    x: Tensor
    y: Tensor
    floor: float


class PowerNorm(nn.Module):
    """Divide each unit by its average l_p norm over the batch, subtract the mean of that, scale and shift.

    Parameters
    ----------
    units : int
        Width of the layer.
    power : float
        The p of the norm, from 1 to infinity.
    """

    def __init__(self, units: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.weight, self.bias = nn.Parameter(torch.ones(units)), nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized batch; the norm is that of the values as they come, before the mean is subtracted."""
        sizes = x.abs()
        norm = sizes.amax(0) if math.isinf(self.power) else sizes.pow(self.power).mean(0).pow(1 / self.power)
        y = x / (norm + EPS)
        return (y - y.mean(0)) * self.weight + self.bias


def gaussian_problem(examples: int, units: int, seed: int) -> Problem:
    """Draw Gaussian inputs and a Gaussian matrix that makes the targets.

    Parameters
    ----------
    examples, units, seed : int
        Size and seed.

    Returns
    -------
    Problem
    """
    generator = torch.Generator().manual_seed(seed)
    x, target = (torch.randn(rows, units, generator=generator) for rows in (examples, units))
    y = x @ target.T
    return Problem(x, y, (y**2).sum(1).mean().item())


def linear_network(norm: str, depth: int, units: int, seed: int) -> nn.Sequential:
    """Build linear layers without biases, with Glorot's weights, and a normalization behind each but the last.

    Parameters
    ----------
    norm : {'none', 'batch', 'l1', 'l2', 'linf'}
        Which.
    depth, units, seed : int
        Size, and seed of the weights, which are the same for every norm.

    Returns
    -------
    Sequential
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k in range(depth):
        linear = nn.Linear(units, units, bias=False)
        nn.init.xavier_normal_(linear.weight)
        layers.append(linear)
        if k < depth - 1 and norm != "none":
            layers.append(BatchNorm1d(units) if norm == "batch" else PowerNorm(units, POWERS[norm]))
    return nn.Sequential(*layers)


def descend(
    network: nn.Module,
    problem: Problem,
    *,
    steps: int,
    lr: float,
    probe: Probe | None = None,
    every: int = 1,
) -> tuple[NDArray[np.float64], dict[int, Reading]]:
    """Take full-batch steps on the squared distance, mean over examples.

    Parameters
    ----------
    network : Module
        Changed.
    problem : Problem
        What it learns.
    steps : int
        How many.
    lr : float
        Learning rate.
    probe : Probe, optional
        Measures steps 0, ``every``, ...
    every : int
        Steps between measurements.

    Returns
    -------
    losses : ndarray of shape (steps + 1,), dtype=np.float64
        The loss before each step and at last, over that of a network that gives 0. From a loss that is not finite on,
        all are infinite.
    readings : dict of int to Reading
        What the probe read, by step.
    """
    optimizer, losses = torch.optim.SGD(network.parameters(), lr), np.full(steps + 1, np.inf)
    readings: dict[int, Reading] = {}

    def loss_of() -> Tensor:
        loss: Tensor = ((network(problem.x) - problem.y) ** 2).sum(1).mean()
        return loss

    for step in range(steps + 1):
        looking = probe if step % every == 0 and step < steps else None
        with looking.watch() if looking else nullcontext():
            loss = loss_of()
            if not torch.isfinite(loss):
                break
            losses[step] = loss.item() / problem.floor
            optimizer.zero_grad()
            loss.backward()
        if looking:
            readings[step] = looking.measure(Step(network, loss_of, optimizer))
        optimizer.step()
    return losses, readings
