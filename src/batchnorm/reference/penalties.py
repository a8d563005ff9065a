"""Penalties on the weights, L1 and L2, under the names of their conventions. ``DERIVATION_3_NETWORKS.md``, section 17.

"L2 with strength 0.1" is three different functions, depending on who says it. The convention is therefore an argument
without a default. What is passed is penalized: biases, and weight and bias of a normalization, are usually left out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from batchnorm.reference._checks import Array, as_float, one_of

L1_CONVENTIONS = ("sum", "mean")
L2_CONVENTIONS = ("sum", "half", "half_mean")


def l2_penalty(
    weights: Sequence[ArrayLike], strength: float, *, convention: str, samples: int | None = None
) -> tuple[float, list[Array]]:
    r"""Sum of squares of all weights, times a factor, and its gradients.

    Parameters
    ----------
    weights : sequence of array_like
        The penalized weights, of any shapes.
    strength : float
        Called reg, lambda or weight decay elsewhere. At least 0.
    convention : {'sum', 'half', 'half_mean'}
        sum: ``strength * sum(w^2)`` with gradient ``2 * strength * w`` (EECS 498).
        half: ``strength / 2 * sum(w^2)`` with gradient ``strength * w`` (CS231n; weight_decay of torch.optim.SGD).
        half_mean: ``strength / (2 m) * sum(w^2)`` with gradient ``strength / m * w`` (deeplearning.ai).
    samples : int, optional
        The m of half_mean: samples in the mean of the data loss. Only there, and needed there.

    Returns
    -------
    cost : float
        What is added to the loss.
    gradients : list of ndarray
        What is added to the gradient of each weight.

    Raises
    ------
    ValueError
        An unknown convention, a negative strength, or samples missing or given in vain.

    Examples
    --------
    >>> for convention, samples in [("sum", None), ("half", None), ("half_mean", 10)]:
    ...     cost, (gradient,) = l2_penalty([[3.0, 4.0]], 0.1, convention=convention, samples=samples)
    ...     print(round(cost, 4), gradient.round(4).tolist())
    2.5 [0.6, 0.8]
    1.25 [0.3, 0.4]
    0.125 [0.03, 0.04]
    """
    factor = l2_factor(strength, convention=convention, samples=samples)
    arrays = [as_float(weight) for weight in weights]
    cost = factor * sum(float(np.sum(weight**2)) for weight in arrays)  # (109)
    return cost, [2.0 * factor * weight for weight in arrays]  # (110)


def l2_factor(strength: float, *, convention: str, samples: int | None = None) -> float:
    """Return what the sum of squares is multiplied by: with it one convention is translated into another.

    Parameters
    ----------
    strength : float
        As in `l2_penalty`.
    convention : {'sum', 'half', 'half_mean'}
        As in `l2_penalty`.
    samples : int, optional
        As in `l2_penalty`.

    Returns
    -------
    float
        ``strength``, ``strength / 2``, or ``strength / (2 * samples)``.

    Raises
    ------
    ValueError
        An unknown convention, a negative strength, or samples missing or given in vain.

    Examples
    --------
    >>> l2_factor(0.5, convention="half_mean", samples=250)  # the same penalty as sum with a strength of
    0.001
    """
    one_of("convention", convention, L2_CONVENTIONS)
    count = _samples(strength, samples, needed=convention == "half_mean")
    return strength / {"sum": 1, "half": 2, "half_mean": 2 * count}[convention]  # (111)


def l1_penalty(
    weights: Sequence[ArrayLike], strength: float, *, convention: str, samples: int | None = None
) -> tuple[float, list[Array]]:
    r"""Sum of absolute values of all weights, times a factor, and its gradients.

    Parameters
    ----------
    weights : sequence of array_like
        The penalized weights, of any shapes.
    strength : float
        At least 0.
    convention : {'sum', 'mean'}
        sum: ``strength * sum(|w|)``. mean: ``strength / m * sum(|w|)``.
    samples : int, optional
        The m of mean. Only there, and needed there.

    Returns
    -------
    cost : float
        What is added to the loss.
    gradients : list of ndarray
        What is added to the gradient of each weight. At 0, where there is no gradient, it is 0: the subgradient that
        leaves a weight of 0 alone.

    Raises
    ------
    ValueError
        An unknown convention, a negative strength, or samples missing or given in vain.

    Examples
    --------
    >>> cost, (gradient,) = l1_penalty([[3.0, 0.0, -4.0]], 0.5, convention="sum")
    >>> cost, gradient.tolist()
    (3.5, [0.5, 0.0, -0.5])
    """
    one_of("convention", convention, L1_CONVENTIONS)
    factor = strength / _samples(strength, samples, needed=convention == "mean")  # (111)
    arrays = [as_float(weight) for weight in weights]
    cost = factor * sum(float(np.sum(np.abs(weight))) for weight in arrays)  # (112)
    return cost, [factor * np.sign(weight) for weight in arrays]  # (113)


def _samples(strength: float, samples: int | None, *, needed: bool) -> int:
    """Return the number of samples, 1 where the convention has none; raise ValueError if it does not fit."""
    if not strength >= 0:
        raise ValueError(f"strength must be at least 0, but is {strength}. Try its absolute value.")
    if needed != (samples is not None) or (samples is not None and samples < 1):
        what = "needs samples of at least 1" if needed else "has no samples"
        raise ValueError(f"this convention {what}, but samples is {samples}. Try another convention, or check samples.")
    return 1 if samples is None else samples
