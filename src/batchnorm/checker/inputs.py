"""The inputs on which a candidate and the catalogue are compared.

They are chosen so that no two mistakes give the same numbers: no axis is as long as another, ``eps`` is large enough
to be seen, ``momentum`` is none of the usual defaults, channels have different means and deviations, and the upstream
gradient is random (under a sum loss ``dx`` is 0 whatever the backward does).

NumPy and the standard library only: the child process loads this file by its path.
"""

from typing import Any

import numpy as np

#: Added to ``x`` for the test of digits: 1e6 deviations, where a one-pass variance keeps four digits of float64.
FAR = 1e6


def batch_norm(spatial: bool) -> dict[str, Any]:
    """Return inputs of the layer: dense (N, C), or (N, C, H, W)."""
    rng = np.random.default_rng(20150211)
    channels = 4
    shape, second, test = ((3, 4, 2, 5), (2, 4, 2, 5), (1, 4, 2, 5)) if spatial else ((7, 4), (5, 4), (3, 4))
    column = (1, channels, 1, 1) if spatial else (1, channels)
    mean = np.array([0.5, -1.0, 2.0, 4.0]).reshape(column)
    deviation = np.array([0.6, 1.0, 1.7, 2.3]).reshape(column)
    return {
        "x": rng.normal(size=shape) * deviation + mean,
        "x_second": rng.normal(size=second) * deviation + mean,
        "x_test": rng.normal(size=test) * deviation + mean,
        "dout": rng.normal(size=shape),
        "gamma": rng.uniform(0.5, 1.5, channels),
        "beta": rng.uniform(-1.0, 1.0, channels),
        "running_mean": rng.normal(size=channels),
        "running_var": rng.uniform(0.5, 3.0, channels),
        "eps": 0.05,
        "momentum": 0.8,
    }


def dropout() -> dict[str, Any]:
    """Return inputs without zeros, so that a zero in the output was dropped. ``p`` and ``keep_prob`` agree."""
    rng = np.random.default_rng(2014)
    shape = (120, 150)  # a share of 0.7 is estimated to 0.0034
    return {
        "x": rng.uniform(1.0, 2.0, shape),
        "dout": rng.uniform(1.0, 2.0, shape),
        "p": 0.3,
        "keep_prob": 0.7,
        "seed": 11,
    }


def optimizer() -> dict[str, Any]:
    """Return a start, four gradients and hyperparameters. ``epsilon`` is large, so that its place is seen."""
    rng = np.random.default_rng(1412)
    shape = (3, 4)
    return {
        "w": rng.normal(size=shape),
        "gradients": rng.normal(size=(4, *shape)) * np.array([0.02, 0.1, 0.5, 2.0]),
        "config": {
            "learning_rate": 0.07,
            "momentum": 0.8,
            "decay_rate": 0.9,
            "beta1": 0.8,
            "beta2": 0.95,
            "epsilon": 0.03,
        },
        # A run that is resumed: state of three steps ago.
        "state": {
            "velocity": rng.normal(size=shape) * 0.1,
            "cache": rng.uniform(0.1, 0.5, shape),
            "m": rng.normal(size=shape) * 0.1,
            "v": rng.uniform(0.1, 0.5, shape),
            "t": 3,
        },
    }


def initializer() -> dict[str, Any]:
    """Return sizes so different that each formula gives a deviation of its own; 30000 draws estimate it to 0.4%."""
    return {"fan_in": 400, "fan_out": 90, "in_channels": 40, "out_channels": 90, "kernel": 3, "std": 0.02}


def penalty() -> dict[str, Any]:
    """Return weights, a strength and a number of samples."""
    rng = np.random.default_rng(1943)
    return {"W": rng.normal(size=(4, 3)), "lambd": 0.7, "m": 5.0}
