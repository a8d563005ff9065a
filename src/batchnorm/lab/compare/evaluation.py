"""Evaluate the networks of `batchnorm compare`: accuracy, and the inputs of their nonlinearities.

An evaluation is over the whole test set in evaluation mode: batch normalization uses its running statistics, as for
whoever deploys the network. They start as mean 0 and variance 1 and follow at the pace of ``momentum``, so the first
evaluations show them as well as the network. Measuring changes nothing.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.lab.models import Network
from batchnorm.probes.saturation import SATURATED

PERCENTILES = (15, 50, 85)  # figure 1b, c of the paper


@dataclass(frozen=True)
class Evaluation:
    """One look at a network.

    Parameters
    ----------
    loss : float
        Mean cross-entropy over the examples.
    accuracy : float
        Share of examples classified correctly, in [0, 1].
    saturated : list of float
        For each hidden layer, share of saturated inputs to its nonlinearity, over examples, units and positions.
    percentiles : ndarray of shape (3, units), float32
        15th, 50th and 85th percentile of the inputs to each unit of the last hidden layer, over examples and positions.
    """

    loss: float
    accuracy: float
    saturated: list[float]
    percentiles: NDArray[np.float32]


@contextmanager
def recorded_inputs(modules: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Record the input of each module at every call inside the ``with`` block.

    Parameters
    ----------
    modules : sequence of Module
        Modules with one positional argument. Their hooks are removed at the end of the block, whatever ends it.

    Yields
    ------
    list of list of Tensor
        For each module, its inputs in the order of the calls, as they were handed over (detached, not copied).
    """
    inputs: list[list[Tensor]] = [[] for _ in modules]

    def recorder(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, arguments: into.append(arguments[0].detach())

    handles = [module.register_forward_pre_hook(recorder(into)) for module, into in zip(modules, inputs, strict=True)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def evaluate(network: Network, x: Tensor, y: Tensor, chunk: int = 200) -> Evaluation:
    """Measure a network in evaluation mode, and leave it in the mode it came in.

    Parameters
    ----------
    network : Network
        The network.
    x : Tensor of shape (N, C, H, W)
        Images.
    y : Tensor of shape (N,), int64
        Their classes.
    chunk : int
        Images that go through the network at once. It bounds the memory and does not change what is measured: counts
        are added up, and the percentiles are taken over all images together.

    Returns
    -------
    Evaluation
        What was measured.
    """
    loss = 0.0
    correct = 0
    saturated = np.zeros(len(network.nonlinearities))
    values = np.zeros(len(network.nonlinearities))
    last_layer: list[Tensor] = []
    training = network.training
    network.eval()
    try:
        for chunk_x, chunk_y in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
            with torch.no_grad(), recorded_inputs(network.nonlinearities) as inputs:
                logits = network(chunk_x)
            loss += nn.functional.cross_entropy(logits, chunk_y, reduction="sum").item()
            correct += int((logits.argmax(1) == chunk_y).sum())
            for layer, (u,) in enumerate(inputs):
                saturated[layer] += int(SATURATED[network.activation](u).sum())
                values[layer] += u.numel()
            last_layer.append(inputs[-1][0])
    finally:
        network.train(training)
    return Evaluation(
        loss / len(x), correct / len(x), (saturated / values).tolist(), percentiles(torch.cat(last_layer))
    )


def training_loss(network: Network, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy of one mini-batch in training mode, without training on it.

    Taken on a copy, as batch normalization would count the mini-batch into its running statistics.

    Parameters
    ----------
    network : Network
        The network.
    x : Tensor of shape (N, C, H, W)
        Images.
    y : Tensor of shape (N,), int64
        Their classes.

    Returns
    -------
    float
        The loss.
    """
    with torch.no_grad():
        return nn.functional.cross_entropy(copy.deepcopy(network).train()(x), y).item()


def percentiles(u: Tensor) -> NDArray[np.float32]:
    """15th, 50th and 85th percentile of the values of each unit, interpolated linearly.

    Parameters
    ----------
    u : Tensor of shape (N, units) or (N, channels, *)
        Inputs to a nonlinearity; a channel is a unit.

    Returns
    -------
    ndarray of shape (3, units), float32
        NaN for a unit with a NaN among its values.
    """
    by_unit = u.flatten(2) if u.dim() > 2 else u.unsqueeze(2)  # (N, units, positions)
    by_unit = by_unit.transpose(0, 1).flatten(1)  # (units, N*positions)
    with np.errstate(invalid="ignore"):  # inf - inf, when interpolating in a network that diverges
        found: NDArray[np.float32] = np.percentile(by_unit.numpy(), PERCENTILES, axis=1)
    return found.astype(np.float32)
