"""Statistics of a channel: of one batch, over time, and of a population. Equation numbers: ``DERIVATION.md``.

Channels are axis 1 of ``x`` everywhere, and `to_rows` is the one place that knows it. ``var`` is biased (divides by
``count``); ``unbiased_var`` divides by ``count - 1``, and only running and population statistics use it.

References
----------
Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167, Algorithms 1 and 2.
Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", The American Statistician 37(3).
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Statistics(NamedTuple):
    """Mean and biased variance of each channel, and the number of values that they are taken over.

    Attributes
    ----------
    mean, var : ndarray of shape (C,), float64
        NaN when ``count`` is 0: the statistics of nothing are not defined, and nothing may be updated from them.
    count : int
        Values per channel: N times the spatial size.
    """

    mean: Array
    var: Array
    count: int  # type: ignore[assignment]  # the glossary's word, at the price of tuple.count


def as_batch(x: ArrayLike) -> Array:
    """Return ``x`` in float64, of shape (N, C, *S); raise ValueError if it has no channel axis."""
    batch = np.asarray(x, dtype=np.float64)
    if batch.ndim < 2:
        raise ValueError(
            f"x must have shape (N, C, *S), channels on axis 1, but has shape {batch.shape}. "
            "Try x[:, None] for one channel or x[None] for one sample."
        )
    return batch


def to_rows(x: Array) -> Array:
    """Reshape (N, C, *S) to (count, C) with count = N * prod(S): a position in space counts as one more sample."""
    count = x.shape[0] * math.prod(x.shape[2:])
    return np.moveaxis(x, 1, -1).reshape(count, x.shape[1])  # (11)


def from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Reshape (count, C) back to (N, C, *S) = ``shape``; the inverse of `to_rows`."""
    channels_last = rows.reshape(shape[0], *shape[2:], shape[1])
    return np.ascontiguousarray(np.moveaxis(channels_last, -1, 1))  # (11)


def row_sum(rows: Array) -> Array:
    """Sum (count, C) over its rows: shape (C,).

    NumPy adds pairwise, with an error that grows like log(count) and not like count, only along the contiguous axis.
    """
    return np.asarray(np.ascontiguousarray(rows.T).sum(axis=1))


def row_mean(rows: Array) -> Array:
    """Mean of (count, C) over its rows: shape (C,), NaN if there are none."""
    count, channels = rows.shape
    return row_sum(rows) / count if count else np.full(channels, np.nan)


def centre(rows: Array, counted: slice | NDArray[np.bool_] = slice(None)) -> tuple[Array, Array]:
    """Return the mean of the counted rows and what is left of all rows without it, both to a few ulp.

    The mean is kept in two parts while it is subtracted. One float64 cannot hold the mean of values whose mean is
    1e6 times their deviation to better than 1e-10 deviations; the second part holds the rest. For rows of shape
    (count, C) the mean has shape (C,) and is rounded; the centred values are those of the unrounded mean.
    """
    head = row_mean(rows[counted])  # (61)
    tail = row_mean(rows[counted] - head)  # (62)
    centred = (rows - head) - tail  # (2), (63)
    mean = head + tail  # (1)
    return mean, centred


def batch_statistics(x: ArrayLike) -> Statistics:
    """Mean, biased variance and count of each channel of one batch.

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch. Centred before it is squared: no digits are lost when the mean is large against the deviation.

    Returns
    -------
    Statistics
        mean and var of shape (C,), count. An empty batch has NaN statistics and count 0.

    Raises
    ------
    ValueError
        ``x`` has fewer than two axes.

    Examples
    --------
    >>> mean, var, count = batch_statistics([[1.0, 10.0], [3.0, 10.0]])
    >>> mean.tolist(), var.tolist(), count
    ([2.0, 10.0], [1.0, 0.0], 2)
    """
    rows = to_rows(as_batch(x))
    mean, centred = centre(rows)
    var = row_mean(centred**2)  # (3), (4)
    return Statistics(mean, var, len(rows))


def unbiased_var(var: ArrayLike, count: int) -> Array:
    """Variance that divides by ``count - 1``, from the one that divides by ``count``.

    Parameters
    ----------
    var : array_like of shape (C,)
        Biased variance.
    count : int
        Values per channel.

    Returns
    -------
    ndarray of shape (C,)
        ``var * count / (count - 1)``.

    Raises
    ------
    ValueError
        ``count`` is below 2.

    Examples
    --------
    >>> unbiased_var([1.0], 2).tolist()
    [2.0]
    """
    if count < 2:
        raise ValueError(
            f"an unbiased variance needs at least 2 values per channel, but count is {count}. Try a larger batch."
        )
    return np.asarray(var, dtype=np.float64) * (count / (count - 1))  # (42)


def averaging_factor(momentum: float | None, num_batches_tracked: int) -> float:
    """Weight of the new batch in the running statistics: ``momentum`` resolved.

    Parameters
    ----------
    momentum : float in [0, 1], or None
        Weight of the new batch (torch's convention: 0 never updates, 1 remembers nothing else). None: the running
        values are the plain means over all batches.
    num_batches_tracked : int
        Batches seen so far, this one included.

    Returns
    -------
    float
        ``momentum``, or ``1 / num_batches_tracked`` when it is None.

    Raises
    ------
    ValueError
        ``momentum`` is outside [0, 1], or it is None and ``num_batches_tracked`` is below 1.

    Examples
    --------
    >>> averaging_factor(0.1, 4), averaging_factor(None, 4)
    (0.1, 0.25)
    """
    if momentum is not None:
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"momentum must be in [0, 1] or None, but is {momentum}. It is the weight of the new batch: "
                "try 1 - momentum if yours comes from a framework where it is the weight of the old value."
            )
        return momentum  # (43)
    if num_batches_tracked < 1:
        raise ValueError(
            f"num_batches_tracked must count the batch at hand, so be at least 1, but is {num_batches_tracked}. "
            "Try to add 1 before the update."
        )
    return 1 / num_batches_tracked  # (43)


def update_running(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    count: int,
    averaging_factor: float,
) -> tuple[Array, Array]:
    """Move the running statistics towards those of a batch.

    Parameters
    ----------
    running_mean, running_var : array_like of shape (C,)
        Before the update; not changed.
    mean, var : array_like of shape (C,)
        Statistics of the batch, ``var`` biased. It enters the running variance unbiased, as in torch.
    count : int
        Values per channel in the batch. An empty batch (0) updates nothing.
    averaging_factor : float
        Weight of the batch, from `averaging_factor`.

    Returns
    -------
    running_mean, running_var : ndarray of shape (C,)
        After the update; new arrays.

    Raises
    ------
    ValueError
        ``count`` is 1: one value has no unbiased variance.

    Examples
    --------
    >>> running_mean, running_var = update_running([0.0], [1.0], mean=[2.0], var=[1.0], count=2, averaging_factor=0.5)
    >>> running_mean.tolist(), running_var.tolist()
    ([1.0], [1.5])
    """
    old_mean, old_var = np.array(running_mean, dtype=np.float64), np.array(running_var, dtype=np.float64)
    if count == 0:
        return old_mean, old_var
    new_mean, new_var = np.asarray(mean, dtype=np.float64), unbiased_var(var, count)
    updated_mean = (1 - averaging_factor) * old_mean + averaging_factor * new_mean  # (44)
    updated_var = (1 - averaging_factor) * old_var + averaging_factor * new_var  # (45)
    return updated_mean, updated_var


def population_statistics(batches: Iterable[ArrayLike]) -> tuple[Array, Array]:
    """Return the statistics of Algorithm 2, line 10 of the paper: averages over the batches of a frozen network.

    It assumes batches of one size, and that batch means do not differ by more than chance: the variance between them
    enters only through ``count / (count - 1)``, which is right on average for independent values. `exact_population`
    assumes neither.

    Parameters
    ----------
    batches : iterable of array_like of shape (N, C, *S)
        Inputs of the layer, all with the same count.

    Returns
    -------
    mean, unbiased_var : ndarray of shape (C,)
        What takes the place of ``running_mean`` and ``running_var`` at test time.

    Raises
    ------
    ValueError
        There is no batch, the counts differ, or the count is below 2.

    Examples
    --------
    >>> mean, unbiased_var = population_statistics([[[0.0], [2.0]], [[4.0], [10.0]]])
    >>> mean.tolist(), unbiased_var.tolist()
    ([4.0], [10.0])
    """
    means, variances, counts = zip(*_statistics_of_each(batches), strict=True)
    if len(set(counts)) > 1:
        raise ValueError(
            f"Algorithm 2 needs batches with one count, but they have {sorted(set(counts))}. "
            "Try exact_population, or drop the last, smaller batch."
        )
    return np.mean(means, axis=0), unbiased_var(np.mean(variances, axis=0), counts[0])  # (48), (49)


def merge(statistics_a: Statistics, statistics_b: Statistics) -> Statistics:
    """Merge the statistics of two sets into those of their union, by Chan, Golub and LeVeque (1.5a, b).

    Parameters
    ----------
    statistics_a, statistics_b : Statistics
        Of two disjoint sets. One with count 0 changes nothing.

    Returns
    -------
    Statistics
        Of the union.

    Examples
    --------
    >>> mean, var, count = merge(batch_statistics([[0.0]]), batch_statistics([[3.0], [6.0]]))
    >>> mean.tolist(), var.tolist(), count
    ([3.0], [6.0], 3)
    """
    mean_a, var_a, count_a = statistics_a
    mean_b, var_b, count_b = statistics_b
    if count_a == 0 or count_b == 0:
        return statistics_b if count_a == 0 else statistics_a
    count = count_a + count_b  # (51)
    mean = mean_a + (count_b / count) * (mean_b - mean_a)  # (52)
    between = (count_a / count) * (count_b / count) * (mean_b - mean_a) ** 2
    var = (count_a / count) * var_a + (count_b / count) * var_b + between  # (53)
    return Statistics(mean, var, count)


def exact_population(batches: Iterable[ArrayLike]) -> Statistics:
    """Return the statistics of all batches as if they were one, however unevenly they are split.

    Unlike `population_statistics` it weighs each batch by its count and adds the variance between the batch means.
    Its ``var`` is biased like that of a batch: apply `unbiased_var` for an estimate of where the values came from.

    Parameters
    ----------
    batches : iterable of array_like of shape (N, C, *S)
        Inputs of the layer, of any counts.

    Returns
    -------
    Statistics
        Equal to `batch_statistics` of the concatenated batches.

    Raises
    ------
    ValueError
        There is no batch.

    Examples
    --------
    >>> mean, var, count = exact_population([[[0.0], [2.0]], [[4.0], [10.0]]])
    >>> mean.tolist(), var.tolist(), count
    ([4.0], [14.0], 4)
    """
    return functools.reduce(merge, _statistics_of_each(batches))


def half_widths(batches: Iterable[ArrayLike], quantile: float) -> tuple[Array, Array]:
    """Return half the widths of the confidence intervals of the mean and of the variance of `exact_population`.

    Each batch is one observation, because its values may depend on each other.

    Parameters
    ----------
    batches : iterable of array_like of shape (N, C, *S)
        Inputs of the layer, drawn independently; at least two.
    quantile : float
        Two-sided quantile of Student's distribution with one degree of freedom fewer than batches.

    Returns
    -------
    of_mean, of_var : ndarray of shape (C,)
        Half widths.

    Raises
    ------
    ValueError
        There are fewer than two batches.

    Examples
    --------
    >>> of_mean, of_var = half_widths([[[0.0], [2.0]], [[4.0], [6.0]]], quantile=1.0)
    >>> of_mean.round(12).tolist(), of_var.tolist()
    ([2.0], [0.0])
    """
    parts = _statistics_of_each(batches)
    if len(parts) < 2:
        raise ValueError("an interval needs at least two batches, but there is one. Try smaller batches.")
    mean, var, count = functools.reduce(merge, parts)
    of_mean, of_var = np.zeros_like(mean), np.zeros_like(var)
    for mean_k, var_k, count_k in parts:
        of_mean += (count_k / count) ** 2 * (mean_k - mean) ** 2  # (187)
        of_var += (count_k / count) ** 2 * (var_k + (mean_k - mean) ** 2 - var) ** 2  # (188)
    factor = quantile * math.sqrt(len(parts) / (len(parts) - 1))
    return factor * np.sqrt(of_mean), factor * np.sqrt(of_var)


def blend(stored: Statistics, new: Statistics, prior: float) -> tuple[Array, Array]:
    """Return the mean and variance of a mixture of two populations, by the law of total variance.

    Parameters
    ----------
    stored, new : Statistics
        Of the two populations; their counts do not matter.
    prior : float in [0, 1]
        Weight of ``stored``.

    Returns
    -------
    mean, var : ndarray of shape (C,)
        Of the mixture.

    Examples
    --------
    >>> mean, var = blend(Statistics(np.zeros(1), np.ones(1), 8), Statistics(np.ones(1), np.ones(1), 8), 0.5)
    >>> mean.tolist(), var.tolist()
    ([0.5], [1.25])
    """
    mean = prior * stored.mean + (1 - prior) * new.mean
    within = prior * stored.var + (1 - prior) * new.var
    between = prior * (stored.mean - mean) ** 2 + (1 - prior) * (new.mean - mean) ** 2
    return mean, within + between  # (50)


def naive_var(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """E[x^2] - E[x]^2 in the dtype of ``x``: what the tests must catch. Nothing may use it.

    Its relative error grows like (mean / deviation)^2 units in the last place, and the result may be negative.

    ``x`` of shape (N, C, *S) is not converted, because its dtype is the point; the result has shape (C,).
    """
    axes = (0, *range(2, x.ndim))
    return np.asarray(np.mean(x * x, axis=axes, dtype=x.dtype) - np.mean(x, axis=axes, dtype=x.dtype) ** 2)  # (59)


def _statistics_of_each(batches: Iterable[ArrayLike]) -> list[Statistics]:
    statistics = [batch_statistics(batch) for batch in batches]
    if not statistics:
        raise ValueError("population statistics need at least one batch, but there is none. Try to check the loader.")
    return statistics
