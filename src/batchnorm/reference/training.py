"""The loop that trains a network of `networks`: small enough to hold in mind."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference import optimizers
from batchnorm.reference._checks import RandomSource, as_float
from batchnorm.reference.networks import Network
from batchnorm.reference.schedules import Schedule


class History(NamedTuple):
    """What was seen while training.

    Attributes
    ----------
    loss : list of float
        Of each step's batch, with the penalty.
    accuracy : list of float
        On the training set, after each epoch, at test time.
    validation_accuracy : list of float
        On the validation set; empty if there is none.
    """

    loss: list[float]
    accuracy: list[float]
    validation_accuracy: list[float]


def train(
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    *,
    epochs: int,
    batch_size: int,
    lr: float | Schedule,
    generator: RandomSource | None = None,
    rule: optimizers.Rule = optimizers.sgd,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    network : Network
        Its parameters and running statistics change.
    x, y : array_like, N samples on axis 0
        The training set.
    epochs : int
        Passes over it.
    batch_size : int
        Samples per step. A last batch that would be smaller is left out: statistics of few samples are poor.
    lr : float or callable
        Learning rate, or a schedule from the step (counted from 0) to it.
    generator : numpy.random.Generator or numpy.random.RandomState, optional
        Where the order of each epoch is drawn from. Default: the order of ``x``.
    rule : callable, default=optimizers.sgd
        The update rule.
    validation : (x, y), optional
        Samples that are not trained on.

    Returns
    -------
    History
        Loss of each step, accuracies after each epoch.

    Raises
    ------
    ValueError
        A batch size below 1 or above N, not N targets, or what the network raises.
    """
    x, y = as_float(x), np.asarray(y)
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be from 1 to {len(x)}, the samples of x, but is {batch_size}. Try {len(x)}.")
    if len(y) != len(x):
        raise ValueError(f"y must have one target per sample, {len(x)}, but has {len(y)}. Try to check its axes.")
    history, states, step = History([], [], []), dict.fromkeys(network.parameters), 0
    for _ in range(epochs):
        order = np.arange(len(x)) if generator is None else np.asarray(generator.permutation(len(x)))
        for first in range(0, len(x) - batch_size + 1, batch_size):
            batch = order[first : first + batch_size]
            loss, gradients = network.loss(x[batch], y[batch])
            rate = lr(step) if callable(lr) else lr
            for name, w in network.parameters.items():
                network.parameters[name], states[name] = rule(w, gradients[name], states[name], lr=rate)
            history.loss.append(loss)
            step += 1
        history.accuracy.append(accuracy(network, x, y))
        if validation is not None:
            history.validation_accuracy.append(accuracy(network, *validation))
    return history


def accuracy(network: Network, x: ArrayLike, y: ArrayLike) -> float:
    """Return the share of samples whose class is predicted right, at test time.

    Parameters
    ----------
    network : Network
        It is not changed.
    x : array_like of shape (N, *D)
        The samples.
    y : array_like of shape (N,) or (N, 1)
        The class of each.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        What the network raises.
    """
    return float(np.mean(network.predict(x) == np.asarray(y).reshape(-1)))
