"""Dropout, inverted and original. Equation numbers: ``DERIVATION_3_NETWORKS.md``, section 16.

Two conventions are in use for one number: the probability to keep a value (``keep_prob``) and to drop it
(``drop_prob``, torch's ``p``). Exactly one of them is given, by its name. What is kept is divided by the *keep*
probability, whichever was given: dividing by the drop rate is a mistake found in print.

References
----------
Hinton et al. 2012, arXiv:1207.0580. Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
Overfitting", JMLR 15: the original form.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.reference._checks import Array, RandomSource, as_float, probability, with_shape

Mask = NDArray[np.bool_]


class Cache(NamedTuple):
    """What the backward needs of a forward.

    Attributes
    ----------
    mask : ndarray of bool, or None
        True where the value was kept. None: nothing was dropped, because it is test time.
    factor : float
        What a kept value was multiplied by.
    """

    mask: Mask | None
    factor: float


def draw_mask(
    shape: tuple[int, ...],
    *,
    keep_prob: float | None = None,
    drop_prob: float | None = None,
    generator: RandomSource,
) -> Mask:
    """Draw which values are kept: those whose uniform number in [0, 1) is below ``keep_prob``.

    Parameters
    ----------
    shape : tuple of int
        Shape of the mask.
    keep_prob, drop_prob : float in [0, 1]
        One of them: the probability to keep a value, or to drop it.
    generator : numpy.random.Generator or numpy.random.RandomState
        ``RandomState(1)`` draws what ``np.random.seed(1); np.random.rand(*shape)`` does.

    Returns
    -------
    ndarray of bool
        True where the value is kept.

    Raises
    ------
    ValueError
        Not exactly one of the two probabilities, or one outside [0, 1].

    Examples
    --------
    >>> draw_mask((4,), keep_prob=0.5, generator=np.random.RandomState(1)).tolist()  # 0.42, 0.72, 0.0001, 0.30
    [True, False, True, True]
    """
    return np.asarray(generator.random(shape) < _keep_prob(keep_prob, drop_prob))  # (103)


def forward(
    x: ArrayLike,
    *,
    keep_prob: float | None = None,
    drop_prob: float | None = None,
    generator: RandomSource | None = None,
    mask: ArrayLike | None = None,
    training: bool = True,
) -> tuple[Array, Cache]:
    r"""Inverted dropout: zero some values and divide the others by the keep probability; at test time do nothing.

    .. math:: y = x \, M / \text{keep\_prob}

    Parameters
    ----------
    x : array_like of any shape
        The input.
    keep_prob, drop_prob : float
        One of them, by its name: in (0, 1] to keep, or in [0, 1) to drop.
    generator : numpy.random.Generator or numpy.random.RandomState, optional
        Where the mask is drawn from, as in `draw_mask`. Needed in training unless there is a mask.
    mask : array_like of bool, of the shape of ``x``, optional
        Which values to keep, instead of drawing it: to repeat a published one, or to check a gradient.
    training : bool, default=True
        False: the output is the input.

    Returns
    -------
    y : ndarray of the shape of ``x``
        The output, whose mean over masks is ``x``.
    cache : Cache
        For `backward`: the same mask must be used there.

    Raises
    ------
    ValueError
        Not exactly one of the two probabilities, one that keeps nothing or is outside its interval, neither mask nor
        generator in training, or a mask of another shape.

    Examples
    --------
    >>> y, cache = forward([1.0, 2.0, 3.0], drop_prob=0.2, mask=[True, False, True])
    >>> y.tolist()  # divided by 0.8
    [1.25, 0.0, 3.75]
    >>> backward([1.0, 1.0, 1.0], cache).tolist()
    [1.25, 0.0, 1.25]
    """
    x = as_float(x)
    keep_prob = _keep_prob(keep_prob, drop_prob, divides=True)
    if not training:
        return x.copy(), Cache(None, 1.0)
    kept, factor = _mask(x, keep_prob, generator, mask), 1.0 / keep_prob
    return np.where(kept, x * factor, 0.0), Cache(kept, factor)  # (104)


def original_forward(
    x: ArrayLike,
    *,
    keep_prob: float | None = None,
    drop_prob: float | None = None,
    generator: RandomSource | None = None,
    mask: ArrayLike | None = None,
    training: bool = True,
) -> tuple[Array, Cache]:
    """Dropout as first published: zero some values in training, multiply all by the keep probability at test time.

    It makes the test-time network pay for what only training needs; `forward` is what is used today. The two differ
    by the factor ``keep_prob`` in both modes, so weights move from one to the other only with that factor.

    Parameters
    ----------
    x : array_like of any shape
        The input.
    keep_prob, drop_prob : float
        One of them, by its name, as in `forward`.
    generator : numpy.random.Generator or numpy.random.RandomState, optional
        Where the mask is drawn from. Needed in training unless there is a mask.
    mask : array_like of bool, of the shape of ``x``, optional
        Which values to keep, instead of drawing it.
    training : bool, default=True
        False: the output is ``keep_prob * x``.

    Returns
    -------
    y : ndarray of the shape of ``x``
        The output.
    cache : Cache
        For `backward`.

    Raises
    ------
    ValueError
        As `forward`.
    """
    x = as_float(x)
    keep_prob = _keep_prob(keep_prob, drop_prob, divides=True)
    if not training:
        return x * keep_prob, Cache(None, keep_prob)  # (108)
    kept = _mask(x, keep_prob, generator, mask)
    return np.where(kept, x, 0.0), Cache(kept, 1.0)  # (108)


def backward(dy: ArrayLike, cache: Cache) -> Array:
    """Backward of `forward` and of `original_forward`: the same mask, the same factor.

    Parameters
    ----------
    dy : array_like of the shape of ``x``
        Gradient of the loss with respect to the output.
    cache : Cache
        From the forward.

    Returns
    -------
    dx : ndarray of the shape of ``x``
        Gradient of the loss with respect to the input.

    Raises
    ------
    ValueError
        ``dy`` does not have the shape of the mask.
    """
    dy = as_float(dy)
    if cache.mask is None:
        return dy * cache.factor
    dy = with_shape("dy", dy, cache.mask.shape, "x")
    return np.where(cache.mask, dy * cache.factor, 0.0)  # (105)


def _keep_prob(keep_prob: float | None, drop_prob: float | None, *, divides: bool = False) -> float:
    """Return the probability to keep; raise ValueError unless exactly one is given, or if nothing would be kept."""
    if (keep_prob is None) == (drop_prob is None):
        raise ValueError(
            f"exactly one of keep_prob and drop_prob must be given, but they are {keep_prob} and {drop_prob}. "
            "Try drop_prob=0.5; it is torch's p."
        )
    keep = probability("keep_prob", keep_prob) if drop_prob is None else 1.0 - probability("drop_prob", drop_prob)
    if divides and keep == 0:
        raise ValueError(
            "something must be kept, but keep_prob is 0 (drop_prob 1): what is kept is divided by keep_prob. "
            "Try np.zeros_like(x) if that is meant."
        )
    return keep


def _mask(x: Array, keep_prob: float, generator: RandomSource | None, mask: ArrayLike | None) -> Mask:
    if mask is not None:
        return np.asarray(with_shape("mask", mask, x.shape, "x") != 0)
    if generator is None:
        raise ValueError(
            "dropout in training needs a generator or a mask, but there is neither. "
            "Try generator=np.random.default_rng(0), or training=False."
        )
    return draw_mask(x.shape, keep_prob=keep_prob, generator=generator)
