"""What several modules of the textbook ask of their arguments."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: What may stand for a source of random numbers. ``RandomState`` is NumPy's older one: published protocols that say
#: ``np.random.seed(0)`` are reproduced with ``np.random.RandomState(0)``.
RandomSource = np.random.Generator | np.random.RandomState


def as_float(value: ArrayLike) -> Array:
    """Return the value as a float64 array."""
    return np.asarray(value, dtype=np.float64)


def with_shape(name: str, value: ArrayLike, shape: tuple[int, ...], whose: str) -> Array:
    """Return the value as a float64 array; raise ValueError unless it has the shape, which is that of ``whose``."""
    array = as_float(value)
    if array.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape}, that of {whose}, but has shape {array.shape}. Try {name}.reshape{shape} "
            "if the number of values is right."
        )
    return array


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """Return the value; raise ValueError unless it is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, but is {value!r}. Try a name from that list.")
    return value


def probability(name: str, value: float | None) -> float:
    """Return the value; raise ValueError unless it is in [0, 1]."""
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], but is {value}. Try {name} / 100 if it is in per cent.")
    return value


def check_variance(var: Array, eps: float) -> None:
    """Raise ValueError unless eps is at least 0 and ``var + eps`` positive. NaN, the variance of no values, passes."""
    if not eps >= 0 or np.any(var + eps <= 0):
        raise ValueError(
            f"var + eps must be positive in every channel and eps at least 0, but eps is {eps} and the smallest "
            f"var is {np.min(var, initial=np.inf)}. Try eps=1e-5."
        )
