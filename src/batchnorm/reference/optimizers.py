"""Update rules, as pure functions ``(w, dw, state) -> (w, state)``. ``DERIVATION_4_DESCENT.md``, section 22.

``w`` is not changed: the result is new. The state is None before the first step; pass what the last step returned.
All rules agree with ``torch.optim`` at its settings of the same names, ``eps`` outside the root included.

The ``momentum`` of an optimizer is the weight of the *old* velocity, as in torch.optim; that of the running statistics
(`statistics`) is the weight of the *new* batch, as in torch.nn. One word, two opposite meanings, in one library.

References
----------
Polyak 1964: momentum. Sutskever et al. 2013: the form of Nesterov's here. Duchi, Hazan and Singer 2011: AdaGrad.
Tieleman and Hinton 2012, lecture 6.5: RMSProp. Kingma and Ba 2015, "Adam", arXiv:1412.6980.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, with_shape


class Rule(Protocol):
    """What the functions of this module have in common: with it `descent` and `networks` take any of them."""

    def __call__(self, w: ArrayLike, dw: ArrayLike, state: Any = None, *, lr: float) -> tuple[Array, Any]:
        """Take one step."""


class AdamState(NamedTuple):
    """What Adam remembers.

    Attributes
    ----------
    first : ndarray of the shape of ``w``
        Running average of the gradient; not corrected.
    second : ndarray of the shape of ``w``
        Running average of its square; not corrected.
    step : int
        Steps taken: 1 after the first, which is the t of its correction.
    """

    first: Array
    second: Array
    step: int


def sgd(w: ArrayLike, dw: ArrayLike, state: None = None, *, lr: float = 1e-2) -> tuple[Array, None]:
    """Step against the gradient.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters, and the gradient of the loss with respect to them.
    state : None
        There is none.
    lr : float, default=1e-2
        Learning rate.

    Returns
    -------
    w : ndarray
        After the step.
    state : None
        For the next step.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.

    Examples
    --------
    >>> w, state = sgd([1.0], [4.0], lr=0.1)
    >>> w.tolist()
    [0.6]
    """
    w, dw = _pair(w, dw)
    return w - lr * dw, state  # (131)


def momentum(
    w: ArrayLike, dw: ArrayLike, state: Array | None = None, *, lr: float = 1e-2, momentum: float = 0.9
) -> tuple[Array, Array]:
    """Step along a velocity that remembers former gradients.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters and gradient.
    state : ndarray, optional
        The velocity. Default: 0.
    lr : float, default=1e-2
        Learning rate. It enters the velocity, so a change of it does not rescale former steps; in torch.optim it
        does. For a constant rate the two are the same.
    momentum : float, default=0.9
        Weight of the old velocity. 0 is `sgd`.

    Returns
    -------
    w : ndarray
        After the step.
    state : ndarray
        The velocity: the step that was taken, which points downhill.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.

    Examples
    --------
    >>> w, velocity = momentum([1.0], [4.0], lr=0.1)
    >>> w, velocity = momentum(w, [4.0], velocity, lr=0.1)
    >>> w.round(3).tolist(), velocity.round(3).tolist()
    ([-0.16], [-0.76])
    """
    w, dw = _pair(w, dw)
    velocity = momentum * _or_zero(state, w) - lr * dw  # (132)
    return w + velocity, velocity  # (133)


def nesterov(
    w: ArrayLike, dw: ArrayLike, state: Array | None = None, *, lr: float = 1e-2, momentum: float = 0.9
) -> tuple[Array, Array]:
    """Momentum that looks ahead: the gradient counts as if taken where the velocity is about to lead.

    ``w`` is the point looked ahead at, so the gradient is taken at ``w`` as in any other rule.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters and gradient.
    state : ndarray, optional
        The velocity. Default: 0.
    lr : float, default=1e-2
        Learning rate; it enters the velocity, as in `momentum`.
    momentum : float, default=0.9
        Weight of the old velocity. 0 is `sgd`.

    Returns
    -------
    w : ndarray
        After the step, ``(1 + momentum) * velocity - momentum * former_velocity``.
    state : ndarray
        The velocity.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.
    """
    w, dw = _pair(w, dw)
    former = _or_zero(state, w)
    velocity = momentum * former - lr * dw  # (132)
    return w + (1.0 + momentum) * velocity - momentum * former, velocity  # (134)


def adagrad(
    w: ArrayLike, dw: ArrayLike, state: Array | None = None, *, lr: float = 1e-2, eps: float = 1e-10
) -> tuple[Array, Array]:
    """Divide each step by the root of the sum of all former squared gradients.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters and gradient.
    state : ndarray, optional
        Sum of squares. Default: 0.
    lr : float, default=1e-2
        Learning rate. Under a constant gradient step t has length ``lr / sqrt(t)``: the sum never shrinks.
    eps : float, default=1e-10
        Added to the root, outside.

    Returns
    -------
    w : ndarray
        After the step.
    state : ndarray
        The sum with this step's square.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.
    """
    w, dw = _pair(w, dw)
    total = _or_zero(state, w) + dw**2  # (135)
    return w - lr * dw / (np.sqrt(total) + eps), total  # (137)


def rmsprop(
    w: ArrayLike,
    dw: ArrayLike,
    state: Array | None = None,
    *,
    lr: float = 1e-2,
    decay: float = 0.99,
    eps: float = 1e-8,
) -> tuple[Array, Array]:
    """Divide each step by the root of a running average of squared gradients.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters and gradient.
    state : ndarray, optional
        The average. Default: 0, which makes the first steps long: ``lr / sqrt(1 - decay)`` for the first.
    lr : float, default=1e-2
        Learning rate.
    decay : float, default=0.99
        Weight of the old average; torch's alpha. At 0 only the sign of the gradient is left, which is not AdaGrad.
    eps : float, default=1e-8
        Added to the root, outside. Inside, as in TensorFlow's first version, is another rule where gradients are small.

    Returns
    -------
    w : ndarray
        After the step.
    state : ndarray
        The average with this step's square.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.
    """
    w, dw = _pair(w, dw)
    average = decay * _or_zero(state, w) + (1.0 - decay) * dw**2  # (136)
    return w - lr * dw / (np.sqrt(average) + eps), average  # (137)


def adam(
    w: ArrayLike,
    dw: ArrayLike,
    state: AdamState | None = None,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[Array, AdamState]:
    """Momentum over the root of squares, both averages corrected for having started at 0.

    Parameters
    ----------
    w, dw : array_like of one shape
        Parameters and gradient.
    state : AdamState, optional
        Default: averages of 0 and no step taken.
    lr : float, default=1e-3
        Learning rate: the length of the first step in every coordinate, whatever the gradient.
    beta1, beta2 : float, default=0.9 and 0.999
        Weights of the old averages.
    eps : float, default=1e-8
        Added to the root of the corrected average, outside.

    Returns
    -------
    w : ndarray
        After the step.
    state : AdamState
        For the next step.

    Raises
    ------
    ValueError
        ``dw`` does not have the shape of ``w``.

    Examples
    --------
    >>> w, state = adam([1.0, 1.0], [1e-3, -1e3], lr=0.1)
    >>> w.round(4).tolist(), state.step
    ([0.9, 1.1], 1)
    """
    w, dw = _pair(w, dw)
    first, second, step = (None, None, 0) if state is None else state
    step = step + 1
    first = beta1 * _or_zero(first, w) + (1.0 - beta1) * dw  # (138)
    second = beta2 * _or_zero(second, w) + (1.0 - beta2) * dw**2  # (139)
    corrected_first = first / (1.0 - beta1**step)  # (140)
    corrected_second = second / (1.0 - beta2**step)  # (140)
    w = w - lr * corrected_first / (np.sqrt(corrected_second) + eps)  # (141)
    return w, AdamState(first, second, step)


def _pair(w: ArrayLike, dw: ArrayLike) -> tuple[Array, Array]:
    w = as_float(w)
    return w, with_shape("dw", dw, w.shape, "w")


def _or_zero(state: Array | None, w: Array) -> Array:
    return np.zeros_like(w) if state is None else with_shape("state", state, w.shape, "w")
