"""The float64 reference, asked about torch tensors, with the bound that each of its answers allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import tolerances as tol
from batchnorm.reference import batch_norm as reference
from batchnorm.reference import statistics as reference_statistics


@dataclass(frozen=True)
class Answer:
    """A value of the reference and the largest absolute error allowed, both float64."""

    value: np.ndarray
    bound: np.ndarray

    def check(self, name: str, got: Tensor) -> None:
        """Raise unless every element of ``got`` is within the bound; say which are not, first ones first."""
        got = got.detach()
        got64 = got.double().numpy()
        assert got64.shape == self.value.shape, f"{name}: shape {got64.shape}, expected {self.value.shape}"
        with np.errstate(over="ignore"):
            value = torch.from_numpy(np.ascontiguousarray(self.value)).to(got.dtype).double().numpy()
        error = np.abs(got64 - self.value)
        bound = np.broadcast_to(self.bound, error.shape) + tol.storage_eps(got.dtype) / 2 * np.abs(self.value)
        # Beyond the storage's range the rounded reference is infinite, and so must the result be.
        wrong = np.where(np.isfinite(value), ~(error <= bound + tol.smallest(got.dtype)), got64 != value)
        if wrong.any():
            worst = [
                f"{tuple(map(int, i))}: got {got64[tuple(i)]!r}, expected {self.value[tuple(i)]!r}, "
                f"error {error[tuple(i)]:.3g} > {bound[tuple(i)]:.3g}"
                for i in np.argwhere(wrong)[:5]
            ]
            raise AssertionError(f"{name}: {wrong.sum()} of {wrong.size} elements are off\n" + "\n".join(worst))

    def misses(self, got: Tensor) -> bool:
        """Whether ``got`` is out of the bound: what a naive form must be in a hard regime."""
        try:
            self.check("naive", got)
        except AssertionError:
            return True
        return False


def ask(
    x: Tensor,
    dy: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> dict[str, Answer]:
    """Return the reference's y, statistics, running buffers and gradients for these inputs, each with its bound."""
    arrays = {"weight": weight, "bias": bias, "residual": residual}
    parameters = {name: None if t is None else _array(t) for name, t in arrays.items()}
    options = {"eps": eps, "activation": activation, "residual": parameters["residual"]}
    affine = (parameters["weight"], parameters["bias"])
    if training:
        y, cache = reference.forward_train(_array(x), *affine, **options)
        grads = reference.backward(_array(dy), cache)
    else:
        y, cache = reference.forward_test(_array(x), *map(_array, running), *affine, **options)
        grads = reference.backward_test(_array(dy), cache)

    unit = tol.arithmetic_eps(x.dtype)
    axes = (0, *range(2, x.dim()))
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = np.abs(cache.weight * cache.invstd).reshape(shape)
    # What is left of the mean after centring, in deviations and in units of the arithmetic's eps: the statistics'
    # own rounding (float64), and that of the second centring, which is of the size of the first one's error.
    left_over = tol.storage_eps(torch.float64) / unit + unit * (1 + math.log2(max(cache.count, 1)))
    left_over = left_over * np.abs(cache.mean * cache.invstd).reshape(shape)
    x_hat = np.abs(cache.x_hat).max(axes, keepdims=True, initial=0) + left_over
    added = sum(np.abs(term) for term in (_or_zero(bias).reshape(shape), _or_zero(residual)))
    z = np.abs(cache.weight).reshape(shape) * x_hat + added
    answers = {"y": Answer(y, tol.FORWARD_ULPS * unit * z)}

    dz = grads.dresidual
    # An error of z moves the slope of the activation: dz carries |dy| times it.
    dz_size = np.abs(_array(dy)) * (1 + (0 if activation is None else z))
    mean_dz = dz_size.mean(axes, keepdims=True)
    mean_dz_x_hat = (dz_size * x_hat).mean(axes, keepdims=True)
    dx_size = scale * (dz_size + (mean_dz + x_hat * mean_dz_x_hat if training else 0))
    sum_ulps = tol.SUM_ULPS + math.log2(max(cache.count, 1))
    answers["dx"] = Answer(grads.dx, (tol.GRADIENT_ULPS + sum_ulps) * unit * dx_size)
    answers["dresidual"] = Answer(dz, tol.GRADIENT_ULPS * unit * dz_size)
    total = tol.GRADIENT_ULPS + sum_ulps
    answers["dweight"] = Answer(grads.dweight, total * unit * (dz_size * x_hat).sum(axes))
    answers["dbias"] = Answer(grads.dbias, total * unit * dz_size.sum(axes))

    if training:
        # The mean is a rounded one plus the mean of what it leaves, each accumulated in the arithmetic's dtype.
        mean_size = np.abs(cache.mean) * unit + np.sqrt(cache.var)
        answers["mean"] = Answer(cache.mean, tol.STATISTIC_ULPS * unit * mean_size + tol.smallest(x.dtype))
        # Squares below the smallest number of the arithmetic vanish.
        var_size = tol.STATISTIC_ULPS * unit * cache.var + (unit * unit * cache.mean * sum_ulps) ** 2
        answers["var"] = Answer(cache.var, var_size + tol.smallest(x.dtype))
        if running is not None:
            new_mean, new_var = reference_statistics.update_running(
                *map(_array, running), cache.mean, cache.var, cache.count, momentum
            )
            for name, former, new in zip(("mean", "var"), running, (new_mean, new_var), strict=True):
                size = np.abs(_array(former)) + np.abs(new)
                averaging = tol.AVERAGING_ULPS * tol.storage_eps(torch.float64) * size
                # running_var holds the unbiased variance: at most twice the biased one.
                answers[f"running_{name}"] = Answer(new, 2 * momentum * answers[name].bound + averaging)
    return answers


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _or_zero(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(1) if tensor is None else _array(tensor)
