"""One batch on several ranks. Equation numbers: ``DERIVATION_5_POLICIES.md``, section 29.

Ranks exchange their statistics in the forward, two sums per channel in the backward, and the counts. Here a list takes
the place of the ranks, so each line shows what is local and what is common.

References
----------
Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", The American Statistician 37(3).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference import policies
from batchnorm.reference.batch_norm import Gradients
from batchnorm.reference.statistics import (
    Array,
    Statistics,
    as_batch,
    batch_statistics,
    from_rows,
    merge,
    row_sum,
    to_rows,
)


@dataclass(frozen=True)
class Cache:
    """Intermediate values of a forward, for `backward`.

    Attributes
    ----------
    local : tuple of policies.Cache
        One per rank; to it the statistics are constants.
    statistics : Statistics
        Of the whole batch.
    """

    local: tuple[policies.Cache, ...]
    statistics: Statistics


def forward_train(
    batches: Sequence[ArrayLike],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    residuals: Sequence[ArrayLike] | None = None,
) -> tuple[list[Array], Cache]:
    """Normalize by the statistics of all ranks, merged.

    Parameters
    ----------
    batches : sequence of array_like of shape (N, C, *S)
        One per rank, of any counts. An empty one counts for nothing.
    weight, bias, eps, activation : optional
        As in `batch_norm.forward_train`; the same on every rank.
    residuals : sequence of array_like, optional
        One per rank, each of the shape of its batch. Default: 0.

    Returns
    -------
    y : list of ndarray of shape (N, C, *S)
        One per rank.
    cache : Cache
        For `backward`; its ``statistics`` are for the running ones, the same on every rank.

    Raises
    ------
    ValueError
        One value per channel on all ranks together, or what `policies.forward_test` refuses.

    Examples
    --------
    >>> y, cache = forward_train([[[1.0]], [[5.0], [3.0]]], eps=1 / 3)
    >>> [part.ravel().round(3).tolist() for part in y], cache.statistics.count
    ([[-1.155], [1.155, 0.0]], 3)
    """
    parts = [as_batch(x) for x in batches]
    head, var, count = functools.reduce(merge, [batch_statistics(x) for x in parts])  # (183)
    if count == 1:
        raise ValueError("training needs more than one value per channel on all ranks together. Try a larger batch.")
    shifted = [from_rows(to_rows(x) - head, x.shape) for x in parts]
    tail = np.sum([row_sum(to_rows(x)) for x in shifted], axis=0) / max(count, 1)  # (62), over ranks
    local = [
        policies.forward_test(x, tail, var, weight, bias, eps=eps, activation=activation, residual=residual)
        for x, residual in zip(shifted, residuals or [np.zeros(x.shape) for x in parts], strict=True)
    ]
    return [y for y, _ in local], Cache(tuple(cache for _, cache in local), Statistics(head + tail, var, count))


def backward(dys: Sequence[ArrayLike], cache: Cache) -> list[Gradients]:
    """Backward of `forward_train`: local sums, their totals, then dx.

    Parameters
    ----------
    dys : sequence of array_like of shape (N, C, *S)
        Gradient of the loss with respect to the output, one per rank. The loss is the sum over ranks.
    cache : Cache
        From the forward.

    Returns
    -------
    list of Gradients
        One per rank. dweight and dbias are the local sums: adding them up over ranks is the task of whatever adds the
        gradients of all other parameters.

    Raises
    ------
    ValueError
        A ``dy`` that does not have the shape of its output.
    """
    local = [policies.backward(dy, part) for dy, part in zip(dys, cache.local, strict=True)]
    total_dbias = np.sum([part.dbias for part in local], axis=0)  # (184)
    total_dweight = np.sum([part.dweight for part in local], axis=0)
    gradients = []
    for part, (dx, dweight, dbias, dresidual) in zip(cache.local, local, strict=True):
        gain = part.weight[0] * part.invstd[0]
        through = gain * (total_dbias + part.x_hat * total_dweight) / max(cache.statistics.count, 1)
        dx = dx - from_rows(through, dx.shape)  # (185)
        gradients.append(Gradients(dx, dweight, dbias, dresidual))
    return gradients
