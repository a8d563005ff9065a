"""Central differences in float64: what every gradient of the textbook is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Of values of order 1: truncation step^2 and rounding 1e-16 / step are both below 1e-9.
STEP = 1e-5


def assert_close(actual, expected, rtol: float = 1e-12) -> None:
    """Compare relative to the largest expected value: single elements may be small because terms cancelled."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.max(np.abs(expected), initial=0.0))


def numeric_gradient(function: Callable[[np.ndarray], np.ndarray | float], at: np.ndarray, dy) -> np.ndarray:
    """Gradient of ``sum(dy * function(at))`` by central differences; ``dy`` should be random, never constant."""
    at = np.array(at, dtype=np.float64)
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += STEP
        down[index] -= STEP
        gradient[index] = np.sum(dy * (np.asarray(function(up)) - np.asarray(function(down)))) / (2 * STEP)
    return gradient


def assert_gradient(function, at, dy, gradient, rtol: float = 1e-8) -> None:
    """Raise unless ``gradient`` is that of ``sum(dy * function(at))``."""
    assert_close(gradient, numeric_gradient(function, at, dy), rtol)


def complex_step_gradient(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, dy) -> np.ndarray:
    """Gradient of ``sum(dy * function(at))`` for an analytic function: no difference is taken, so no digit is lost."""
    at = np.asarray(at, dtype=np.complex128)
    gradient = np.empty(at.shape)
    for index in np.ndindex(at.shape):
        shifted = at.copy()
        shifted[index] += 1e-30j
        gradient[index] = np.sum(dy * function(shifted)).imag / 1e-30
    return gradient
