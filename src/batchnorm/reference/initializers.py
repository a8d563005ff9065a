"""Initial weights: small Gaussian, Xavier, Kaiming. Equation numbers: ``DERIVATION_3_NETWORKS.md``, section 19.

A weight has shape (out, in) or (out, in, *K), as torch stores it. Every function draws from the generator that it is
given; ``np.random.RandomState(0)`` draws what ``np.random.seed(0)`` and ``np.random.randn`` do.

References
----------
Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", AISTATS.
He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852.
"""

import math
from typing import NamedTuple

import numpy as np

from batchnorm.reference._checks import Array, RandomSource, one_of

_GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4.0,
}


class Fan(NamedTuple):
    """How many values a unit reads and is read by.

    Attributes
    ----------
    fan_in : int
        Values that enter one output: ``in`` times the area of the kernel.
    fan_out : int
        Outputs that one value enters: ``out`` times the area of the kernel.
    """

    fan_in: int
    fan_out: int


def fan(shape: tuple[int, ...]) -> Fan:
    """Count the fans of a weight, dense or convolutional.

    Parameters
    ----------
    shape : tuple of int
        (out, in) or (out, in, *K). A weight stored (in, out), as in many notes, has the two swapped.

    Returns
    -------
    Fan
        fan_in and fan_out; both contain the area of the kernel.

    Raises
    ------
    ValueError
        Fewer than two axes, or a size below 1.

    Examples
    --------
    >>> fan((100, 784))
    Fan(fan_in=784, fan_out=100)
    >>> fan((64, 3, 5, 5))
    Fan(fan_in=75, fan_out=1600)
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(
            f"shape must be (out, in) or (out, in, *K) with sizes of at least 1, but is {shape}. "
            "Try (out, 1) for a weight with one input."
        )
    area = math.prod(shape[2:])
    return Fan(shape[1] * area, shape[0] * area)  # (118)


def gain(activation: str | None, slope: float = 0.01) -> float:
    """Factor of the standard deviation that makes up for what the activation takes away.

    Parameters
    ----------
    activation : {'linear', 'sigmoid', 'tanh', 'relu', 'leaky_relu', 'selu'} or None
        What follows the layer. None is linear. The values are those of ``torch.nn.init.calculate_gain``.
    slope : float, default=0.01
        Of leaky_relu for negative values.

    Returns
    -------
    float
        For relu ``sqrt(2)``, because half of a symmetric distribution is lost; for tanh 5/3, an empirical choice.

    Raises
    ------
    ValueError
        No gain is known for that activation.

    Examples
    --------
    >>> gain("relu") ** 2
    2.0000000000000004
    """
    if activation == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + slope**2))  # (124)
    name = one_of("activation", "linear" if activation is None else activation, (*_GAINS, "leaky_relu"))
    return _GAINS[name]  # (124)


def small_gaussian(shape: tuple[int, ...], generator: RandomSource, *, std: float = 0.01) -> Array:
    """Draw ``std * randn``: normal with mean 0 and *standard deviation* ``std``.

    Parameters
    ----------
    shape : tuple of int
        Of the weight.
    generator : numpy.random.Generator or numpy.random.RandomState
        Where it is drawn from.
    std : float, default=0.01
        Standard deviation. The variance is its square: ``0.01 * randn`` has variance 0.0001, not 0.01.

    Returns
    -------
    ndarray
        The weight.

    Raises
    ------
    ValueError
        ``std`` is negative.

    Examples
    --------
    >>> small_gaussian((1, 2), np.random.RandomState(0)).round(4).tolist()
    [[0.0176, 0.004]]
    """
    if not std >= 0:
        raise ValueError(f"std must be at least 0, but is {std}. Try np.sqrt(variance) if it is meant as a variance.")
    return std * generator.standard_normal(shape)  # (120)


def xavier_normal(shape: tuple[int, ...], generator: RandomSource, *, activation: str | None = None) -> Array:
    """Draw normal weights by the rule of Glorot and Bengio: a compromise between forward and backward.

    Parameters
    ----------
    shape : tuple of int
        (out, in) or (out, in, *K).
    generator : numpy.random.Generator or numpy.random.RandomState
        Where it is drawn from.
    activation : str, optional
        Its `gain` multiplies the standard deviation. Default: a gain of 1, as in the paper.

    Returns
    -------
    ndarray
        Normal with standard deviation ``gain * sqrt(2 / (fan_in + fan_out))``.

    Raises
    ------
    ValueError
        What `fan` and `gain` raise.
    """
    return small_gaussian(shape, generator, std=_xavier_std(shape, activation))


def xavier_uniform(shape: tuple[int, ...], generator: RandomSource, *, activation: str | None = None) -> Array:
    """Draw uniform weights of the same standard deviation as `xavier_normal`.

    Parameters
    ----------
    shape : tuple of int
        (out, in) or (out, in, *K).
    generator : numpy.random.Generator or numpy.random.RandomState
        Where it is drawn from.
    activation : str, optional
        Its `gain` multiplies the standard deviation. Default: a gain of 1.

    Returns
    -------
    ndarray
        Uniform in ``[-a, a)`` with ``a = sqrt(3) * std``.

    Raises
    ------
    ValueError
        What `xavier_normal` raises.
    """
    return _uniform(shape, generator, _xavier_std(shape, activation))


def kaiming_normal(
    shape: tuple[int, ...], generator: RandomSource, *, activation: str | None = "relu", mode: str = "fan_in"
) -> Array:
    """Draw normal weights by the rule of He et al.: keep the size of the signal, or of the gradient.

    With ``activation=None`` and ``mode="fan_in"`` it is ``randn / sqrt(fan_in)``, which course notes call Xavier; the
    rule is LeCun's, and `xavier_normal` is what Glorot and Bengio published.

    Parameters
    ----------
    shape : tuple of int
        (out, in) or (out, in, *K).
    generator : numpy.random.Generator or numpy.random.RandomState
        Where it is drawn from.
    activation : str, optional
        Its `gain` multiplies the standard deviation. Default: relu.
    mode : {'fan_in', 'fan_out'}, default='fan_in'
        Keep the size of the signal on its way forward, or of the gradient on its way back.

    Returns
    -------
    ndarray
        Normal with standard deviation ``gain / sqrt(fan)``.

    Raises
    ------
    ValueError
        An unknown mode, or what `fan` and `gain` raise.
    """
    return small_gaussian(shape, generator, std=_kaiming_std(shape, activation, mode))


def kaiming_uniform(
    shape: tuple[int, ...], generator: RandomSource, *, activation: str | None = "relu", mode: str = "fan_in"
) -> Array:
    """Draw uniform weights of the same standard deviation as `kaiming_normal`.

    Parameters
    ----------
    shape : tuple of int
        (out, in) or (out, in, *K).
    generator : numpy.random.Generator or numpy.random.RandomState
        Where it is drawn from.
    activation : str, optional
        Its `gain` multiplies the standard deviation. Default: relu.
    mode : {'fan_in', 'fan_out'}, default='fan_in'
        As in `kaiming_normal`.

    Returns
    -------
    ndarray
        Uniform in ``[-a, a)`` with ``a = sqrt(3) * std``.

    Raises
    ------
    ValueError
        What `kaiming_normal` raises.
    """
    return _uniform(shape, generator, _kaiming_std(shape, activation, mode))


def _xavier_std(shape: tuple[int, ...], activation: str | None) -> float:
    return gain(activation) * math.sqrt(2.0 / sum(fan(shape)))  # (121)


def _kaiming_std(shape: tuple[int, ...], activation: str | None, mode: str) -> float:
    one_of("mode", mode, ("fan_in", "fan_out"))
    return gain(activation) / math.sqrt(getattr(fan(shape), mode))  # (123)


def _uniform(shape: tuple[int, ...], generator: RandomSource, std: float) -> Array:
    bound = math.sqrt(3.0) * std  # (122)
    return np.asarray(generator.uniform(-bound, bound, shape))
