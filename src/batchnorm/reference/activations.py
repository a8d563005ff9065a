"""The activations that may follow a normalization: each is a function and its derivative.

The names are those of ``torch.nn.functional``, and so are the values of the derivative at a kink: 0 for relu at 0 and
for relu6 at 0 and 6, the slope for leaky_relu at 0, and the values of the flat and of the linear part for hardswish at
-3 and 3. No exponential here has a positive argument, so nothing overflows however large the input is. Equation numbers
refer to ``DERIVATION.md``, section 7.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAKY_RELU_SLOPE = 0.01


class Activation(NamedTuple):
    """An elementwise function and its derivative with respect to its input.

    Both take a float64 array of any shape and return a new one of the same shape.

    Attributes
    ----------
    function : callable
        z -> f(z).
    derivative : callable
        z -> f'(z).
    """

    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def _identity(z: Array) -> Array:
    return z.copy()  # (34)


def _identity_derivative(z: Array) -> Array:
    return np.ones_like(z)  # (34)


def _relu(z: Array) -> Array:
    return np.maximum(z, 0.0)  # (35)


def _relu_derivative(z: Array) -> Array:
    return np.where(z <= 0, 0.0, 1.0)  # (35)


def _relu6(z: Array) -> Array:
    return np.clip(z, 0.0, 6.0)  # (35)


def _relu6_derivative(z: Array) -> Array:
    return np.where((z <= 0) | (z >= 6), 0.0, 1.0)  # (35)


def _leaky_relu(z: Array) -> Array:
    return np.where(z > 0, z, LEAKY_RELU_SLOPE * z)  # (36)


def _leaky_relu_derivative(z: Array) -> Array:
    return np.where(z > 0, 1.0, LEAKY_RELU_SLOPE)  # (36)


def _sigmoid(z: Array) -> Array:
    decay = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, decay) / (1.0 + decay)  # (37)


def _sigmoid_derivative(z: Array) -> Array:
    return _sigmoid(z) * _sigmoid(-z)  # (37)


def _tanh(z: Array) -> Array:
    return np.tanh(z)  # (38)


def _tanh_derivative(z: Array) -> Array:
    return 4.0 * _sigmoid_derivative(2.0 * z)  # (38)


def _silu(z: Array) -> Array:
    return z * _sigmoid(z)  # (39)


def _silu_derivative(z: Array) -> Array:
    return _sigmoid(z) * (1.0 + z * _sigmoid(-z))  # (39)


def _hardswish(z: Array) -> Array:
    return z * np.clip(z + 3.0, 0.0, 6.0) / 6.0  # (40)


def _hardswish_derivative(z: Array) -> Array:
    return np.where(z <= -3, 0.0, np.where(z >= 3, 1.0, z / 3.0 + 0.5))  # (40)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _normal_cdf(z: Array) -> Array:
    # erfc keeps the digits of the left tail, where 1 + erf(z / sqrt 2) would cancel.
    return 0.5 * np.asarray(_erfc(-z / math.sqrt(2.0)), dtype=np.float64)


def _gelu(z: Array) -> Array:
    return z * _normal_cdf(z)  # (41)


def _gelu_derivative(z: Array) -> Array:
    return _normal_cdf(z) + z * np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)  # (41)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu": Activation(_gelu, _gelu_derivative),
        "hardswish": Activation(_hardswish, _hardswish_derivative),
        "leaky_relu": Activation(_leaky_relu, _leaky_relu_derivative),
        "relu": Activation(_relu, _relu_derivative),
        "relu6": Activation(_relu6, _relu6_derivative),
        "sigmoid": Activation(_sigmoid, _sigmoid_derivative),
        "silu": Activation(_silu, _silu_derivative),
        "tanh": Activation(_tanh, _tanh_derivative),
    }
)

_IDENTITY = Activation(_identity, _identity_derivative)


def get_activation(name: str | None) -> Activation:
    """Return the activation of that name.

    Parameters
    ----------
    name : {'gelu', 'hardswish', 'leaky_relu', 'relu', 'relu6', 'sigmoid', 'silu', 'tanh'} or None
        gelu is the exact one (erf), the slope of leaky_relu is 0.01. None is the identity.

    Returns
    -------
    Activation
        The function and its derivative.

    Raises
    ------
    ValueError
        The name is not known.

    Examples
    --------
    >>> import numpy as np
    >>> function, derivative = get_activation("relu")
    >>> function(np.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    >>> derivative(np.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    if name is None:
        return _IDENTITY
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be None or one of {known}, but is {name!r}. Try a name from that list.")
    return ACTIVATIONS[name]
