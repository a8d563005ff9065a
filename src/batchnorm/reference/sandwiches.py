"""Layers that come together so often that they deserve one name. Nothing new is computed here.

A forward calls its layers in order and keeps their caches in a tuple; a backward calls theirs in the opposite order.
The normalization stands between the layer and the activation, where the paper puts it (section 3.2). ``layer_weight``
and ``layer_bias`` belong to the linear layer or convolution, ``weight`` and ``bias`` to the normalization.
"""

from typing import NamedTuple

from numpy.typing import ArrayLike

from batchnorm.reference import batch_norm
from batchnorm.reference._checks import Array
from batchnorm.reference.convolution import (
    ConvCache,
    PoolCache,
    Size,
    conv2d_backward,
    conv2d_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from batchnorm.reference.layers import (
    ActivationCache,
    LayerGradients,
    LinearCache,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
)

#: ``running_mean`` and ``running_var``, each of shape (C,): given at test time. None: the batch's own are used.
Running = tuple[ArrayLike, ArrayLike]


class NormalizedGradients(NamedTuple):
    """Gradients with respect to the arguments of a sandwich with a normalization.

    Attributes
    ----------
    dx : ndarray of the shape of ``x``
    dlayer_weight : ndarray of the shape of ``layer_weight``
    dlayer_bias : ndarray of shape (C,)
        In training it is 0 up to rounding: the normalization subtracts whatever the bias adds.
    dweight, dbias : ndarray of shape (C,)
    """

    dx: Array
    dlayer_weight: Array
    dlayer_bias: Array
    dweight: Array
    dbias: Array


def linear_relu_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None
) -> tuple[Array, tuple[LinearCache, ActivationCache]]:
    """Apply linear, then relu.

    Parameters
    ----------
    x : array_like of shape (N, *D)
        The batch.
    weight : array_like of shape (out, in)
        The matrix; ``in`` is the product of D.
    bias : array_like of shape (out,), optional
        Default: 0.

    Returns
    -------
    y : ndarray of shape (N, out)
        The output.
    cache : (LinearCache, ActivationCache)
        For `linear_relu_backward`.

    Raises
    ------
    ValueError
        A shape that does not fit.
    """
    z, linear_cache = linear_forward(x, weight, bias)
    y, relu_cache = relu_forward(z)
    return y, (linear_cache, relu_cache)


def linear_relu_backward(dy: ArrayLike, cache: tuple[LinearCache, ActivationCache]) -> LayerGradients:
    """Backward of `linear_relu_forward`, last layer first.

    Parameters
    ----------
    dy : array_like of shape (N, out)
        Gradient of the loss with respect to the output.
    cache : (LinearCache, ActivationCache)
        From `linear_relu_forward`.

    Returns
    -------
    LayerGradients
        dx, dweight, dbias.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    linear_cache, relu_cache = cache
    return linear_backward(relu_backward(dy, relu_cache), linear_cache)


def linear_bn_relu_forward(
    x: ArrayLike,
    layer_weight: ArrayLike,
    layer_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    running: Running | None = None,
    eps: float = 1e-5,
) -> tuple[Array, tuple[LinearCache, batch_norm.Cache]]:
    """Apply linear, then batch normalization, then relu.

    Parameters
    ----------
    x : array_like of shape (N, *D)
        The batch.
    layer_weight : array_like of shape (C, in)
        Of the linear layer.
    layer_bias : array_like of shape (C,), optional
        Of the linear layer. The normalization makes it superfluous. Default: 0.
    weight, bias : array_like of shape (C,), optional
        Of the normalization. Default: 1 and 0.
    running : (running_mean, running_var), optional
        Given at test time. Default: the statistics of the batch, which the cache then has for the running update.
    eps : float, default=1e-5
        Added to the variance inside the root.

    Returns
    -------
    y : ndarray of shape (N, C)
        The output.
    cache : (LinearCache, batch_norm.Cache)
        For `linear_bn_relu_backward`.

    Raises
    ------
    ValueError
        What `layers.linear_forward` and `batch_norm.forward_train` raise.
    """
    z, linear_cache = linear_forward(x, layer_weight, layer_bias)
    y, norm_cache = _normalize_relu(z, weight, bias, running, eps)
    return y, (linear_cache, norm_cache)


def linear_bn_relu_backward(dy: ArrayLike, cache: tuple[LinearCache, batch_norm.Cache]) -> NormalizedGradients:
    """Backward of `linear_bn_relu_forward`, last layer first.

    Parameters
    ----------
    dy : array_like of shape (N, C)
        Gradient of the loss with respect to the output.
    cache : (LinearCache, batch_norm.Cache)
        From `linear_bn_relu_forward`.

    Returns
    -------
    NormalizedGradients
        dx, dlayer_weight, dlayer_bias, dweight, dbias; in the mode of the forward.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    linear_cache, norm_cache = cache
    norm = _normalize_backward(dy, norm_cache)
    layer = linear_backward(norm.dx, linear_cache)
    return NormalizedGradients(*layer, norm.dweight, norm.dbias)


def conv_relu_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, stride: Size = 1, padding: Size = 0
) -> tuple[Array, tuple[ConvCache, ActivationCache]]:
    """Apply convolution, then relu.

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images.
    weight : array_like of shape (O, C, KH, KW)
        The kernel.
    bias : array_like of shape (O,), optional
        Default: 0.
    stride, padding : int or (int, int), default=1 and 0
        Of the convolution.

    Returns
    -------
    y : ndarray of shape (N, O, H', W')
        The output.
    cache : (ConvCache, ActivationCache)
        For `conv_relu_backward`.

    Raises
    ------
    ValueError
        What `convolution.conv2d_forward` raises.
    """
    z, conv_cache = conv2d_forward(x, weight, bias, stride=stride, padding=padding)
    y, relu_cache = relu_forward(z)
    return y, (conv_cache, relu_cache)


def conv_relu_backward(dy: ArrayLike, cache: tuple[ConvCache, ActivationCache]) -> LayerGradients:
    """Backward of `conv_relu_forward`, last layer first.

    Parameters
    ----------
    dy : array_like of shape (N, O, H', W')
        Gradient of the loss with respect to the output.
    cache : (ConvCache, ActivationCache)
        From `conv_relu_forward`.

    Returns
    -------
    LayerGradients
        dx, dweight, dbias.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    conv_cache, relu_cache = cache
    return conv2d_backward(relu_backward(dy, relu_cache), conv_cache)


def conv_relu_pool_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    kernel: Size = 2,
) -> tuple[Array, tuple[tuple[ConvCache, ActivationCache], PoolCache]]:
    """Apply convolution, then relu, then max pooling.

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images.
    weight : array_like of shape (O, C, KH, KW)
        The kernel.
    bias : array_like of shape (O,), optional
        Default: 0.
    stride, padding : int or (int, int), default=1 and 0
        Of the convolution.
    kernel : int or (int, int), default=2
        Of the pooling, whose windows do not overlap.

    Returns
    -------
    y : ndarray of shape (N, O, H'', W'')
        The output.
    cache : ((ConvCache, ActivationCache), PoolCache)
        For `conv_relu_pool_backward`.

    Raises
    ------
    ValueError
        What `convolution.conv2d_forward` and `convolution.max_pool2d_forward` raise.
    """
    z, conv_relu_cache = conv_relu_forward(x, weight, bias, stride=stride, padding=padding)
    y, pool_cache = max_pool2d_forward(z, kernel=kernel)
    return y, (conv_relu_cache, pool_cache)


def conv_relu_pool_backward(
    dy: ArrayLike, cache: tuple[tuple[ConvCache, ActivationCache], PoolCache]
) -> LayerGradients:
    """Backward of `conv_relu_pool_forward`, last layer first.

    Parameters
    ----------
    dy : array_like of shape (N, O, H'', W'')
        Gradient of the loss with respect to the output.
    cache : ((ConvCache, ActivationCache), PoolCache)
        From `conv_relu_pool_forward`.

    Returns
    -------
    LayerGradients
        dx, dweight, dbias.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    conv_relu_cache, pool_cache = cache
    return conv_relu_backward(max_pool2d_backward(dy, pool_cache), conv_relu_cache)


def conv_bn_relu_forward(
    x: ArrayLike,
    layer_weight: ArrayLike,
    layer_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    running: Running | None = None,
    eps: float = 1e-5,
    stride: Size = 1,
    padding: Size = 0,
) -> tuple[Array, tuple[ConvCache, batch_norm.Cache]]:
    """Apply convolution, then batch normalization per channel, then relu.

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images.
    layer_weight : array_like of shape (O, C, KH, KW)
        Of the convolution.
    layer_bias : array_like of shape (O,), optional
        Of the convolution. The normalization makes it superfluous. Default: 0.
    weight, bias : array_like of shape (O,), optional
        Of the normalization. Default: 1 and 0.
    running : (running_mean, running_var), optional
        Given at test time. Default: the statistics of the batch, which the cache then has for the running update.
    eps : float, default=1e-5
        Added to the variance inside the root.
    stride, padding : int or (int, int), default=1 and 0
        Of the convolution.

    Returns
    -------
    y : ndarray of shape (N, O, H', W')
        The output.
    cache : (ConvCache, batch_norm.Cache)
        For `conv_bn_relu_backward`.

    Raises
    ------
    ValueError
        What `convolution.conv2d_forward` and `batch_norm.forward_train` raise.
    """
    z, conv_cache = conv2d_forward(x, layer_weight, layer_bias, stride=stride, padding=padding)
    y, norm_cache = _normalize_relu(z, weight, bias, running, eps)
    return y, (conv_cache, norm_cache)


def conv_bn_relu_backward(dy: ArrayLike, cache: tuple[ConvCache, batch_norm.Cache]) -> NormalizedGradients:
    """Backward of `conv_bn_relu_forward`, last layer first.

    Parameters
    ----------
    dy : array_like of shape (N, O, H', W')
        Gradient of the loss with respect to the output.
    cache : (ConvCache, batch_norm.Cache)
        From `conv_bn_relu_forward`.

    Returns
    -------
    NormalizedGradients
        dx, dlayer_weight, dlayer_bias, dweight, dbias; in the mode of the forward.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    conv_cache, norm_cache = cache
    norm = _normalize_backward(dy, norm_cache)
    layer = conv2d_backward(norm.dx, conv_cache)
    return NormalizedGradients(*layer, norm.dweight, norm.dbias)


def _normalize_relu(
    z: Array, weight: ArrayLike | None, bias: ArrayLike | None, running: Running | None, eps: float
) -> tuple[Array, batch_norm.Cache]:
    if running is None:
        return batch_norm.forward_train(z, weight, bias, eps=eps, activation="relu")
    return batch_norm.forward_test(z, *running, weight, bias, eps=eps, activation="relu")


def _normalize_backward(dy: ArrayLike, cache: batch_norm.Cache) -> batch_norm.Gradients:
    return (batch_norm.backward if cache.training else batch_norm.backward_test)(dy, cache)
