"""The renormalized layer beside the rule of Keras, over a whole training."""

from __future__ import annotations

import numpy as np
import torch

import batchnorm
from batchnorm.reference import renorm


def test_50000_steps_of_keras_rule() -> None:
    """Keras 3.15.1, ``renorm=True``: its recursions in its own names, where momentum is the weight of the old value."""
    eps, momentum, steps = 1e-5, 0.99, 50_000
    t = np.arange(steps)[:, None, None]
    wandering = np.random.default_rng(7).normal(size=(steps, 4, 3)) * (1.5 + np.sin(t / 700)) + 4 * np.cos(t / 1100)
    batches = torch.from_numpy(wandering)
    layer = batchnorm.BatchNorm1d(3, momentum=1 - momentum, dtype=torch.float64, statistics=batchnorm.Renorm())
    layer.running_var.fill_(1 - eps)  # sigma = 1, as Keras begins
    renorm_mean, renorm_stddev, clipped = np.zeros(3), np.ones(3), 0
    with torch.no_grad():
        for step, (x, batch) in enumerate(zip(wandering, batches, strict=True)):
            y = layer(batch)
            rmax, dmax = renorm.bounds(step)
            mean, stddev = x.mean(axis=0), np.sqrt(x.var(axis=0) + eps)
            if step % 100 == 0:
                r = np.clip(stddev / renorm_stddev, 1 / rmax, rmax)
                d = np.clip((mean - renorm_mean) / renorm_stddev, -dmax, dmax)
                clipped += np.any(r == rmax)
                np.testing.assert_allclose(y, (x - mean) / stddev * r + d, rtol=0, atol=1e-6)
            renorm_mean = renorm_mean * momentum + mean * (1.0 - momentum)
            renorm_stddev = renorm_stddev * momentum + stddev * (1.0 - momentum)
            if step % 1000 == 999:
                np.testing.assert_allclose(layer.running_mean, renorm_mean, rtol=0, atol=1e-6)
                np.testing.assert_allclose(layer.running_var, renorm_stddev**2 - eps, rtol=0, atol=1e-6)
    assert layer.num_batches_tracked == steps
    assert 0 < clipped < steps // 100
