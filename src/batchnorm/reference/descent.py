"""Descent on functions that can be drawn, and convexity on samples. Equation numbers: ``DERIVATION_4_DESCENT.md``.

Every function takes points of shape (*, D), so that one call gives the values on a grid for a contour plot.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.reference._checks import Array, RandomSource, as_float, with_shape
from batchnorm.reference.optimizers import Rule, sgd
from batchnorm.reference.schedules import Schedule


class Function(NamedTuple):
    """A function of D numbers with its gradient.

    Attributes
    ----------
    name : str
        For titles and tables.
    value : callable
        From points of shape (*, D) to values of shape (*).
    gradient : callable
        From points of shape (*, D) to gradients of shape (*, D).
    start : ndarray of shape (D,)
        A point from which the way down is worth watching.
    minima : ndarray of shape (M, D)
        The global minima.
    """

    name: str
    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    start: Array
    minima: Array


class SampleMean(NamedTuple):
    """A loss that is a mean over samples.

    Attributes
    ----------
    samples : int
        How many there are.
    value : callable
        From w of shape (D,) to the mean loss over all samples.
    gradient : callable
        From w and the indices of some samples to the gradient of the mean loss over these.
    """

    samples: int
    value: Callable[[Array], float]
    gradient: Callable[[Array, NDArray[np.intp]], Array]


class Trajectory(NamedTuple):
    """Where a descent went.

    Attributes
    ----------
    points : ndarray of shape (steps + 1, D)
        The start, and the point after each step.
    values : ndarray of shape (steps + 1,)
        The function (of all samples) at these points.
    """

    points: Array
    values: Array


def quadratic(condition: float, dimension: int = 2) -> Function:
    """Convex bowl with the curvatures 1 to ``condition`` along the axes, in equal ratios.

    Parameters
    ----------
    condition : float
        Largest curvature over smallest. At least 1.
    dimension : int, default=2
        At least 1; with one dimension the curvature is ``condition``.

    Returns
    -------
    Function
        Minimum 0 at the origin.

    Raises
    ------
    ValueError
        A condition or dimension below 1.

    Examples
    --------
    >>> import numpy as np
    >>> bowl = quadratic(10.0)
    >>> float(bowl.value(np.array([2.0, 1.0]))), bowl.gradient(np.array([2.0, 1.0])).tolist()
    (7.0, [2.0, 10.0])
    """
    if not condition >= 1 or dimension < 1:
        raise ValueError(
            f"condition and dimension must be at least 1, but are {condition} and {dimension}. "
            "Try 1 / condition if it is smallest over largest."
        )
    curvatures = np.geomspace(1.0, condition, dimension) if dimension > 1 else np.array([condition])
    return Function(
        f"quadratic, condition {condition:g}",
        value=lambda w: 0.5 * np.sum(curvatures * w**2, axis=-1),  # (142)
        gradient=lambda w: curvatures * w,  # (142)
        start=np.ones(dimension),
        minima=np.zeros((1, dimension)),
    )


#: One dimension, many local minima (near multiples of 2 pi / 3), the global one at 0.
WAVES = Function(
    "waves",
    value=lambda w: w[..., 0] ** 2 / 10 + 1 - np.cos(3 * w[..., 0]),  # (143)
    gradient=lambda w: w / 5 + 3 * np.sin(3 * w),  # (143)
    start=np.array([5.0]),
    minima=np.zeros((1, 1)),
)

#: A saddle at the origin between two minima. The start is almost on the ridge that leads into it.
SADDLE = Function(
    "saddle",
    value=lambda w: w[..., 0] ** 2 / 2 - w[..., 1] ** 2 / 2 + w[..., 1] ** 4 / 4,  # (144)
    gradient=lambda w: np.stack([w[..., 0], w[..., 1] ** 3 - w[..., 1]], axis=-1),  # (144)
    start=np.array([1.0, 1e-3]),
    minima=np.array([[0.0, 1.0], [0.0, -1.0]]),
)

#: Rosenbrock's banana: a curved valley, steep across and almost flat along. Not convex.
ROSENBROCK = Function(
    "Rosenbrock",
    value=lambda w: (1 - w[..., 0]) ** 2 + 100 * (w[..., 1] - w[..., 0] ** 2) ** 2,  # (145)
    gradient=lambda w: np.stack(  # (145)
        [
            -2 * (1 - w[..., 0]) - 400 * w[..., 0] * (w[..., 1] - w[..., 0] ** 2),
            200 * (w[..., 1] - w[..., 0] ** 2),
        ],
        axis=-1,
    ),
    start=np.array([-1.2, 1.0]),
    minima=np.ones((1, 2)),
)


def least_squares(x: ArrayLike, y: ArrayLike) -> SampleMean:
    """Half the mean squared error of a linear model without bias.

    Parameters
    ----------
    x : array_like of shape (N, D)
        Features.
    y : array_like of shape (N,)
        Targets.

    Returns
    -------
    SampleMean
        A loss of w, of shape (D,).

    Raises
    ------
    ValueError
        Shapes that do not fit, or no sample.
    """
    x = as_float(x)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must have shape (N, D) with N at least 1, but has shape {x.shape}. Try x[:, None].")
    y = with_shape("y", y, (len(x),), "the samples of x")
    return SampleMean(
        samples=len(x),
        value=lambda w: float(0.5 * np.mean((x @ w - y) ** 2)),  # (149)
        gradient=lambda w, batch: x[batch].T @ (x[batch] @ w - y[batch]) / len(batch),  # (150)
    )


def descend(
    function: Function,
    start: ArrayLike | None = None,
    *,
    steps: int,
    lr: float | Schedule,
    rule: Rule = sgd,
    noise_std: float = 0.0,
    generator: RandomSource | None = None,
) -> Trajectory:
    """Follow the gradient of a function.

    Parameters
    ----------
    function : Function
        What to minimize.
    start : array_like of shape (D,), optional
        Default: the function's own.
    steps : int
        How many.
    lr : float or callable
        Learning rate, or a schedule from the step (counted from 0) to it.
    rule : callable, default=sgd
        From `optimizers`; ``functools.partial`` sets its other arguments.
    noise_std : float, default=0
        Standard deviation of the normal noise added to each component of each gradient.
    generator : numpy.random.Generator or numpy.random.RandomState, optional
        Where the noise is drawn from. Needed if there is any.

    Returns
    -------
    Trajectory
        All points and values. A descent that diverges ends in infinities or NaN, and says so there.

    Raises
    ------
    ValueError
        A start of the wrong shape, or noise without a generator.

    Examples
    --------
    >>> descend(quadratic(4.0, dimension=1), steps=3, lr=0.125).points.ravel().tolist()
    [1.0, 0.5, 0.25, 0.125]
    """
    if noise_std != 0 and generator is None:
        raise ValueError(f"noise needs a generator, but noise_std is {noise_std} and there is none. Try noise_std=0.")
    start = function.start if start is None else with_shape("start", start, function.start.shape, "function.start")

    def gradient(w: Array, _step: int) -> Array:
        exact = function.gradient(w)
        return exact if generator is None else exact + noise_std * generator.standard_normal(w.shape)

    points = _follow(gradient, start, steps, lr, rule)
    with np.errstate(over="ignore", invalid="ignore"):
        return Trajectory(points, np.asarray(function.value(points)))


def stochastic_descend(
    loss: SampleMean,
    start: ArrayLike,
    *,
    batch_size: int,
    epochs: int,
    lr: float | Schedule,
    generator: RandomSource,
    rule: Rule = sgd,
) -> Trajectory:
    """Follow the gradients of small batches, each epoch in a new order.

    Parameters
    ----------
    loss : SampleMean
        What to minimize.
    start : array_like of shape (D,)
        Where to begin.
    batch_size : int
        1: stochastic descent. All samples: gradient descent. Between: mini-batches; the last of an epoch is smaller
        if the samples do not divide evenly.
    epochs : int
        Passes over the samples.
    lr : float or callable
        Learning rate, or a schedule from the step (counted from 0) to it.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where the order is drawn from.
    rule : callable, default=sgd
        From `optimizers`.

    Returns
    -------
    Trajectory
        The point after each *step*, and the loss over all samples there.

    Raises
    ------
    ValueError
        A batch size below 1 or above the number of samples.
    """
    if not 1 <= batch_size <= loss.samples:
        raise ValueError(f"batch_size must be from 1 to {loss.samples}, but is {batch_size}. Try {loss.samples}.")
    batches: list[NDArray[np.intp]] = []
    for _ in range(epochs):
        order = np.asarray(generator.permutation(loss.samples))
        batches += [order[first : first + batch_size] for first in range(0, loss.samples, batch_size)]
    points = _follow(lambda w, step: loss.gradient(w, batches[step]), as_float(start), len(batches), lr, rule)
    with np.errstate(over="ignore", invalid="ignore"):
        return Trajectory(points, np.array([loss.value(point) for point in points]))


def convexity_gap(
    value: Callable[[Array], ArrayLike], points: ArrayLike, shares: ArrayLike = (0.25, 0.5, 0.75)
) -> float:
    """Largest excess of a function over its chords: above 0 proves that it is not convex.

    At most 0 proves nothing beyond the points that were tried; rounding may leave a few ulp of the values.

    Parameters
    ----------
    value : callable
        From points of shape (*, D) to values of shape (*).
    points : array_like of shape (N, D)
        The ends of the chords; all pairs are tried.
    shares : array_like of numbers in [0, 1]
        Where on each chord to look.

    Returns
    -------
    float
        The largest ``f(s a + (1 - s) b) - (s f(a) + (1 - s) f(b))``.

    Raises
    ------
    ValueError
        Fewer than two points, or a share outside [0, 1].

    Examples
    --------
    >>> convexity_gap(SADDLE.value, [[0.0, -1.0], [0.0, 1.0]])  # at the origin it is 1/4 above the minima
    0.25
    """
    ends, s = as_float(points), as_float(shares)[:, None, None]
    if ends.ndim != 2 or len(ends) < 2 or s.size == 0 or not np.all((s >= 0) & (s <= 1)):
        raise ValueError(
            f"points must have shape (N, D) with N at least 2, and shares must be in [0, 1], but the shape is "
            f"{ends.shape} and the shares are {s.ravel().tolist()}. Try points[:, None] in one dimension."
        )
    heights = as_float(value(ends))
    on_curve = as_float(value(s[..., None] * ends[:, None] + (1 - s[..., None]) * ends))
    on_chord = s * heights[:, None] + (1 - s) * heights
    return float(np.max(on_curve - on_chord))  # (152)


def jensen_gap(value: Callable[[Array], ArrayLike], points: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean of the values minus the value of the mean: not negative for a convex function.

    Parameters
    ----------
    value : callable
        From points of shape (*, D) to values of shape (*).
    points : array_like of shape (N, D)
        The samples.
    weights : array_like of shape (N,), optional
        Probabilities of the samples; not negative, with sum 1. Default: all the same.

    Returns
    -------
    float
        ``E f(X) - f(E X)``.

    Raises
    ------
    ValueError
        No points, or weights that are no probabilities.

    Examples
    --------
    >>> jensen_gap(lambda w: w[..., 0] ** 2, [[-1.0], [1.0]])  # the variance
    1.0
    """
    samples = as_float(points)
    if samples.ndim != 2 or len(samples) == 0:
        raise ValueError(
            f"points must have shape (N, D) with N at least 1, but has shape {samples.shape}. Try [[0.0]]."
        )
    count = len(samples)
    p = np.full(count, 1 / count) if weights is None else with_shape("weights", weights, (count,), "the points")
    if np.any(p < 0) or abs(p.sum() - 1) > 1e-9:
        raise ValueError(
            f"weights must not be negative and sum to 1, but sum to {p.sum()}. Try weights / sum(weights)."
        )
    return float(p @ as_float(value(samples)) - as_float(value(p @ samples)))  # (153)


def _follow(
    gradient: Callable[[Array, int], Array], start: Array, steps: int, lr: float | Schedule, rule: Rule
) -> Array:
    """Points of a descent, the start included: shape (steps + 1, D)."""
    points, state = [start], None
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            rate = lr(step) if callable(lr) else lr
            w, state = rule(points[-1], gradient(points[-1], step), state, lr=rate)  # (146)
            points.append(w)
    return np.array(points)
