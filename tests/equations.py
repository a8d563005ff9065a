"""The equations of the chapter on policies as they stand, for real and complex arguments: no code is shared."""

from __future__ import annotations

import numpy as np


def forward(x, weight, bias, residual, *, groups, mask, kept, eps, factor=None, summand=None, activation=None):
    """Return y by (154) to (158): one channel and one group at a time, masks as weights.

    The first value of a channel is subtracted beforehand, which changes nothing (56) and is exact for neighbours.
    """
    number = int(np.max(groups)) + 1
    weight, bias = (np.broadcast_to(value, (number, x.shape[1])) for value in (weight, bias))
    factor = np.ones((number, x.shape[1])) if factor is None else factor
    summand = np.zeros((number, x.shape[1])) if summand is None else summand
    y = np.zeros(x.shape, dtype=np.result_type(x, weight, bias, residual))
    for channel in range(x.shape[1]):
        values = x[:, channel] - x[0, channel].flat[0].real
        for group in range(number):
            inside = np.reshape(groups == group, (-1,) + (1,) * (values.ndim - 1))
            counted = 1.0 * (inside & mask[:, 0])
            if counted.sum() == 0:
                continue
            mean = (counted * values).sum() / counted.sum()
            var = (counted * (values - mean) ** 2).sum() / counted.sum()
            x_hat = (values - mean) / np.sqrt(var + eps)
            corrected = factor[group, channel] * x_hat + summand[group, channel]
            z = weight[group, channel] * corrected + bias[group, channel] + residual[:, channel]
            if activation == "tanh":
                z = np.tanh(z)
            y[:, channel] += (inside & kept[:, 0]) * z
    return y
