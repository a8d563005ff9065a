"""Batch normalization in plain torch operations: any device, any floating dtype, no compiler.

Accuracy: arithmetic in float32 (float64 for float64), statistics in float64. Data are centred twice, by a rounded
mean and then by the mean of what is left, before anything is squared; squares are taken in float64, so values near
1e30 do not overflow; outputs come from centred values. For |mean| up to 1e6 standard deviations a float32 output is
within a few ulp of the exact result on the same inputs.

Statistics of a mask are those of the values packed together, so padding changes no bit of them; finding these values
reads the mask on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import (
    Epilogue,
    Gradients,
    Reduction,
    Running,
    Statistics,
    Sums,
    accumulation_dtype,
    channel_shape,
    reduced_dims,
    statistics_dtype,
    values_per_channel,
)


def refusal(x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None) -> str | None:  # noqa: ARG001  # the interface's signature
    """Refuse nothing: these are torch's own operations."""
    return None


def target() -> str:
    """Return no name: torch chooses."""
    return ""


def copied(x: Tensor) -> str | None:  # noqa: ARG001  # the interface's signature
    """Return None: torch's operations read any strides."""
    return None


def collect(x: Tensor, reduction: Reduction) -> Statistics:
    """Return the statistics of ``x``."""
    parts = (_centred_and_statistics(values)[1] for values in _groups(x, reduction))
    return Statistics(*(torch.cat(part) for part in zip(*parts, strict=True)))


def normalize(
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in ``out`` if given."""
    wide = statistics_dtype(x.device)
    mean, var = statistics.mean.to(wide), statistics.var.to(wide)
    y = _finish(_centred(x, mean, reduction), var, reduction, epilogue, eps).to(x.dtype)
    return y if out is None else out.copy_(y)


def forward(x: Tensor, reduction: Reduction, epilogue: Epilogue, eps: float) -> tuple[Tensor, Statistics]:
    """Return the result of `normalize` with the statistics of ``x``, and these."""
    if not reduction.whole:
        statistics = collect(x, reduction)
        return normalize(x, statistics, reduction, epilogue, eps), statistics
    centred, statistics = _centred_and_statistics(x)
    return _finish(centred, statistics.var, reduction, epilogue, eps).to(x.dtype), statistics


def reduce(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Sums:
    """Return the two sums of the backward pass."""
    x_hat = _x_hat(x, statistics, reduction, eps)
    return _sums(_dz(dy, x_hat, epilogue), x_hat, reduction)


def apply(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    sums: Sums,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dresidual (None without a residual), given the sums over all values that share statistics."""
    x_hat = _x_hat(x, statistics, reduction, eps)
    return _applied(_dz(dy, x_hat, epilogue), x_hat, x, statistics, sums, reduction, epilogue, eps)


def backward(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Gradients:
    """Return the gradients of all inputs."""
    x_hat = _x_hat(x, statistics, reduction, eps)
    dz = _dz(dy, x_hat, epilogue)
    sums = _sums(dz, x_hat, reduction)
    dx, dresidual = _applied(dz, x_hat, x, statistics, sums, reduction, epilogue, eps)
    weight, bias = epilogue.weight, epilogue.bias
    return Gradients(
        dx,
        dresidual,
        None if weight is None else sums.sum_dy_xhat.sum(0).to(weight.dtype),
        None if bias is None else sums.sum_dy.sum(0).to(bias.dtype),
    )


def update(running: Running, statistics: Statistics, factor: float | Tensor, finite_only: bool) -> None:
    """Move running statistics towards those of each group in turn, and count, in place."""
    with torch.no_grad():
        usable = statistics.usable(finite_only)
        for group, values in enumerate(zip(statistics.mean, statistics.unbiased_var, strict=True)):
            weight = factor[group] if isinstance(factor, Tensor) and factor.dim() == 1 else factor
            for buffer, value in zip(running[:2], values, strict=True):
                assert buffer is not None
                moved = torch.lerp(buffer.to(value.dtype), value, weight)
                buffer.copy_(torch.where(usable[group], moved, buffer.to(value.dtype)))
        running.count_groups(usable.sum(), statistics)


# The pieces. A tensor named `centred`, `x_hat` or `z` is laid out as x, in the accumulation dtype.


def _groups(x: Tensor, reduction: Reduction) -> list[Tensor]:
    """Return the values of each group, as a tensor (N, C, *) or, behind a mask, (M, C)."""
    size, mask = reduction
    chunks = [x] if size is None else list(x.split(size))
    if mask is None:
        return chunks
    masks = [mask] if size is None else mask.split(size)
    return [c.movedim(1, -1)[m.movedim(1, -1).squeeze(-1)] for c, m in zip(chunks, masks, strict=True)]


def _lined_up(vector: Tensor, reduction: Reduction | None, x: Tensor) -> Tensor:
    """Return a (C,) or (G, C) tensor in a shape that broadcasts over ``x``."""
    size = None if reduction is None else reduction.group_size
    if size is None or size >= x.shape[0]:
        return vector.view(channel_shape(x))
    group = torch.arange(x.shape[0], device=x.device) // size
    return vector[group].view(*x.shape[:2], *[1] * (x.dim() - 2))


def _centred_and_statistics(x: Tensor) -> tuple[Tensor, Statistics]:
    dims, dtype, wide = reduced_dims(x), accumulation_dtype(x.dtype), statistics_dtype(x.device)
    rounded_mean = x.mean(dims, keepdim=True, dtype=dtype)
    centred = torch.sub(x, rounded_mean, out=torch.empty_like(x, dtype=dtype))
    rest = centred.mean(dims, keepdim=True)
    centred.sub_(rest)
    var = centred.to(wide).square().mean(dims)
    count = torch.full((1, 1), values_per_channel(x), dtype=wide, device=x.device)
    return centred, Statistics((rounded_mean.to(wide) + rest).view(1, -1), var.view(1, -1), count)


def _centred(x: Tensor, mean: Tensor, reduction: Reduction | None) -> Tensor:
    """Return ``x - mean``, to the last digit also where one float of the accumulation dtype cannot hold ``mean``."""
    dtype = accumulation_dtype(x.dtype)
    rounded_mean = mean.to(dtype)
    rest = (mean - rounded_mean).to(dtype)
    centred = torch.sub(x, _lined_up(rounded_mean, reduction, x), out=torch.empty_like(x, dtype=dtype))
    return centred.sub_(_lined_up(rest, reduction, x))


def _scale(var: Tensor, weight: Tensor | None, reduction: Reduction | None, eps: float, like: Tensor) -> Tensor:
    """Return ``weight / sqrt(var + eps)``, rounded once and lined up with ``like``."""
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    return _lined_up(scale.to(like.dtype), reduction, like)


def _x_hat(x: Tensor, statistics: Statistics, reduction: Reduction | None, eps: float) -> Tensor:
    centred = _centred(x, statistics.mean, reduction)
    return centred.mul_(_scale(statistics.var, None, reduction, eps, centred))


def _shifted(z: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Add bias and residual in place."""
    if bias is not None:
        z.add_(bias.to(z.dtype).view(channel_shape(z)))
    return z if residual is None else z.add_(residual)


def _finish(centred: Tensor, var: Tensor, reduction: Reduction | None, epilogue: Epilogue, eps: float) -> Tensor:
    """Turn centred values into the output, in place."""
    weight, bias, residual, activation, mask = epilogue
    y = _shifted(centred.mul_(_scale(var, weight, reduction, eps, centred)), bias, residual)
    if activation is not None:
        y = ACTIVATIONS[activation].inplace(y)
    return y if mask is None else y.masked_fill_(~mask, 0)


def _dz(dy: Tensor, x_hat: Tensor, epilogue: Epilogue) -> Tensor:
    """Return the gradient before the activation, computing its input anew; zero ``x_hat`` where outputs are masked."""
    weight, bias, residual, activation, mask = epilogue
    dz = dy.to(x_hat.dtype)
    if activation is not None:
        z = x_hat.clone() if weight is None else x_hat * weight.to(x_hat.dtype).view(channel_shape(x_hat))
        dz = ACTIVATIONS[activation].backward(dz, _shifted(z, bias, residual))
    return dz if mask is None else dz.masked_fill(~mask, 0)


def _sums(dz: Tensor, x_hat: Tensor, reduction: Reduction | None) -> Sums:
    size = None if reduction is None else reduction.group_size
    dims = reduced_dims(x_hat)
    # A product with a masked dz is 0 also where x, which nobody looks at, is not finite.
    products = (
        torch.where(dz == 0, 0, dz * x_hat) if reduction is not None and reduction.mask is not None else dz * x_hat
    )
    chunks = [(dz, products)] if size is None else zip(dz.split(size), products.split(size), strict=True)
    wide = statistics_dtype(x_hat.device)
    sums = [(a.sum(dims).to(wide), b.sum(dims).to(wide)) for a, b in chunks]
    return Sums(*(torch.stack(part) for part in zip(*sums, strict=True)))


def _applied(
    dz: Tensor,
    x_hat: Tensor,
    x: Tensor,
    statistics: Statistics,
    sums: Sums,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dresidual; overwrites ``x_hat``."""
    if reduction is None:
        dx = torch.empty_like(x_hat).copy_(dz)
    else:
        assert statistics.count is not None
        x_hat.mul_(_lined_up((sums.sum_dy_xhat / statistics.count).to(x_hat.dtype), reduction, x))
        x_hat.add_(_lined_up((sums.sum_dy / statistics.count).to(x_hat.dtype), reduction, x))
        if reduction.mask is not None:
            x_hat.masked_fill_(~reduction.mask, 0)
        dx = torch.sub(dz, x_hat, out=x_hat)
    dx = dx.mul_(_scale(statistics.var, epilogue.weight, reduction, eps, x_hat))
    if epilogue.mask is not None:  # a group without a value has no scale
        dx = dx.masked_fill_(~_touched(reduction, epilogue.mask), 0)
    return dx.to(x.dtype), None if epilogue.residual is None else _laid_out(dz, x)


def _touched(reduction: Reduction | None, kept: Tensor) -> Tensor:
    """Return where x has an influence on some output, directly or through the statistics."""
    if reduction is None or reduction.mask is kept:
        return kept
    return torch.ones_like(kept) if reduction.mask is None else kept | reduction.mask


def _laid_out(dz: Tensor, x: Tensor) -> Tensor:
    """Return ``dz`` in the dtype and memory format of ``x``, in memory of its own."""
    return torch.empty_like(x).copy_(dz)
