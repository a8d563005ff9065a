"""The float64 reference, asked about torch tensors, with the bound that each of its answers allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import tolerances as tol
from batchnorm.reference import policies, renorm
from batchnorm.reference.statistics import averaging_factor, from_rows, to_rows
from numeric import numeric_gradient


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


@dataclass(frozen=True)
class Bounds:
    """The bounds of a Batch Renormalization, and what it averages; the running variance is sigma^2 - eps for both."""

    rmax: float
    dmax: float
    average: str = "variance"


def ask(
    x: Tensor,
    dy: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    mask: Tensor | None = None,
    kept: Tensor | None = None,
    groups: Tensor | None = None,
    bounds: Bounds | None = None,
    num_batches_tracked: int = 0,
    factor: Callable[[int], float] | None = None,
) -> dict[str, Answer]:
    """Return the reference's y, statistics, running buffers and gradients for these inputs, each with its bound.

    ``mask``, ``kept`` (N, 1, *) and ``groups`` (N,) are those of `policies.forward_train`; ``running`` of shape (G, C)
    holds statistics per group, updated as keys. ``factor`` is the weight of batch n; by default that of ``momentum``.
    """
    forward, cache = _forward(x, weight, bias, residual, running, training, eps, activation, mask, kept, groups, bounds)
    grads = policies.backward(_array(dy), cache)
    sizes = _sizes(x, dy, bias, residual, activation, cache, bounds and _deviation(running, eps))
    unit, terms = tol.arithmetic_eps(x.dtype), max(len(cache.x_hat), 1)
    total = tol.GRADIENT_ULPS + tol.SUM_ULPS + math.log2(terms)
    answers = {
        "y": Answer(forward, tol.FORWARD_ULPS * unit * sizes["z"]),
        "dx": Answer(grads.dx, total * unit * sizes["dx"]),
        "dresidual": Answer(grads.dresidual, tol.GRADIENT_ULPS * unit * sizes["dz"]),
        "dweight": Answer(grads.dweight, total * unit * sizes["dweight"]),
        "dbias": Answer(grads.dbias, total * unit * sizes["dbias"]),
    }
    if not training:
        return answers

    mean, var = (np.array([getattr(found, name) for found in cache.statistics]) for name in ("mean", "var"))
    # The mean is a rounded one plus the mean of what it leaves, each accumulated in the arithmetic's dtype.
    mean_bound = tol.STATISTIC_ULPS * unit * (np.abs(mean) * unit + np.sqrt(var)) + tol.smallest(x.dtype)
    # Squares below the smallest number of the arithmetic vanish.
    sum_ulps = tol.SUM_ULPS + math.log2(terms)
    var_bound = tol.STATISTIC_ULPS * unit * var + (unit * unit * mean * sum_ulps) ** 2 + tol.smallest(x.dtype)
    one = groups is None  # one group: its row alone
    answers["mean"] = Answer(mean[0], mean_bound[0]) if one else Answer(mean, mean_bound)
    answers["var"] = Answer(var[0], var_bound[0]) if one else Answer(var, var_bound)
    if running is not None:
        factor = factor or functools.partial(averaging_factor, momentum)
        per_key = running[0].dim() == 2
        update = policies.update_per_key if per_key else policies.update_in_turn
        tracked = np.full(len(mean), num_batches_tracked) if per_key else num_batches_tracked
        new_mean, new_var, _ = update(*map(_array, running), tracked, cache.statistics, factor)
        if bounds is not None and bounds.average == "deviation":
            (_, batch_var, count), weight_of_batch = cache.statistics[0], factor(num_batches_tracked + 1)
            sigma = renorm.update_sigma(_deviation(running, eps), batch_var, count, weight_of_batch, eps)
            new_var = sigma**2 - eps if count else _array(running[1])
            var_bound = var_bound * np.nan_to_num(sigma / np.sqrt(batch_var + eps))  # the slope of the square
        valid = [group for group, found in enumerate(cache.statistics) if found.count > 0]
        # A loop over groups rounds the buffer once per group; `Answer.check` allows for one rounding.
        roundings = 0 if per_key else max(len(valid) - 1, 0)
        largest = max([factor(num_batches_tracked + n) for n in range(1, max(len(valid), 1) + 1)])
        for name, former, new, bound in zip(
            ("mean", "var"), running, (new_mean, new_var), (mean_bound, var_bound), strict=True
        ):
            size = np.abs(_array(former)) + np.abs(new)
            averaging = (roundings + 1) * tol.AVERAGING_ULPS * tol.storage_eps(torch.float64) * size
            averaging = averaging + roundings * tol.storage_eps(former.dtype) / 2 * size
            batch = np.nan_to_num(bound) if per_key else bound[valid].sum(axis=0)
            # running_var holds the unbiased variance: at most twice the biased one.
            answers[f"running_{name}"] = Answer(new, 2 * largest * batch + averaging)
    return answers


def ask_second_order(
    x: Tensor, dy: Tensor, cotangents: tuple[Tensor, Tensor, Tensor], *, weight: Tensor, bias: Tensor, **options
) -> dict[str, Answer]:
    """Return the gradients of ``sum(cotangent * gradient)`` over dx, dweight and dbias, for x, weight and dy.

    Central differences of the reference's backward, in float64. A correction is held: it is a constant to autograd.
    ``options`` are those of `ask` that matter to a forward, among them ``activation``, ``mask`` and ``bounds``.
    """
    names = ("residual", "running", "training", "eps", "activation", "mask", "kept", "groups", "bounds")
    defaults = {"training": True, "eps": 1e-5} | dict.fromkeys(set(names) - {"training", "eps"})
    unknown = set(options) - set(names)
    assert not unknown, f"no option of a forward: {unknown}"
    given = defaults | options
    _, cache = _forward(x, weight, bias, **given)
    held = None if given.pop("bounds") is None else (cache.factor, cache.summand)
    at = {"x": _array(x), "weight": _array(weight), "dy": _array(dy)}

    def backward(name: str, value: np.ndarray) -> float:
        moved = {key: torch.from_numpy(array) for key, array in (at | {name: value}).items()}
        _, cache = _forward(moved["x"], moved["weight"], bias, **given, bounds=None, held=held)
        grads = policies.backward(moved["dy"].numpy(), cache)
        return sum(np.sum(_array(c) * g) for c, g in zip(cotangents, grads[:3], strict=True))

    answers = {}
    for name, value in at.items():
        gradient = numeric_gradient(functools.partial(backward, name), value, 1.0)
        answers[name] = Answer(gradient, np.full(gradient.shape, tol.CENTRAL_DIFFERENCE * np.max(np.abs(gradient))))
    return answers


def _forward(x, weight, bias, residual, running, training, eps, activation, mask, kept, groups, bounds, held=None):
    """The reference's forward for torch tensors; ``held`` are the factor and summand of a correction."""
    arrays = [None if t is None else _array(t) for t in (x, weight, bias, residual)]
    masks = {"mask": mask, "kept": kept, "groups": groups}
    masks = {name: None if t is None else t.numpy() for name, t in masks.items()}
    options = {"eps": eps, "activation": activation, "residual": arrays[3]}
    if not training:
        masks["kept"] = masks.pop("mask") if kept is None else masks["kept"]
        masks.pop("mask", None)
        return policies.forward_test(arrays[0], *map(_array, running), arrays[1], arrays[2], **masks, **options)
    correct = None if held is None else lambda mean, var: held
    if bounds is not None:
        sigma = _deviation(running, eps)
        limits = {"rmax": bounds.rmax, "dmax": bounds.dmax, "eps": eps}
        correct = functools.partial(renorm.correction, running_mean=_array(running[0]), sigma=sigma, **limits)
    return policies.forward_train(*arrays[:3], correct=correct, **masks, **options)


def _deviation(running: tuple[Tensor, Tensor], eps: float) -> np.ndarray:
    return np.sqrt(_array(running[1]) + eps)


def _sizes(x, dy, bias, residual, activation, cache: policies.Cache, sigma: np.ndarray | None) -> dict[str, np.ndarray]:
    """Sums of the absolute values of the terms that each result is made of."""
    (of_row, counted, kept), shape = cache.reduction, x.shape
    unit, number = tol.arithmetic_eps(x.dtype), len(cache.statistics)
    mean, var = (np.array([np.broadcast_to(s[i], (shape[1],)) for s in cache.statistics]) for i in (0, 1))
    values = np.array([max(np.sum(of_row == group), 1) for group in range(number)])[:, None]
    count = np.array([max(found.count, 1) for found in cache.statistics])[:, None]
    # What is left of the mean after centring, in deviations and in units of the arithmetic's eps: the statistics'
    # own rounding (float64), and that of the second centring, which is of the size of the first one's error.
    left_over = tol.storage_eps(torch.float64) / unit + unit * (1 + np.log2(values))
    left_over = np.nan_to_num(left_over * np.abs(mean * cache.invstd), posinf=np.inf)

    def per_group(reduce, rows: np.ndarray) -> np.ndarray:
        return np.array([reduce(rows[of_row == group], axis=0) for group in range(number)])

    largest = functools.partial(np.max, initial=0)
    x_hat = per_group(largest, np.abs(cache.x_hat)) + left_over
    corrected = np.abs(cache.factor) * x_hat + np.abs(cache.summand)
    if sigma is not None:  # the summand is a difference of means, over the running deviation
        corrected = corrected + (np.abs(mean) * unit + np.sqrt(var)) / sigma
    added = np.broadcast_to(np.abs(_or_zero(bias)), (number, shape[1]))
    z = (np.abs(cache.weight) * corrected + added)[of_row] + np.abs(to_rows(np.broadcast_to(_or_zero(residual), shape)))
    # An error of z moves the slope of the activation: dz carries |dy| times it.
    dz = np.where(kept[:, None], np.abs(to_rows(_array(dy))) * (1 + (0 if activation is None else z)), 0.0)
    sum_dz = per_group(np.sum, dz)
    scale = np.abs(cache.weight * cache.factor * cache.invstd)
    through = counted[:, None] * (sum_dz * (1 + x_hat**2) / count)[of_row]
    dweight, dbias = sum_dz * corrected, sum_dz
    if cache.shared:
        dweight, dbias = dweight.sum(axis=0), dbias.sum(axis=0)
    rows = {"z": np.where(kept[:, None], z, 0.0), "dz": dz, "dx": np.nan_to_num(scale)[of_row] * (dz + through)}
    return {name: from_rows(value, tuple(shape)) for name, value in rows.items()} | {"dweight": dweight, "dbias": dbias}


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _or_zero(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(1) if tensor is None else _array(tensor)
