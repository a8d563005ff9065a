"""Batch normalization in plain torch operations: any device, any floating dtype, no compiler.

Accuracy: arithmetic in float32 (float64 for float64), statistics in float64. Data are centred twice, by a rounded
mean and then by the mean of what is left, before anything is squared; squares are taken in float64, so values near
1e30 do not overflow; outputs come from centred values. For |mean| up to 1e6 standard deviations a float32 output is
within a few ulp of the exact result on the same inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import (
    Gradients,
    Statistics,
    Sums,
    accumulation_dtype,
    channel_shape,
    reduced_dims,
    statistics_dtype,
    values_per_channel,
)


def refusal(x: Tensor) -> str | None:  # noqa: ARG001  # the interface's signature
    """Refuse nothing: these are torch's own operations."""
    return None


def collect(x: Tensor) -> Statistics:
    """Return the mean and biased variance of each channel; NaN where it holds no value."""
    return _centred_and_statistics(x)[1]


def normalize(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in ``out`` where it is given."""
    wide = statistics_dtype(x.device)
    y = _finish(_centred(x, mean.to(wide)), residual, var.to(wide), weight, bias, eps, activation).to(x.dtype)
    return y if out is None else out.copy_(y)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of `normalize` with the statistics of ``x``, and these: y, mean, var."""
    centred, (mean, var) = _centred_and_statistics(x)
    return _finish(centred, residual, var, weight, bias, eps, activation).to(x.dtype), mean, var


def reduce(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Sums:
    """Return the two sums of the backward pass."""
    x_hat = _x_hat(x, mean, var, eps)
    return _sums(_dz(dy, x_hat, residual, weight, bias, activation), x_hat)


def apply(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    sums: Sums,
    count: int,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dz (None without a residual), given the sums over all ``count`` values of a channel."""
    x_hat = _x_hat(x, mean, var, eps)
    dz = _dz(dy, x_hat, residual, weight, bias, activation)
    dx = _dx(dz, x_hat, sums, count).mul_(_scale(var, weight, eps, x_hat))
    return dx.to(x.dtype), None if residual is None else _laid_out(dz, x)


def backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    batch_statistics: bool,
) -> Gradients:
    """Return the gradients of all inputs; ``batch_statistics``: mean and var are those of ``x``."""
    x_hat = _x_hat(x, mean, var, eps)
    dz = _dz(dy, x_hat, residual, weight, bias, activation)
    sums = _sums(dz, x_hat)
    dx = _dx(dz, x_hat, sums, values_per_channel(x)) if batch_statistics else torch.empty_like(x_hat).copy_(dz)
    dx = dx.mul_(_scale(var, weight, eps, x_hat)).to(x.dtype)
    return (
        dx,
        None if residual is None else _laid_out(dz, x),
        None if weight is None else sums.sum_dy_xhat.to(weight.dtype),
        None if bias is None else sums.sum_dy.to(bias.dtype),
    )


def average(running: Tensor, value: Tensor, factor: float | Tensor, scale: float) -> None:
    """Move ``running`` to ``(1 - factor) * running + factor * scale * value``, in place, rounded once."""
    with torch.no_grad():
        running.copy_(torch.lerp(running.to(value.dtype), value * scale, factor))


# The pieces. A tensor named `centred`, `x_hat` or `z` is laid out as x, in the accumulation dtype.


def _centred_and_statistics(x: Tensor) -> tuple[Tensor, Statistics]:
    dims, dtype, wide = reduced_dims(x), accumulation_dtype(x.dtype), statistics_dtype(x.device)
    rounded_mean = x.mean(dims, keepdim=True, dtype=dtype)
    centred = torch.sub(x, rounded_mean, out=torch.empty_like(x, dtype=dtype))
    rest = centred.mean(dims, keepdim=True)
    centred.sub_(rest)
    var = centred.to(wide).square().mean(dims)
    return centred, Statistics((rounded_mean.to(wide) + rest).flatten(), var)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """Return ``x - mean``, to the last digit also where one float of the accumulation dtype cannot hold ``mean``."""
    dtype, shape = accumulation_dtype(x.dtype), channel_shape(x)
    rounded_mean = mean.to(dtype)
    rest = (mean - rounded_mean).to(dtype)
    centred = torch.sub(x, rounded_mean.view(shape), out=torch.empty_like(x, dtype=dtype))
    return centred.sub_(rest.view(shape))


def _scale(var: Tensor, weight: Tensor | None, eps: float, like: Tensor) -> Tensor:
    """Return ``weight / sqrt(var + eps)``, rounded once and lined up with ``like``."""
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    return scale.to(like.dtype).view(channel_shape(like))


def _x_hat(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    centred = _centred(x, mean)
    return centred.mul_(_scale(var, None, eps, centred))


def _shifted(z: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Add bias and residual in place."""
    if bias is not None:
        z.add_(bias.to(z.dtype).view(channel_shape(z)))
    return z if residual is None else z.add_(residual)


def _finish(
    centred: Tensor,
    residual: Tensor | None,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Turn centred values into the output, in place."""
    y = _shifted(centred.mul_(_scale(var, weight, eps, centred)), bias, residual)
    return y if activation is None else ACTIVATIONS[activation].inplace(y)


def _dz(
    dy: Tensor,
    x_hat: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Return the gradient before the activation; what the activation saw is computed anew."""
    dy = dy.to(x_hat.dtype)
    if activation is None:
        return dy
    z = x_hat.clone() if weight is None else x_hat * weight.to(x_hat.dtype).view(channel_shape(x_hat))
    return ACTIVATIONS[activation].backward(dy, _shifted(z, bias, residual))


def _sums(dz: Tensor, x_hat: Tensor) -> Sums:
    dims = reduced_dims(x_hat)
    return Sums(dz.sum(dims), (dz * x_hat).sum(dims))


def _dx(dz: Tensor, x_hat: Tensor, sums: Sums, count: int) -> Tensor:
    """Return dx up to the factor `_scale`; overwrites ``x_hat``."""
    shape = channel_shape(x_hat)
    x_hat.mul_((sums.sum_dy_xhat / count).view(shape)).add_((sums.sum_dy / count).view(shape))
    return torch.sub(dz, x_hat, out=x_hat)


def _laid_out(dz: Tensor, x: Tensor) -> Tensor:
    """Return ``dz`` in the dtype and memory format of ``x``, in memory of its own."""
    return torch.empty_like(x).copy_(dz)
