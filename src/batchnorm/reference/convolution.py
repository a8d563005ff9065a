"""Convolution and max pooling in two dimensions. Equation numbers: ``DERIVATION_3_NETWORKS.md``.

Both look at windows of the image. A convolution multiplies each window by the same matrix, so it *is* the linear layer
on a table with one row per window; a pooling takes the largest value of each window.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, with_shape
from batchnorm.reference.layers import LayerGradients
from batchnorm.reference.statistics import from_rows, to_rows

#: A square's side, or (height, width).
Size = int | tuple[int, int]


class ConvCache(NamedTuple):
    """What `conv2d_backward` needs.

    Attributes
    ----------
    columns : ndarray of shape (N, H', W', C, KH, KW)
        The window under each output position.
    weight : ndarray of shape (O, C, KH, KW)
        The kernel.
    shape : tuple of int
        That of ``x``.
    stride, padding : tuple of int
        Vertical, horizontal.
    """

    columns: Array
    weight: Array
    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]


class PoolCache(NamedTuple):
    """What `max_pool2d_backward` needs.

    Attributes
    ----------
    winner : ndarray of shape (N, C, H', W'), int
        Index of the largest value in each window, rows first; of the first one if several are equal.
    shape : tuple of int
        That of ``x``.
    kernel, stride : tuple of int
        Vertical, horizontal.
    """

    winner: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    shape: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]


def conv2d_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, stride: Size = 1, padding: Size = 0
) -> tuple[Array, ConvCache]:
    r"""Slide a kernel over each image; sum the products at each position (a correlation: nothing is flipped).

    .. math:: y_{n,o,i,j} = b_o + \sum_{c,k,l} W_{o,c,k,l} \, x_{n,c,\,si+k-p,\,sj+l-p}

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images.
    weight : array_like of shape (O, C, KH, KW)
        The kernel.
    bias : array_like of shape (O,), optional
        Default: 0.
    stride, padding : int or (int, int), default=1 and 0
        Step of the kernel, and zeros added on each side. Rows and columns that no full step reaches are left out.

    Returns
    -------
    y : ndarray of shape (N, O, H', W')
        ``H' = (H + 2 padding - KH) // stride + 1``.
    cache : ConvCache
        For `conv2d_backward`.

    Raises
    ------
    ValueError
        A shape that does not fit, a kernel larger than the padded image, a stride below 1 or a padding below 0.

    Examples
    --------
    >>> y, cache = conv2d_forward([[[[1.0, 2.0, 3.0]]]], weight=[[[[1.0, -1.0]]]], stride=1)
    >>> y.tolist()
    [[[[-1.0, -1.0]]]]
    """
    x, weight = as_float(x), as_float(weight)
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape (N, C, H, W) and weight (O, C, KH, KW) with the same C, but have shapes {x.shape} and "
            f"{weight.shape}. Try np.moveaxis(x, -1, 1) if the channels of x are last."
        )
    outputs, _, *kernel = weight.shape
    bias = np.zeros(outputs) if bias is None else with_shape("bias", bias, (outputs,), "axis 0 of weight")
    stride, padding = _pair("stride", stride, least=1), _pair("padding", padding, least=0)
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    columns = np.moveaxis(_windows(padded, (kernel[0], kernel[1]), stride), 1, 3)  # (94)
    samples, height, width = columns.shape[:3]
    rows = columns.reshape(samples * height * width, -1) @ weight.reshape(outputs, -1).T + bias  # (88), which is (92)
    y = from_rows(rows, (samples, outputs, height, width))
    return y, ConvCache(columns, weight, x.shape, stride, padding)


def conv2d_backward(dy: ArrayLike, cache: ConvCache) -> LayerGradients:
    """Backward of `conv2d_forward`: that of the linear layer on the windows, which then add up where they overlap.

    Parameters
    ----------
    dy : array_like of shape (N, O, H', W')
        Gradient of the loss with respect to the output.
    cache : ConvCache
        From `conv2d_forward`.

    Returns
    -------
    LayerGradients
        dx, dweight, dbias.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    columns, weight, shape, stride, padding = cache
    samples, height, width = columns.shape[:3]
    outputs, _, *kernel = weight.shape
    rows = to_rows(with_shape("dy", dy, (samples, outputs, height, width), "the output"))
    dcolumns = (rows @ weight.reshape(outputs, -1)).reshape(columns.shape)  # (89)
    dweight = (rows.T @ columns.reshape(len(rows), -1)).reshape(weight.shape)  # (90)
    dbias = rows.sum(axis=0)  # (91)
    dwindows = np.moveaxis(dcolumns, 3, 1)
    dpadded = np.zeros((shape[0], shape[1], shape[2] + 2 * padding[0], shape[3] + 2 * padding[1]))
    for position in np.ndindex(kernel[0], kernel[1]):
        _at(dpadded, position, dwindows.shape, stride)[...] += dwindows[(..., *position)]  # (95)
    dx = dpadded[:, :, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]
    return LayerGradients(dx, dweight, dbias)


def max_pool2d_forward(x: ArrayLike, *, kernel: Size = 2, stride: Size | None = None) -> tuple[Array, PoolCache]:
    """Take the largest value of each window.

    Parameters
    ----------
    x : array_like of shape (N, C, H, W)
        The images.
    kernel : int or (int, int), default=2
        Size of the window.
    stride : int or (int, int), optional
        Step of the window. Default: ``kernel``, so that windows do not overlap.

    Returns
    -------
    y : ndarray of shape (N, C, H', W')
        ``H' = (H - KH) // stride + 1``.
    cache : PoolCache
        For `max_pool2d_backward`.

    Raises
    ------
    ValueError
        ``x`` does not have four axes, the window is larger than the image, or a size is below 1.

    Examples
    --------
    >>> y, cache = max_pool2d_forward([[[[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]]]])
    >>> y.tolist()
    [[[[5.0, 2.0]]]]
    >>> max_pool2d_backward([[[[1.0, 10.0]]]], cache).tolist()  # of equal values the first
    [[[[0.0, 1.0, 10.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]
    """
    x = as_float(x)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), but has shape {x.shape}. Try x[None] for one image.")
    kernel = _pair("kernel", kernel, least=1)
    stride = kernel if stride is None else _pair("stride", stride, least=1)
    windows = _windows(x, kernel, stride)
    candidates = windows.reshape(*windows.shape[:4], -1)
    winner = candidates.argmax(axis=-1)
    y = np.take_along_axis(candidates, winner[..., None], axis=-1)[..., 0]  # (96)
    return y, PoolCache(winner, x.shape, kernel, stride)


def max_pool2d_backward(dy: ArrayLike, cache: PoolCache) -> Array:
    """Backward of `max_pool2d_forward`: the gradient goes to the value that was taken, the first of equal ones.

    Parameters
    ----------
    dy : array_like of shape (N, C, H', W')
        Gradient of the loss with respect to the output.
    cache : PoolCache
        From `max_pool2d_forward`.

    Returns
    -------
    dx : ndarray of shape (N, C, H, W)
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.
    """
    winner, shape, kernel, stride = cache
    dy = with_shape("dy", dy, winner.shape, "the output")
    dx = np.zeros(shape)
    for index, position in enumerate(np.ndindex(kernel)):
        _at(dx, position, winner.shape, stride)[...] += dy * (winner == index)  # (97)
    return dx


def _windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> Array:
    """All windows of the images: shape (N, C, H', W', KH, KW)."""
    if kernel[0] > x.shape[2] or kernel[1] > x.shape[3]:
        raise ValueError(
            f"the window must fit into the image, but is {kernel} and the image with its padding {x.shape[2:]}. "
            "Try a smaller kernel, or padding."
        )
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return np.asarray(windows[:, :, :: stride[0], :: stride[1]])  # (93)


def _at(x: Array, position: tuple[int, ...], windows: tuple[int, ...], stride: tuple[int, int]) -> Array:
    """View of the values that lie at one position of each window: shape (N, C, H', W')."""
    rows = slice(position[0], position[0] + stride[0] * windows[2], stride[0])
    columns = slice(position[1], position[1] + stride[1] * windows[3], stride[1])
    return x[:, :, rows, columns]


def _pair(name: str, value: Size, *, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(
            f"{name} must be an integer or two, each at least {least}, but is {value}. Try {name}={least}."
        )
    return pair
