"""Batch normalization, forward and backward, in training and at test time. Equation numbers: ``DERIVATION.md``.

The algebra is written once, for a dense layer: rows of shape (count, C). A spatial batch (N, C, *S) is reshaped to
rows on entry and back on return, which is all that section 3.2 of the paper asks for. Everything is float64 and good
to a few ulp for moderate values, for values up to 1e100, and for means up to 1e12 times the deviation. A channel that
holds a NaN or an infinity becomes NaN, and no other channel does; for an infinity NumPy also warns.

References
----------
Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167, Algorithm 1 and section 3.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import check_variance
from batchnorm.reference.activations import get_activation
from batchnorm.reference.statistics import Array, as_batch, centre, from_rows, row_mean, row_sum, to_rows


@dataclass(frozen=True)
class Cache:
    """What the backward needs of a forward.

    Attributes
    ----------
    x, x_hat, z : ndarray of shape (N, C, *S)
        Input, normalized input, and input of the activation: ``weight * x_hat + bias + residual``.
    centred : ndarray of shape (N, C, *S)
        ``x - mean`` for the unrounded mean: not recomputed from ``x``, because ``mean`` is rounded.
    mean, var, invstd : ndarray of shape (C,)
        The statistics used: of the batch (``var`` biased), or the running ones. NaN for an empty batch.
    weight : ndarray of shape (C,)
        Ones if there was none.
    count : int
        Values per channel: N times the spatial size.
    eps : float
        Added to ``var`` inside the root.
    activation : str or None
        Name of the activation.
    training : bool
        Whether the statistics are those of the batch, and so depend on ``x``.
    """

    x: Array
    x_hat: Array
    z: Array
    centred: Array
    mean: Array
    var: Array
    invstd: Array
    weight: Array
    count: int
    eps: float
    activation: str | None
    training: bool


class Gradients(NamedTuple):
    """Gradients of a loss with respect to each argument of a forward.

    An argument that was left out counts as its neutral value: weight 1, bias 0, residual 0.

    Attributes
    ----------
    dx, dresidual : ndarray of shape (N, C, *S)
    dweight, dbias : ndarray of shape (C,)
    """

    dx: Array
    dweight: Array
    dbias: Array
    dresidual: Array


def forward_train(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    r"""Normalize each channel by the statistics of this batch, then scale, shift, add and activate.

    .. math:: y = f(w \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + b + \text{residual})

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch. If it is empty its statistics are NaN, and nothing may be updated from them.
    weight, bias : array_like of shape (C,), optional
        Default: 1 and 0.
    eps : float, default=1e-5
        Added to the biased variance inside the root. At least 0.
    activation : str, optional
        A name known to `activations.get_activation`. Default: none.
    residual : array_like of the shape of ``x``, optional
        Added before the activation. Default: 0.

    Returns
    -------
    y : ndarray of shape (N, C, *S)
        The output.
    cache : Cache
        For `backward` and `backward_nodes`.

    Raises
    ------
    ValueError
        One value per channel, ``var + eps`` not positive, a shape that does not fit, or an unknown activation.

    Examples
    --------
    >>> y, cache = forward_train([[1.0], [5.0]], eps=0.0)
    >>> y.tolist(), cache.mean.tolist(), cache.var.tolist()
    ([[-1.0], [1.0]], [3.0], [4.0])
    """
    x = as_batch(x)
    rows = to_rows(x)
    if len(rows) == 1:
        raise ValueError(
            f"training needs more than one value per channel, but x has shape {x.shape}: every output would be the "
            "bias. Try a larger batch, or forward_test with stored statistics."
        )
    mean, centred = centre(rows)  # (1), (2)
    var = row_mean(centred**2)  # (3), (4)
    return _normalize(x, centred, mean, var, weight, bias, eps, activation, residual, training=True)


def forward_test(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Normalize each channel by stored statistics, then scale, shift, add and activate.

    The formula is that of `forward_train`, ``eps`` in the same place; only the statistics are constants. It is line
    11 of Algorithm 2 in the paper.

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch, of any size.
    running_mean, running_var : array_like of shape (C,)
        Stored statistics. ``running_var`` is used as it is.
    weight, bias, eps, activation, residual : optional
        As in `forward_train`.

    Returns
    -------
    y : ndarray of shape (N, C, *S)
        The output.
    cache : Cache
        For `backward_test`.

    Raises
    ------
    ValueError
        ``running_var + eps`` not positive, a shape that does not fit, or an unknown activation.

    Examples
    --------
    >>> y, cache = forward_test([[1.0], [5.0]], running_mean=[1.0], running_var=[4.0], eps=0.0)
    >>> y.tolist()
    [[0.0], [2.0]]
    """
    x = as_batch(x)
    mean = _per_channel("running_mean", running_mean, x)
    var = _per_channel("running_var", running_var, x)
    centred = to_rows(x) - mean  # (31)
    return _normalize(x, centred, mean, var, weight, bias, eps, activation, residual, training=False)


def backward_nodes(dy: ArrayLike, cache: Cache) -> Gradients:
    """Backward of `forward_train`, one node of the graph of Algorithm 1 at a time, last node first.

    It takes, returns and raises what `backward` does, and agrees with it. Section 3 of the paper merges the nodes into
    six formulas; ``DERIVATION.md`` leads from one form to the other.
    """
    _check_mode(cache, training=True)
    dz = _through_activation(dy, cache)  # activate: (12)
    if cache.count == 0:
        return _sums_of_nothing(dz, cache)
    rows, x_hat, centred = to_rows(dz), to_rows(cache.x_hat), to_rows(cache.centred)

    dresidual = dz  # add: (13)
    dbias = row_sum(rows)  # shift: (14)
    dweight = row_sum(rows * x_hat)  # scale: (15)
    dx_hat = rows * cache.weight  # scale: (16)
    dinvstd = row_sum(dx_hat * centred)  # normalize: (17)
    dstd = -(cache.invstd**2) * dinvstd  # invert: (18)
    dvar = 0.5 * cache.invstd * dstd  # root: (19)
    dsquare = np.broadcast_to(dvar / cache.count, rows.shape)  # average of squares: (20)
    dcentred = dx_hat * cache.invstd + 2.0 * centred * dsquare  # normalize and square: (21)
    dmean = -row_sum(dcentred)  # centre: (22)
    dx = dcentred + dmean / cache.count  # centre and average: (23)
    return Gradients(from_rows(dx, cache.x.shape), dweight, dbias, dresidual)


def backward(dy: ArrayLike, cache: Cache) -> Gradients:
    r"""Backward of `forward_train` in its simplified form.

    .. math:: dx = \frac{w}{m \sqrt{\sigma^2 + \epsilon}} (m\,dz - dbias - \hat x\,dweight)

    Parameters
    ----------
    dy : array_like of shape (N, C, *S)
        Gradient of the loss with respect to the output.
    cache : Cache
        From `forward_train`.

    Returns
    -------
    Gradients
        dx, dweight, dbias and dresidual.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output, or the cache comes from `forward_test`.

    Examples
    --------
    >>> y, cache = forward_train([[0.0], [1.0], [2.0]], eps=0.5)
    >>> dx, dweight, dbias, dresidual = backward([[1.0], [0.0], [0.0]], cache)
    >>> dx.round(3).tolist(), dbias.tolist()
    ([[0.353], [-0.309], [-0.044]], [1.0])
    """
    _check_mode(cache, training=True)
    dz = _through_activation(dy, cache)  # (12)
    if cache.count == 0:
        return _sums_of_nothing(dz, cache)
    rows, x_hat = to_rows(dz), to_rows(cache.x_hat)
    dbias, dweight = row_sum(rows), row_sum(rows * x_hat)  # (14), (15)
    dx = cache.weight * cache.invstd * (rows - (dbias + x_hat * dweight) / cache.count)  # (30)
    return Gradients(from_rows(dx, cache.x.shape), dweight, dbias, dz)


def backward_test(dy: ArrayLike, cache: Cache) -> Gradients:
    """Backward of `forward_test`: the statistics are constants, so each element of ``x`` reaches one output only.

    It takes, returns and raises what `backward` does, but its cache comes from `forward_test`.
    """
    _check_mode(cache, training=False)
    dz = _through_activation(dy, cache)  # (12)
    rows, x_hat = to_rows(dz), to_rows(cache.x_hat)
    dbias, dweight = row_sum(rows), row_sum(rows * x_hat)  # (14), (15)
    dx = cache.weight * cache.invstd * rows  # (33)
    return Gradients(from_rows(dx, cache.x.shape), dweight, dbias, dz)


def _normalize(
    x: Array,
    centred: Array,
    mean: Array,
    var: Array,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
    activation: str | None,
    residual: ArrayLike | None,
    *,
    training: bool,
) -> tuple[Array, Cache]:
    """Everything after centring, which both modes share: ``eps`` has one definition."""
    weight = np.ones(x.shape[1]) if weight is None else _per_channel("weight", weight, x)
    bias = np.zeros(x.shape[1]) if bias is None else _per_channel("bias", bias, x)
    residual = np.zeros(x.shape) if residual is None else _like_x("residual", residual, x)
    check_variance(var, eps)
    std = np.sqrt(var + eps)  # (5)
    invstd = 1.0 / std  # (6)
    x_hat = centred * invstd  # (7)
    scaled = x_hat * weight  # (8)
    z = from_rows(scaled + bias, x.shape) + residual  # (9)
    y = get_activation(activation).function(z)  # (10)
    cache = Cache(
        x=x,
        x_hat=from_rows(x_hat, x.shape),
        z=z,
        centred=from_rows(centred, x.shape),
        mean=mean,
        var=var,
        invstd=invstd,
        weight=weight,
        count=len(centred),
        eps=eps,
        activation=activation,
        training=training,
    )
    return y, cache


def _through_activation(dy: ArrayLike, cache: Cache) -> Array:
    return _like_x("dy", dy, cache.x) * get_activation(cache.activation).derivative(cache.z)  # (12)


def _sums_of_nothing(dz: Array, cache: Cache) -> Gradients:
    """Gradients of an empty batch, whose statistics are NaN."""
    return Gradients(dz.copy(), np.zeros_like(cache.weight), np.zeros_like(cache.weight), dz)


def _check_mode(cache: Cache, *, training: bool) -> None:
    if cache.training != training:
        came, fits = ("forward_test", "backward_test") if training else ("forward_train", "backward")
        raise ValueError(f"the cache must come from the same mode, but it comes from {came}. Try {fits}.")


def _per_channel(name: str, value: ArrayLike, x: Array) -> Array:
    channels = x.shape[1]
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (channels,):
        raise ValueError(
            f"{name} must have shape ({channels},), one value per channel of x (axis 1 of {x.shape}), but has shape "
            f"{array.shape}. Try {name}.reshape({channels}), or move the channels of x to axis 1."
        )
    return array


def _like_x(name: str, value: ArrayLike, x: Array) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != x.shape:
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, but has shape {array.shape}. Try np.broadcast_to."
        )
    return array
