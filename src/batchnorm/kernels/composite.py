"""The forward pass as differentiable torch operations: what derivatives that are not the first are made of.

Autograd differentiates this as often as asked and in either mode, and ``torch.func`` looks into it, so higher orders,
forward mode and transforms are right by construction. It computes in the statistics' dtype throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own habit

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import (
    Epilogue,
    Reduction,
    Statistics,
    channel_shape,
    reduced_dims,
    statistics_dtype,
    values_per_channel,
)


def collect(x: Tensor, reduction: Reduction) -> Statistics:
    """Return the statistics of ``x``, differentiable in it."""
    wide, dims = statistics_dtype(x.device), reduced_dims(x)
    size, mask = reduction
    chunks = [x] if size is None else x.split(size)
    masks = [mask] * len(chunks) if size is None or mask is None else mask.split(size)
    parts = []
    for chunk, valid in zip(chunks, masks, strict=True):
        values = chunk.to(wide)
        if valid is None:
            count = torch.full((1,), values_per_channel(chunk), dtype=wide, device=x.device)
            centred = values - values.mean(dims, keepdim=True)
            mean, var = values.mean(dims), centred.square().mean(dims)
        else:
            count = valid.sum(dtype=wide).view(1)
            values = torch.where(valid, values, 0)
            mean = values.sum(dims) / count
            centred = torch.where(valid, values - mean.view(channel_shape(x)), 0)
            var = centred.square().sum(dims) / count
        parts.append((mean, var, count))
    return Statistics(*(torch.stack(part) for part in zip(*parts, strict=True)))


def standard(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, epilogue: Epilogue, eps: float
) -> Tensor:
    """Return the result of `normalize` with constants and without a mask, by torch's own operators, in x's dtype.

    Programs that are exported hold these: they load without this package, and tools that look for them find them.
    """
    weight, bias, residual, activation, _ = epilogue
    z = F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)
    z = z if residual is None else z + residual
    return z if activation is None else ACTIVATIONS[activation].function(z)


def normalize(x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float) -> Tensor:
    """Return ``activation(x_hat * weight + bias + residual)``, differentiable in every tensor, statistics included.

    Parameters
    ----------
    x : Tensor of shape (N, C, *)
        Any floating dtype.
    statistics : Statistics
        To normalize with.
    reduction : Reduction or None
        The groups that the statistics belong to; None: one group.
    epilogue : Epilogue
        What follows.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Shape of ``x``, in the dtype of statistics.
    """
    wide, shape = statistics_dtype(x.device), channel_shape(x)
    weight, bias, residual, activation, mask = epilogue
    mean, var = (_lined_up(t.to(wide), reduction, x) for t in (statistics.mean, statistics.var))
    x = x.to(wide)
    if mask is not None:  # before any arithmetic: a derivative of what is masked afterwards could be 0 times infinity
        x = torch.where(mask, x, 0)
    z = (x - mean) * (var + eps).rsqrt()
    if weight is not None:
        z = z * weight.to(wide).view(shape)
    if bias is not None:
        z = z + bias.to(wide).view(shape)
    if residual is not None:
        z = z + residual.to(wide)
    y = z if activation is None else ACTIVATIONS[activation].function(z)
    return y if mask is None else torch.where(mask, y, 0)


def _lined_up(vector: Tensor, reduction: Reduction | None, x: Tensor) -> Tensor:
    """Return a (C,) or (G, C) tensor in a shape that broadcasts over ``x``."""
    size = None if reduction is None else reduction.group_size
    if size is None or size >= x.shape[0]:
        return vector.reshape(channel_shape(x))
    group = torch.arange(x.shape[0], device=x.device) // size
    return vector[group].view(*x.shape[:2], *[1] * (x.dim() - 2))
