"""Learning-rate schedules: functions of the step. Equation numbers: ``DERIVATION_4_DESCENT.md``, section 21.

Steps count from 0, so ``schedule(0)`` is the rate of the first step. ``functools.partial`` makes a schedule of one
argument, and `warm_up` takes such a schedule to begin gently what the schedule then continues.

References
----------
Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983: cosine. Goyal et al. 2017, arXiv:1706.02677: warm-up.
"""

import math
from collections.abc import Callable

#: From the step, counted from 0, to the learning rate.
Schedule = Callable[[int], float]


def step_decay(step: int, *, lr: float, factor: float = 0.1, period: int) -> float:
    """Multiply the rate by ``factor`` every ``period`` steps.

    Parameters
    ----------
    step : int
        From 0.
    lr : float
        Rate at step 0.
    factor : float, default=0.1
        What a drop multiplies by.
    period : int
        Steps between drops. At least 1.

    Returns
    -------
    float
        ``lr * factor ** (step // period)``.

    Raises
    ------
    ValueError
        A negative step, or a period below 1.

    Examples
    --------
    >>> [step_decay(step, lr=0.8, factor=0.5, period=2) for step in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """
    _check(step, "period", period)
    return lr * factor ** (step // period)  # (126)


def exponential_decay(step: int, *, lr: float, factor: float) -> float:
    """Multiply the rate by ``factor`` at every step.

    Parameters
    ----------
    step : int
        From 0.
    lr : float
        Rate at step 0.
    factor : float
        What each step multiplies by; ``exp(-k)`` for a decay written ``lr * exp(-k * step)``.

    Returns
    -------
    float
        ``lr * factor ** step``.

    Raises
    ------
    ValueError
        A negative step.

    Examples
    --------
    >>> [exponential_decay(step, lr=1.0, factor=0.5) for step in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """
    _check(step, "steps", 1)
    return lr * factor**step  # (127)


def polynomial_decay(step: int, *, lr: float, steps: int, power: float = 1.0, end: float = 0.0) -> float:
    """Fall from ``lr`` to ``end`` in ``steps`` steps along a power, then stay; linear for ``power=1``.

    Parameters
    ----------
    step : int
        From 0.
    lr : float
        Rate at step 0.
    steps : int
        When the end is reached. At least 1.
    power : float, default=1
        Shape of the way down.
    end : float, default=0
        Rate from step ``steps`` on.

    Returns
    -------
    float
        ``end + (lr - end) * (1 - step / steps) ** power``.

    Raises
    ------
    ValueError
        A negative step, or steps below 1.

    Examples
    --------
    >>> [polynomial_decay(step, lr=1.0, steps=4, power=2) for step in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    _check(step, "steps", steps)
    return end + (lr - end) * math.pow(1 - min(step, steps) / steps, power)  # (128)


def cosine_decay(step: int, *, lr: float, steps: int, end: float = 0.0) -> float:
    """Fall from ``lr`` to ``end`` in ``steps`` steps along half a period of the cosine, then stay.

    Parameters
    ----------
    step : int
        From 0.
    lr : float
        Rate at step 0.
    steps : int
        When the end is reached. At least 1.
    end : float, default=0
        Rate from step ``steps`` on.

    Returns
    -------
    float
        ``end + (lr - end) * (1 + cos(pi * step / steps)) / 2``.

    Raises
    ------
    ValueError
        A negative step, or steps below 1.

    Examples
    --------
    >>> [round(cosine_decay(step, lr=1.0, steps=4), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    _check(step, "steps", steps)
    return end + (lr - end) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2  # (129)


def warm_up(step: int, schedule: Schedule, *, steps: int) -> float:
    """Raise the rate in equal parts to that of another schedule, which then begins at its own step 0.

    Parameters
    ----------
    step : int
        From 0.
    schedule : callable
        From a step to a rate: what follows.
    steps : int
        Length of the rise. 0: none.

    Returns
    -------
    float
        ``schedule(0) * (step + 1) / steps`` before ``steps``, ``schedule(step - steps)`` from there on. No step has
        a rate of 0.

    Raises
    ------
    ValueError
        A negative step or length.

    Examples
    --------
    >>> import functools
    >>> after = functools.partial(step_decay, lr=1.0, factor=0.5, period=2)
    >>> [warm_up(step, after, steps=4) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5]
    """
    if step < 0 or steps < 0:
        raise ValueError(f"step and steps must be at least 0, but are {step} and {steps}. Try steps=0 for no warm-up.")
    return schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)  # (130)


def _check(step: int, name: str, length: int) -> None:
    if step < 0 or length < 1:
        raise ValueError(
            f"step must be at least 0 and {name} at least 1, but they are {step} and {length}. Try to count from 0."
        )
