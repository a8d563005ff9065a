"""The forward pass as differentiable torch operations: what derivatives beyond the first are made of.

Autograd differentiates this as often as asked, so second, third and higher orders are right by construction. It runs
only when a derivative of the backward pass is wanted, and computes in the statistics' dtype throughout.
"""

from __future__ import annotations

from torch import Tensor

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.kernels.interface import Statistics, channel_shape, reduced_dims, statistics_dtype


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stored: Statistics | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Return ``activation(x_hat * weight + bias + residual)``, differentiable in every tensor.

    Parameters
    ----------
    x, residual : Tensor of shape (N, C, *)
        Any floating dtype; ``residual`` may be None.
    weight, bias : Tensor of shape (C,) or None
        Affine parameters; None: 1 and 0.
    stored : Statistics or None
        Constants to normalize with; None for the statistics of ``x``, through which gradients then flow.
    eps : float
        Added to the variance.
    activation : str or None
        A name of `batchnorm.kernels.activations`.

    Returns
    -------
    Tensor
        Shape of ``x``, in the dtype of statistics.
    """
    wide, shape, dims = statistics_dtype(x.device), channel_shape(x), reduced_dims(x)
    x = x.to(wide)
    if stored is None:
        centred = x - x.mean(dims, keepdim=True)
        var = centred.square().mean(dims, keepdim=True)
    else:
        centred = x - stored.mean.view(shape)
        var = stored.var.view(shape)
    z = centred * (var + eps).rsqrt()
    if weight is not None:
        z = z * weight.to(wide).view(shape)
    if bias is not None:
        z = z + bias.to(wide).view(shape)
    if residual is not None:
        z = z + residual.to(wide)
    return z if activation is None else ACTIVATIONS[activation].function(z)
