"""The two losses of classification, each with its gradient. Equation numbers: ``DERIVATION_3_NETWORKS.md``.

A loss is the end of the graph, so forward and backward are one function: ``(loss, dx)``. Both take scores, not
probabilities: the exponential and the logarithm cancel on paper, and only there. Nothing here overflows, and a loss of
1e-20 is 1e-20 and not 0.
"""

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, with_shape
from batchnorm.reference.activations import get_activation


def softmax(x: ArrayLike) -> Array:
    """Turn scores into probabilities.

    Parameters
    ----------
    x : array_like of shape (N, K)
        Scores of K classes. Adding a number to all scores of a sample changes nothing.

    Returns
    -------
    ndarray of shape (N, K)
        Rows sum to 1.

    Raises
    ------
    ValueError
        ``x`` does not have shape (N, K) with K at least 1.
    """
    x = _scores(x)
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))  # (98)


def softmax_cross_entropy(x: ArrayLike, y: ArrayLike) -> tuple[float, Array]:
    r"""Mean over the samples of minus the log probability of the right class.

    .. math:: L = -\frac1N \sum_n \log p_{n, y_n}, \qquad p = \text{softmax}(x)

    Parameters
    ----------
    x : array_like of shape (N, K)
        Scores.
    y : array_like of shape (N,), int
        The right class of each sample, from 0 to K - 1.

    Returns
    -------
    loss : float
        At scores that are all alike it is ``log(K)``: what an untrained network should show.
    dx : ndarray of shape (N, K)
        Gradient of the loss with respect to the scores.

    Raises
    ------
    ValueError
        Shapes that do not fit, an empty batch, or a class that is not an integer from 0 to K - 1.

    Examples
    --------
    >>> loss, dx = softmax_cross_entropy([[0.0, 0.0]], [1])
    >>> round(loss, 4), dx.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    x = _scores(x)
    samples, classes = x.shape
    labels = np.asarray(y)
    if samples == 0 or labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"y must hold one integer for each of the {samples} samples of x, at least one, but has shape "
            f"{labels.shape} and dtype {labels.dtype}. Try y.argmax(axis=1) if it is one-hot."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"y must be from 0 to {classes - 1}, but goes from {labels.min()} to {labels.max()}. Try y - y.min()."
        )
    each = np.arange(samples)
    largest = x.argmax(axis=1)
    shifted = x - x[each, largest, None]
    others = np.exp(shifted)
    others[each, largest] = 0.0
    # The largest term is exp(0) = 1 and stays apart, so that log1p keeps what is small against it.
    loss = np.mean(np.log1p(others.sum(axis=1)) - shifted[each, labels])  # (99)
    dx = softmax(x)
    dx[each, labels] = 0.0
    dx[each, labels] = -dx.sum(axis=1)  # p - 1, without the subtraction
    return float(loss), dx / samples  # (100)


def sigmoid_cross_entropy(x: ArrayLike, y: ArrayLike) -> tuple[float, Array]:
    r"""Mean over all elements of the two-class loss, from scores.

    .. math:: L = -\langle t \log S(x) + (1 - t) \log S(-x) \rangle

    Parameters
    ----------
    x : array_like of any shape
        Scores: the input of the sigmoid, not its output.
    y : array_like of the shape of ``x``
        Targets t in [0, 1]; usually 0 or 1.

    Returns
    -------
    loss : float
        At scores of 0 it is ``log(2)``.
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the scores.

    Raises
    ------
    ValueError
        Shapes that differ, an empty batch, or a target outside [0, 1].

    Examples
    --------
    >>> loss, dx = sigmoid_cross_entropy([0.0, 0.0], [1.0, 0.0])
    >>> round(loss, 4), dx.tolist()
    (0.6931, [-0.25, 0.25])
    """
    x = as_float(x)
    targets = with_shape("y", y, x.shape, "x")
    if x.size == 0 or not np.all((targets >= 0) & (targets <= 1)):
        raise ValueError(
            f"there must be at least one target and all must be in [0, 1], but there are {x.size}, from "
            f"{targets.min(initial=np.inf)} to {targets.max(initial=-np.inf)}. Try (y + 1) / 2 for targets of -1 and 1."
        )
    sigmoid = get_activation("sigmoid").function
    decay = np.log1p(np.exp(-np.abs(x)))
    loss = np.mean(targets * np.maximum(-x, 0.0) + (1.0 - targets) * np.maximum(x, 0.0) + decay)  # (101)
    dx = ((1.0 - targets) * sigmoid(x) - targets * sigmoid(-x)) / x.size  # (102)
    return float(loss), dx


def _scores(x: ArrayLike) -> Array:
    scores = as_float(x)
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"x must have shape (N, K), one score per class, but has shape {scores.shape}. Try x[None].")
    return scores
