"""Layers without space: linear, the activations, flatten. Equation numbers: ``DERIVATION_3_NETWORKS.md``.

Every layer is a pair of functions: ``name_forward(x, ...) -> (y, cache)`` and ``name_backward(dy, cache)``, which
returns the gradient of each argument. Convolution and pooling are in `convolution`, several layers in a row in
`sandwiches`, batch normalization in `batch_norm`.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, with_shape
from batchnorm.reference.activations import get_activation


class LinearCache(NamedTuple):
    """What `linear_backward` needs.

    Attributes
    ----------
    x : ndarray of shape (N, *D)
        The input, not flattened.
    weight : ndarray of shape (out, in)
        The matrix.
    """

    x: Array
    weight: Array


class ActivationCache(NamedTuple):
    """What the backward of an activation needs.

    Attributes
    ----------
    x : ndarray
        The input.
    activation : str or None
        Name of the activation.
    """

    x: Array
    activation: str | None


class LayerGradients(NamedTuple):
    """Gradients with respect to the arguments of a layer that has parameters.

    Attributes
    ----------
    dx : ndarray of the shape of ``x``
    dweight : ndarray of the shape of ``weight``
    dbias : ndarray of shape (out,)
    """

    dx: Array
    dweight: Array
    dbias: Array


def linear_forward(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> tuple[Array, LinearCache]:
    r"""Multiply each sample by a matrix and add a vector.

    .. math:: y = x W^T + b

    Parameters
    ----------
    x : array_like of shape (N, *D)
        The batch. More than one axis after the first is flattened, so that an image may enter as it is.
    weight : array_like of shape (out, in)
        The matrix, output first as in torch; ``in`` is the product of D. Course notes often have its transpose.
    bias : array_like of shape (out,), optional
        Default: 0.

    Returns
    -------
    y : ndarray of shape (N, out)
        The output.
    cache : LinearCache
        For `linear_backward`.

    Raises
    ------
    ValueError
        A shape that does not fit.

    Examples
    --------
    >>> y, cache = linear_forward([[1.0, 2.0]], weight=[[3.0, 4.0], [5.0, 6.0], [0.0, 0.0]], bias=[0.5, 0.0, 0.0])
    >>> y.tolist()
    [[11.5, 17.0, 0.0]]
    """
    x, weight = as_float(x), as_float(weight)
    features = math.prod(x.shape[1:])
    if x.ndim < 2 or weight.ndim != 2 or weight.shape[1] != features:
        raise ValueError(
            f"weight must have shape (out, {features}), one column per value of a sample of x, but x has shape "
            f"{x.shape} and weight {weight.shape}. Try weight.T if it is stored (in, out)."
        )
    outputs = len(weight)
    bias = np.zeros(outputs) if bias is None else with_shape("bias", bias, (outputs,), "the rows of weight")
    y = x.reshape(len(x), features) @ weight.T + bias  # (88)
    return y, LinearCache(x, weight)


def linear_backward(dy: ArrayLike, cache: LinearCache) -> LayerGradients:
    """Backward of `linear_forward`.

    Parameters
    ----------
    dy : array_like of shape (N, out)
        Gradient of the loss with respect to the output.
    cache : LinearCache
        From `linear_forward`.

    Returns
    -------
    LayerGradients
        dx in the shape of ``x``, dweight, dbias.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    x, weight = cache
    dy = with_shape("dy", dy, (len(x), len(weight)), "the output")
    dx = dy @ weight  # (89)
    dweight = dy.T @ x.reshape(len(x), weight.shape[1])  # (90)
    dbias = dy.sum(axis=0)  # (91)
    return LayerGradients(dx.reshape(x.shape), dweight, dbias)


def activation_forward(x: ArrayLike, activation: str | None) -> tuple[Array, ActivationCache]:
    """Apply an activation by its name.

    Parameters
    ----------
    x : array_like of any shape
        The input.
    activation : str or None
        A name known to `activations.get_activation`. None is the identity.

    Returns
    -------
    y : ndarray of the shape of ``x``
        The output.
    cache : ActivationCache
        For `activation_backward`.

    Raises
    ------
    ValueError
        An unknown name.
    """
    x = as_float(x)
    return get_activation(activation).function(x), ActivationCache(x, activation)  # (10)


def activation_backward(dy: ArrayLike, cache: ActivationCache) -> Array:
    """Backward of `activation_forward`: ``dy`` times the derivative at the input.

    Parameters
    ----------
    dy : array_like of the shape of ``x``
        Gradient of the loss with respect to the output.
    cache : ActivationCache
        From the forward.

    Returns
    -------
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of ``x``.
    """
    dy = with_shape("dy", dy, cache.x.shape, "x")
    return dy * get_activation(cache.activation).derivative(cache.x)  # (12)


def relu_forward(x: ArrayLike) -> tuple[Array, ActivationCache]:
    """Apply ``max(x, 0)`` (35).

    Parameters
    ----------
    x : array_like of any shape
        The input.

    Returns
    -------
    y : ndarray of the shape of ``x``
        Not negative.
    cache : ActivationCache
        For the backward.
    """
    return activation_forward(x, "relu")


def relu_backward(dy: ArrayLike, cache: ActivationCache) -> Array:
    """Backward of `relu_forward`: ``dy`` where ``x > 0``, else 0.

    Parameters
    ----------
    dy : array_like of the shape of ``x``
        Gradient of the loss with respect to the output.
    cache : ActivationCache
        From the forward.

    Returns
    -------
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of ``x``.
    """
    return activation_backward(dy, cache)


def sigmoid_forward(x: ArrayLike) -> tuple[Array, ActivationCache]:
    """Apply ``1 / (1 + exp(-x))`` (37), without overflow.

    Parameters
    ----------
    x : array_like of any shape
        The input.

    Returns
    -------
    y : ndarray of the shape of ``x``
        From 0 to 1.
    cache : ActivationCache
        For the backward.
    """
    return activation_forward(x, "sigmoid")


def sigmoid_backward(dy: ArrayLike, cache: ActivationCache) -> Array:
    """Backward of `sigmoid_forward`: ``dy * y * (1 - y)``, without the subtraction.

    Parameters
    ----------
    dy : array_like of the shape of ``x``
        Gradient of the loss with respect to the output.
    cache : ActivationCache
        From the forward.

    Returns
    -------
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of ``x``.
    """
    return activation_backward(dy, cache)


def tanh_forward(x: ArrayLike) -> tuple[Array, ActivationCache]:
    """Apply ``tanh`` (38).

    Parameters
    ----------
    x : array_like of any shape
        The input.

    Returns
    -------
    y : ndarray of the shape of ``x``
        From -1 to 1.
    cache : ActivationCache
        For the backward.
    """
    return activation_forward(x, "tanh")


def tanh_backward(dy: ArrayLike, cache: ActivationCache) -> Array:
    """Backward of `tanh_forward`: ``dy * (1 - y**2)``, without the subtraction.

    Parameters
    ----------
    dy : array_like of the shape of ``x``
        Gradient of the loss with respect to the output.
    cache : ActivationCache
        From the forward.

    Returns
    -------
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of ``x``.
    """
    return activation_backward(dy, cache)


def flatten_forward(x: ArrayLike) -> tuple[Array, tuple[int, ...]]:
    """Put all values of a sample into one row.

    Parameters
    ----------
    x : array_like of shape (N, *D)
        The batch.

    Returns
    -------
    y : ndarray of shape (N, prod(D))
        The rows.
    cache : tuple of int
        The shape of ``x``, for `flatten_backward`.

    Raises
    ------
    ValueError
        ``x`` has no axis of samples.
    """
    x = as_float(x)
    if x.ndim < 1:
        raise ValueError(f"x must have samples on axis 0, but has shape {x.shape}. Try x[None].")
    return x.reshape(len(x), math.prod(x.shape[1:])), x.shape


def flatten_backward(dy: ArrayLike, cache: tuple[int, ...]) -> Array:
    """Backward of `flatten_forward`: the rows in the shape of the input.

    Parameters
    ----------
    dy : array_like of shape (N, prod(D))
        Gradient of the loss with respect to the output.
    cache : tuple of int
        From `flatten_forward`.

    Returns
    -------
    dx : ndarray of shape (N, *D)
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    return with_shape("dy", dy, (cache[0], math.prod(cache[1:])), "the output").reshape(cache)
