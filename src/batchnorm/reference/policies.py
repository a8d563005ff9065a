"""The layer when not all values share one mean. Equation numbers: ``DERIVATION_5_POLICIES.md``, sections 25 and 26.

Three masks say which values belong together. ``groups`` gives each sample the group whose statistics normalize it,
``mask`` marks the values that enter the statistics, and ``kept`` the outputs that are kept. One forward and one
backward serve them all: ghost batches and keys are groups, padding is a mask, and a frozen layer counts no value.

References
----------
Hoffer, Hubara and Soudry 2017, "Train longer, generalize better", arXiv:1705.08741, Algorithm 1: ghost batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.reference._checks import check_variance, with_shape
from batchnorm.reference.activations import get_activation
from batchnorm.reference.batch_norm import Gradients
from batchnorm.reference.statistics import (
    Array,
    Statistics,
    as_batch,
    centre,
    from_rows,
    row_mean,
    row_sum,
    to_rows,
    update_running,
)

Mask = NDArray[np.bool_]

#: From the mean and the biased variance of each group, both (G, C), to a factor and a summand for x_hat, constants in
#: the backward: `renorm.correction`.
Correction = Callable[[Array, Array], tuple[ArrayLike, ArrayLike]]


class Reduction(NamedTuple):
    """Which values share statistics, row by row: M rows are all samples and positions.

    Attributes
    ----------
    groups : ndarray of int, shape (M,)
        Group of each row.
    counted, kept : ndarray of bool, shape (M,)
        Rows that enter the statistics, and rows whose outputs are kept.
    """

    groups: NDArray[np.intp]
    counted: Mask
    kept: Mask


@dataclass(frozen=True)
class Cache:
    """Intermediate values of a forward, for `backward`. M rows are all samples and positions, G groups.

    Attributes
    ----------
    x_hat : ndarray of shape (M, C)
        Normalized input; 0 where a value is neither counted nor kept.
    z : ndarray of shape (N, C, *S)
        Input of the activation.
    reduction : Reduction
        Which values share statistics.
    statistics : tuple of Statistics
        One per group. ``count`` 0: they are constants, or the group is empty, and nothing may be updated from them.
    invstd, weight, factor, summand : ndarray of shape (G, C)
        Of each group; ``factor`` and ``summand`` are 1 and 0 without a correction.
    shared : bool
        One ``weight`` and ``bias`` for all groups: their gradients are sums over groups.
    activation : str or None
        Name of the activation.
    """

    x_hat: Array
    z: Array
    reduction: Reduction
    statistics: tuple[Statistics, ...]
    invstd: Array
    weight: Array
    factor: Array
    summand: Array
    shared: bool
    activation: str | None


def forward_train(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    kept: ArrayLike | None = None,
    correct: Correction | None = None,
    single: tuple[ArrayLike, ArrayLike] | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    r"""Normalize each kept value by the statistics of the counted values of its group, then as `batch_norm` does.

    .. math:: y_i = k_i f(w (F \hat x_i + D) + b + a_i)

    with :math:`F = 1, D = 0` unless there is a correction. The mask is never multiplied with a value: what is masked
    may be NaN or infinite, and changes no bit of any result.

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch.
    weight, bias : array_like of shape (C,) or (G, C), optional
        Shared, or one per group. Default: 1 and 0.
    groups : array_like of int, shape (N,), optional
        Group of each sample, from 0. Default: one group.
    mask : array_like of bool, broadcastable to (N, 1, *S), optional
        Values that enter the statistics. Default: all.
    kept : array_like of bool, broadcastable to (N, 1, *S), optional
        Outputs that are kept; the others are 0. Default: ``mask``.
    correct : callable, optional
        From mean and variance of each group to factor and summand. Default: none.
    single : pair of array_like of shape (C,), optional
        Stored mean and variance for a group with one counted value. Default: such a group is an error.
    eps, activation, residual : optional
        As in `batch_norm.forward_train`.

    Returns
    -------
    y : ndarray of shape (N, C, *S)
        The output: exactly 0 where it is not kept, and in a group without a counted value.
    cache : Cache
        For `backward`; its ``statistics`` are for the running ones.

    Raises
    ------
    ValueError
        One value per channel in a group, ``var + eps`` not positive, a shape or a group that does not fit, or an
        unknown activation.

    Examples
    --------
    >>> y, cache = forward_train([[1.0], [5.0], [99.0]], mask=[[True], [True], [False]], eps=0.0)
    >>> y.tolist(), cache.statistics[0].count
    ([[-1.0], [1.0], [0.0]], 2)
    """
    x = as_batch(x)
    counted = _row_mask("mask", mask, x)
    keeps = counted if kept is None else _row_mask("kept", kept, x)
    rows = np.where((counted | keeps)[:, None], to_rows(x), 0.0)  # what is masked may be NaN
    of_row, number = _group_rows(groups, weight, x)
    nothing = np.full(x.shape[1], np.nan)
    centred, statistics = np.zeros_like(rows), []
    for group in range(number):
        inside = of_row == group
        chosen = inside & counted
        count = int(chosen.sum())  # (154)
        if count == 0:
            keeps = keeps & ~inside
            found = Statistics(nothing, nothing, 0)
        elif count == 1 and single is not None:
            counted = counted & ~inside
            mean, var = (with_shape("single", stored, nothing.shape, "a channel") for stored in single)
            centred[inside] = rows[inside] - mean  # (31), (163)
            found = Statistics(mean, var, 0)
        elif count == 1:
            raise ValueError(
                f"training needs more than one counted value per channel in every group, but group {group} has one: "
                "its output would be the bias. Try a larger group, or single=(running_mean, running_var)."
            )
        else:
            mean, centred[inside] = centre(rows[inside], counted[inside])  # (155)
            found = Statistics(mean, row_mean(centred[chosen] ** 2), count)  # (156)
        statistics.append(found)
    reduction = Reduction(of_row, counted, keeps)
    return _normalize(x, centred, statistics, reduction, weight, bias, correct, eps, activation, residual)


def forward_test(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    kept: ArrayLike | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Normalize by stored statistics: no value is counted. It is also the training forward of a frozen layer.

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch, of any size.
    running_mean, running_var : array_like of shape (C,) or (G, C)
        Stored statistics, of all groups or of each.
    weight, bias, groups, kept, eps, activation, residual : optional
        As in `forward_train`.

    Returns
    -------
    y : ndarray of shape (N, C, *S)
        The output: exactly 0 where it is not kept.
    cache : Cache
        For `backward`.

    Raises
    ------
    ValueError
        As `forward_train`.

    Examples
    --------
    >>> y, cache = forward_test([[1.0], [5.0]], [1.0], [4.0], kept=[[False], [True]], eps=0.0)
    >>> y.tolist()
    [[0.0], [2.0]]
    """
    x = as_batch(x)
    keeps = _row_mask("kept", kept, x)
    rows = np.where(keeps[:, None], to_rows(x), 0.0)
    of_row, number = _group_rows(groups, weight, x)
    mean = _per_group("running_mean", running_mean, number, x)
    var = _per_group("running_var", running_var, number, x)
    statistics = [Statistics(mean[group], var[group], 0) for group in range(number)]
    centred = rows - mean[of_row]  # (31)
    reduction = Reduction(of_row, np.zeros(len(rows), dtype=bool), keeps)
    return _normalize(x, centred, statistics, reduction, weight, bias, None, eps, activation, residual)


def backward(dy: ArrayLike, cache: Cache) -> Gradients:
    r"""Backward of `forward_train` and of `forward_test`.

    .. math:: dx_i = w F r (dz_i - \frac{c_i}{m} (\sum dz + \hat x_i \sum dz\,\hat x))

    with the sums over the group of value i, and :math:`c_i` 1 where it is counted.

    Parameters
    ----------
    dy : array_like of shape (N, C, *S)
        Gradient of the loss with respect to the output. Ignored where the output is not kept.
    cache : Cache
        From the forward.

    Returns
    -------
    Gradients
        dx, dweight, dbias and dresidual. dweight and dbias have the shape of ``weight``: (C,), summed over groups, or
        (G, C).

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the output.

    Examples
    --------
    >>> _, cache = forward_train([[0.0], [1.0], [2.0]], kept=[[True], [False], [False]], eps=0.5)
    >>> dx, dweight, dbias, dresidual = backward([[1.0], [9.0], [9.0]], cache)
    >>> dx.round(3).tolist(), dbias.tolist()
    ([[0.353], [-0.309], [-0.044]], [1.0])
    """
    groups, counted, kept = cache.reduction
    shape = cache.z.shape
    dy = np.where(kept[:, None], to_rows(with_shape("dy", dy, shape, "the output")), 0.0)
    dz = from_rows(dy, shape) * get_activation(cache.activation).derivative(cache.z)  # (159)
    rows, dx = to_rows(dz), np.zeros_like(cache.x_hat)
    dweight, dbias = np.zeros_like(cache.weight), np.zeros_like(cache.weight)
    for group, (_, _, count) in enumerate(cache.statistics):
        inside = groups == group
        chosen = inside & kept
        if not chosen.any():
            continue
        sum_dz, sum_dz_x_hat = row_sum(rows[chosen]), row_sum(rows[chosen] * cache.x_hat[chosen])
        through = np.where(counted[inside, None], (sum_dz + cache.x_hat[inside] * sum_dz_x_hat) / max(count, 1), 0.0)
        gain = cache.weight[group] * cache.factor[group] * cache.invstd[group]
        dx[inside] = gain * (rows[inside] - through)  # (161)
        dbias[group] = sum_dz  # (14)
        dweight[group] = cache.factor[group] * sum_dz_x_hat + cache.summand[group] * sum_dz  # (160)
    dx = np.where((counted | kept)[:, None], dx, 0.0)  # a NaN among the others stays away
    if cache.shared:
        dweight, dbias = row_sum(dweight), row_sum(dbias)  # (164)
    return Gradients(from_rows(dx, shape), dweight, dbias, dz)


def valid_mask(lengths: ArrayLike, positions: int) -> Mask:
    """Return the mask of sequences of these lengths, padded to one length.

    Parameters
    ----------
    lengths : array_like of int, shape (N,)
        Valid positions of each sample, counted from the first.
    positions : int
        Length of the padded sequences.

    Returns
    -------
    ndarray of bool, shape (N, 1, positions)
        True where a value is valid.

    Raises
    ------
    ValueError
        A length outside 0 to ``positions``.

    Examples
    --------
    >>> valid_mask([1, 3], 3)[:, 0].tolist()
    [[True, False, False], [True, True, True]]
    """
    lengths = np.asarray(lengths)
    if np.any(lengths < 0) or np.any(lengths > positions):
        raise ValueError(
            f"lengths must be from 0 to {positions}, the positions of x, but are {lengths.tolist()}. "
            "Try the lengths at this layer, after its strides."
        )
    return np.arange(positions) < lengths[:, None, None]


def ghost_groups(samples: int, size: int) -> NDArray[np.intp]:
    """Return the ghost batch of each sample: consecutive samples, the last ghost batch perhaps shorter.

    Parameters
    ----------
    samples : int
        Samples in the batch, N.
    size : int
        Samples in a ghost batch. At least 1.

    Returns
    -------
    ndarray of int, shape (N,)
        ``floor(n / size)``.

    Raises
    ------
    ValueError
        ``size`` is below 1.

    Examples
    --------
    >>> ghost_groups(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    if size < 1:
        raise ValueError(f"the size of a ghost batch must be at least 1 sample, but is {size}. Try 32.")
    return np.arange(samples) // size  # (165)


def update_in_turn(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    num_batches_tracked: int,
    statistics: Sequence[Statistics],
    factor: Callable[[int], float],
) -> tuple[Array, Array, int]:
    """Update running statistics as if the layer had been called once per group, in order.

    Parameters
    ----------
    running_mean, running_var : array_like of shape (C,)
        Before the update; not changed.
    num_batches_tracked : int
        Batches seen before.
    statistics : sequence of Statistics
        Of each group; one with ``count`` 0 is no batch and is skipped.
    factor : callable
        From the number of batches, the new one included, to its weight: `statistics.averaging_factor` with its
        momentum, or one of `averages`.

    Returns
    -------
    running_mean, running_var : ndarray of shape (C,)
        After the update; new arrays.
    num_batches_tracked : int
        Larger by the number of groups that were counted.

    Examples
    --------
    >>> groups = [Statistics(np.array([1.0]), np.array([1.0]), 2), Statistics(np.array([7.0]), np.array([9.0]), 2)]
    >>> mean, var, count = update_in_turn([0.0], [1.0], 0, groups, lambda n: 0.5)
    >>> mean.tolist(), var.tolist(), count
    ([3.75], [9.75], 2)
    """
    mean, var = np.array(running_mean, dtype=np.float64), np.array(running_var, dtype=np.float64)
    for found in statistics:
        if found.count > 0:
            num_batches_tracked += 1
            mean, var = update_running(mean, var, *found, factor(num_batches_tracked))  # (166)
    return mean, var, num_batches_tracked


def update_per_key(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    num_batches_tracked: ArrayLike,
    statistics: Sequence[Statistics],
    factor: Callable[[int], float],
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Update the running statistics of each key that the batch holds; the others stay.

    Parameters
    ----------
    running_mean, running_var : array_like of shape (G, C)
        Of each key, before the update; not changed.
    num_batches_tracked : array_like of int, shape (G,)
        Batches that each key was in before.
    statistics : sequence of Statistics
        Of each key; one with ``count`` 0 is not in the batch.
    factor : callable
        As in `update_in_turn`, of the number of batches of the key.

    Returns
    -------
    running_mean, running_var : ndarray of shape (G, C)
        After the update; new arrays.
    num_batches_tracked : ndarray of int, shape (G,)
        After the update; a new array.

    Examples
    --------
    >>> nan = np.array([np.nan])
    >>> keys = [Statistics(np.array([8.0]), np.array([1.0]), 2), Statistics(nan, nan, 0)]
    >>> mean, var, counts = update_per_key([[0.0], [5.0]], [[1.0], [1.0]], [0, 3], keys, lambda n: 0.5)
    >>> mean.tolist(), var.tolist(), counts.tolist()
    ([[4.0], [5.0]], [[1.5], [1.0]], [1, 3])
    """
    mean, var = np.array(running_mean, dtype=np.float64), np.array(running_var, dtype=np.float64)
    counts = np.array(num_batches_tracked, dtype=np.int64)
    for key, found in enumerate(statistics):
        mean[key], var[key], counts[key] = update_in_turn(
            mean[key], var[key], int(counts[key]), [found], factor
        )  # (168)
    return mean, var, counts


def _normalize(
    x: Array,
    centred: Array,
    statistics: Sequence[Statistics],
    reduction: Reduction,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    correct: Correction | None,
    eps: float,
    activation: str | None,
    residual: ArrayLike | None,
) -> tuple[Array, Cache]:
    groups, counted, kept = reduction
    number, shape = len(statistics), x.shape
    weight = 1.0 if weight is None else weight
    shared = np.ndim(weight) < 2
    weight = _per_group("weight", weight, number, x)
    bias = _per_group("bias", 0.0 if bias is None else bias, number, x)
    residual = np.zeros(shape) if residual is None else with_shape("residual", residual, shape, "x")
    mean = np.reshape([found.mean for found in statistics], (number, shape[1]))
    var = np.reshape([found.var for found in statistics], (number, shape[1]))
    check_variance(var, eps)
    factor, summand = (1.0, 0.0) if correct is None else correct(mean, var)
    factor, summand = _per_group("factor", factor, number, x), _per_group("summand", summand, number, x)
    invstd = 1.0 / np.sqrt(var + eps)  # (5), (6)
    used = (counted | kept)[:, None]
    x_hat = np.where(used, centred * invstd[groups], 0.0)  # (7)
    corrected = factor[groups] * x_hat + summand[groups]  # (157)
    scaled = weight[groups] * corrected  # (8)
    z = np.where(kept[:, None], scaled + bias[groups] + to_rows(residual), 0.0)  # (9)
    z = from_rows(z, shape)
    y = get_activation(activation).function(z)
    y = from_rows(np.where(kept[:, None], to_rows(y), 0.0), shape)  # (158)
    cache = Cache(
        x_hat=x_hat,
        z=z,
        reduction=reduction,
        statistics=tuple(statistics),
        invstd=invstd,
        weight=weight,
        factor=factor,
        summand=summand,
        shared=shared,
        activation=activation,
    )
    return y, cache


def _row_mask(name: str, mask: ArrayLike | None, x: Array) -> Mask:
    """Return a mask of samples and positions with one entry per row; None is all."""
    shape = (x.shape[0], 1, *x.shape[2:])
    array = np.asarray(True if mask is None else mask)
    try:
        fits = array.dtype == np.bool_ and np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must be boolean and broadcastable to {shape}, one entry per sample and position of x, but has "
            f"shape {array.shape} and dtype {array.dtype}. Try valid_mask(lengths, positions)."
        )
    return np.broadcast_to(array, shape).reshape(-1)


def _group_rows(groups: ArrayLike | None, weight: ArrayLike | None, x: Array) -> tuple[NDArray[np.intp], int]:
    """Return the group of each row, and the number of groups: that of ``weight`` if it has one row per group."""
    of_sample = np.zeros(len(x), dtype=np.intp) if groups is None else np.asarray(groups)
    rows_of_weight = () if weight is None else np.shape(weight)
    number = rows_of_weight[0] if len(rows_of_weight) == 2 else int(of_sample.max(initial=0)) + 1
    fits = of_sample.shape == (len(x),) and np.issubdtype(of_sample.dtype, np.integer)
    if not fits or np.any(of_sample < 0) or np.any(of_sample >= number):
        raise ValueError(
            f"groups must be {len(x)} integers, one per sample of x, from 0 to {number - 1}, but are "
            f"{of_sample.tolist()}. Try ghost_groups(len(x), size)."
        )
    return np.repeat(of_sample, int(np.prod(x.shape[2:]))), number


def _per_group(name: str, value: ArrayLike, number: int, x: Array) -> Array:
    """Return (number, C) from a value per channel, or per group and channel, or one for all."""
    array, shape = np.asarray(value, dtype=np.float64), (number, x.shape[1])
    if array.shape not in ((), shape[1:], shape):
        raise ValueError(
            f"{name} must have shape {shape[1:]} or {shape}, one value per channel of x or per group and channel, but "
            f"has shape {array.shape}. Try to move the channels of x to axis 1."
        )
    return np.broadcast_to(array, shape)
