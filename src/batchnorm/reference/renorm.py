"""Batch Renormalization. Equation numbers: ``DERIVATION_5_POLICIES.md``, section 27.

The batch is normalized by its own statistics and then moved towards the running ones by a factor and a summand per
channel. Both are constants in the backward, and both are bounded. The layer itself is `policies.forward_train`.

References
----------
Ioffe 2017, "Batch Renormalization", arXiv:1702.03275, Algorithm 1.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference import policies
from batchnorm.reference.statistics import Array


def correction(
    mean: ArrayLike,
    var: ArrayLike,
    running_mean: ArrayLike,
    sigma: ArrayLike,
    *,
    rmax: float,
    dmax: float,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Return the factor and the summand that move ``x_hat`` towards the running statistics: r and d of the paper.

    Parameters
    ----------
    mean, var : array_like of shape (C,) or (G, C)
        Of the batch, or of each group; ``var`` is biased.
    running_mean, sigma : array_like of shape (C,)
        Running mean and running standard deviation before this batch; eps is in ``sigma``.
    rmax : float
        The factor is between 1 / rmax and rmax. At least 1; 1 is batch normalization.
    dmax : float
        The summand is between -dmax and dmax. At least 0; 0 is batch normalization.
    eps : float, default=1e-5
        That of the layer.

    Returns
    -------
    factor, summand : ndarray of the shape of ``mean``
        Constants in the backward.

    Raises
    ------
    ValueError
        A bound out of range, or a ``sigma`` that is not positive.

    Examples
    --------
    >>> factor, summand = correction([2.0, 2.0], [4.0, 100.0], [0.0, 0.0], [1.0, 1.0], rmax=3.0, dmax=1.5, eps=0.0)
    >>> factor.tolist(), summand.tolist()
    ([2.0, 3.0], [1.5, 1.5])
    """
    if not rmax >= 1:
        raise ValueError(f"rmax must be at least 1, which is no correction, but is {rmax}. Try rmax=3.")
    if not dmax >= 0:
        raise ValueError(f"dmax must be at least 0, which is no correction, but is {dmax}. Try dmax=5.")
    mean, sigma = np.asarray(mean, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if not np.all(sigma > 0):
        raise ValueError(
            f"sigma must be positive, but its smallest value is {np.min(sigma)}. Try np.sqrt(running_var + eps)."
        )
    std = np.sqrt(np.asarray(var, dtype=np.float64) + eps)  # (5)
    factor = np.clip(std / sigma, 1 / rmax, rmax)  # (169)
    summand = np.clip((mean - np.asarray(running_mean)) / sigma, -dmax, dmax)  # (170)
    return factor, summand


def forward_train(
    x: ArrayLike,
    running_mean: ArrayLike,
    sigma: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    rmax: float,
    dmax: float,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> tuple[Array, policies.Cache]:
    r"""Normalize by the batch, correct towards the running statistics, then scale, shift, add and activate.

    .. math:: y = f(w (F \hat x + D) + b + a)

    Parameters
    ----------
    x : array_like of shape (N, C, *S)
        The batch.
    running_mean, sigma : array_like of shape (C,)
        Running mean and running standard deviation before this batch.
    weight, bias : array_like of shape (C,), optional
        Default: 1 and 0.
    rmax, dmax, eps : float
        As in `correction`.
    mask, activation, residual : optional
        As in `policies.forward_train`.

    Returns
    -------
    y : ndarray of shape (N, C, *S)
        The output. Test mode is ``policies.forward_test(x, running_mean, sigma**2, eps=0)``.
    cache : policies.Cache
        For `policies.backward`; ``factor`` and ``summand`` are in it.

    Raises
    ------
    ValueError
        As `correction` and `policies.forward_train`.

    Examples
    --------
    >>> y, cache = forward_train([[1.0], [5.0]], [0.0], [1.0], rmax=10.0, dmax=10.0, eps=0.0)
    >>> y.tolist()  # as at test time
    [[1.0], [5.0]]
    """
    correct = functools.partial(correction, running_mean=running_mean, sigma=sigma, rmax=rmax, dmax=dmax, eps=eps)
    return policies.forward_train(
        x, weight, bias, mask=mask, correct=correct, eps=eps, activation=activation, residual=residual
    )


def update_sigma(sigma: ArrayLike, var: ArrayLike, count: int, averaging_factor: float, eps: float = 1e-5) -> Array:
    """Move the running standard deviation towards that of a batch, as the paper does.

    The other way to obtain a ``sigma``, from the running variance of `statistics.update_running`, is
    ``np.sqrt(running_var + eps)`` (173). It needs no buffer that torch's layer does not have.

    Parameters
    ----------
    sigma : array_like of shape (C,)
        Before the update; not changed.
    var : array_like of shape (C,)
        Of the batch; biased, and so it enters.
    count : int
        Values per channel in the batch. An empty batch (0) updates nothing.
    averaging_factor : float
        Weight of the batch.
    eps : float, default=1e-5
        That of the layer; inside the root, so ``sigma`` never falls below its root.

    Returns
    -------
    ndarray of shape (C,)
        After the update; a new array.

    Examples
    --------
    >>> update_sigma([1.0], [9.0], 8, 0.25, eps=0.0).tolist()
    [1.5]
    """
    old = np.array(sigma, dtype=np.float64)
    if count == 0:
        return old
    std = np.sqrt(np.asarray(var, dtype=np.float64) + eps)  # (5)
    return np.asarray((1 - averaging_factor) * old + averaging_factor * std)  # (172)


def bounds(
    batches: int,
    *,
    rmax: float = 3.0,
    dmax: float = 5.0,
    start: int = 5000,
    rmax_end: int = 40000,
    dmax_end: int = 25000,
) -> tuple[float, float]:
    """Return rmax and dmax after a number of batches: batch normalization first, then relaxed linearly.

    The defaults are those that public implementations report as the paper's.

    Parameters
    ----------
    batches : int
        Batches seen before this one.
    rmax, dmax : float, default=3 and 5
        Final bounds.
    start : int, default=5000
        Batches with no correction, after which the bounds begin to grow.
    rmax_end, dmax_end : int, default=40000 and 25000
        Batches after which each bound is final. Not above ``start``: it is final at ``start``.

    Returns
    -------
    rmax, dmax : float
        From 1 and 0 to the final ones.

    Examples
    --------
    >>> [bounds(batches) for batches in (0, 5000, 15000, 22500, 40000)]
    [(1.0, 0.0), (1.0, 0.0), (1.5714285714285714, 2.5), (2.0, 4.375), (3.0, 5.0)]
    """

    def opened(end: int) -> float:
        return min(max(batches - start, 0) / (end - start), 1.0) if end > start else float(batches >= start)

    return 1 + (rmax - 1) * opened(rmax_end), dmax * opened(dmax_end)  # (175), (176)


def naive_correction(factor: ArrayLike, summand: ArrayLike, batches: int, warm_up: int) -> tuple[Array, Array]:
    """Weigh the correction by the number of warm-ups that have passed: what the tests must catch. Nothing may use it.

    The weight should stop at 1. It grows to 2, 3, ...: the correction overshoots, and the factor may be negative.
    """
    weight = batches // warm_up
    factor, summand = np.asarray(factor, dtype=np.float64), np.asarray(summand, dtype=np.float64)
    return 1 + weight * (factor - 1), weight * summand  # (177)
