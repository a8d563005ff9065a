"""Weights of a new batch in the running statistics. Equation numbers: ``DERIVATION_5_POLICIES.md``, section 28.

The update itself is (44) and (45) for every kind of average: `statistics.update_running`, once per batch, with a factor
that may depend on the number of batches.

References
----------
Kingma and Ba 2015, "Adam", arXiv:1412.6980, section 3: bias correction.
"""

import math


def momentum_of_half_life(half_life: float) -> float:
    """Return the momentum with which a batch loses half of its weight in so many batches.

    Parameters
    ----------
    half_life : float
        In batches; more than 0.

    Returns
    -------
    float
        ``1 - 2 ** (-1 / half_life)``.

    Raises
    ------
    ValueError
        ``half_life`` is not positive.

    Examples
    --------
    >>> momentum_of_half_life(1.0)
    0.5
    """
    if not half_life > 0:
        raise ValueError(f"half_life must be a positive number of batches, but is {half_life}. Try 6.6: momentum=0.1.")
    return -math.expm1(-math.log(2) / half_life)  # (179)


def half_life_of_momentum(momentum: float) -> float:
    """Return the number of batches in which a batch loses half of its weight.

    Parameters
    ----------
    momentum : float
        Weight of the new batch; more than 0 and less than 1.

    Returns
    -------
    float
        In batches.

    Raises
    ------
    ValueError
        ``momentum`` has no half-life: it never updates, or remembers one batch alone.

    Examples
    --------
    >>> round(half_life_of_momentum(0.1), 3)
    6.579
    """
    if not 0 < momentum < 1:
        raise ValueError(f"only a momentum between 0 and 1 has a half-life, but it is {momentum}. Try 0.1.")
    return -math.log(2) / math.log1p(-momentum)  # (180)


def debiased_factor(momentum: float, num_batches_tracked: int) -> float:
    """Return the weight of a new batch in an exponential average that has forgotten its initial value.

    Parameters
    ----------
    momentum : float
        Weight of the new batch in the long run; more than 0 and at most 1.
    num_batches_tracked : int
        Batches seen so far, this one included.

    Returns
    -------
    float
        1 for the first batch, falling to ``momentum``. For small ``momentum`` it is near ``1 / num_batches_tracked``.

    Raises
    ------
    ValueError
        An argument out of range.

    Examples
    --------
    >>> [round(debiased_factor(0.5, n), 3) for n in (1, 2, 3, 20)]
    [1.0, 0.667, 0.571, 0.5]
    """
    if not 0 < momentum <= 1:
        raise ValueError(
            f"momentum of a debiased average must be more than 0 and at most 1, but is {momentum}. Try 0.1."
        )
    if num_batches_tracked < 1:
        raise ValueError(
            f"num_batches_tracked must count the batch at hand, so be at least 1, but is {num_batches_tracked}. "
            "Try to add 1 before the update."
        )
    if momentum == 1:
        return 1.0
    return momentum / -math.expm1(num_batches_tracked * math.log1p(-momentum))  # (182)
