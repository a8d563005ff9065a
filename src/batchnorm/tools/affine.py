"""Normalizations that multiply each channel by one number and add another, recognized by their behaviour."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.kernels.activations import ACTIVATIONS
from batchnorm.tools import swap

#: How far a forward in float64 may be from the formula, relative to its largest value.
ROUNDING = 1e-11


@dataclass(frozen=True)
class Affine:
    """``y = (x - mean) * scale + bias`` per channel, in float64 on the CPU; then ``after``.

    Attributes
    ----------
    mean, scale, bias : Tensor of shape (C,)
    after : tuple of nn.Module
        Applied in this order.
    activation : str or None
        Of this package's layer, applied in the place of ``after``.
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor
    after: tuple[nn.Module, ...] = ()
    activation: str | None = None

    @property
    def shift(self) -> Tensor:
        """The output for an input of 0."""
        return self.bias - self.mean * self.scale


def affine(layer: nn.Module, rank: int) -> Affine | str:
    """Return what a normalization computes in its mode, or why that is not known.

    Torch's and this package's layers, and frozen ones of any library: all that hold ``running_mean``, ``running_var``
    and perhaps ``weight``, ``bias`` and ``eps``, compute with them as batch normalization does in evaluation, and then
    call their children. A copy in float64 is run on random values of this rank and must agree.
    """
    reason = obstacle(layer)
    if reason:
        return reason
    tensors = {name: _float64(getattr(layer, name, None)) for name in ("running_mean", "running_var", "weight", "bias")}
    mean, var, weight, bias = tensors.values()
    if mean is None or var is None or mean.dim() != 1 or mean.shape != var.shape:
        return "it keeps no running statistics, and normalizes with those of the batch"
    if any(t is not None and t.shape != mean.shape for t in (weight, bias)):
        return "its weight and bias are not one number per channel"
    eps = getattr(layer, "eps", 1e-5)
    invstd = (var + eps).rsqrt()
    scale = invstd if weight is None else weight * invstd
    found = Affine(mean, scale, torch.zeros_like(mean) if bias is None else bias)
    if not all(torch.isfinite(t).all() for t in (found.mean, found.scale, found.bias)):
        return "its statistics, weight or bias give numbers that are not finite"
    if swap.is_ours(layer):
        found = Affine(found.mean, found.scale, found.bias, (), getattr(layer, "activation", None))
    else:
        found = Affine(found.mean, found.scale, found.bias, tuple(layer.children()))
    return found if _behaves(layer, found, rank) else "its forward computes something else than stored statistics say"


def obstacle(layer: Any) -> str | None:
    """Return why nothing can be known of a normalization, or None."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    if isinstance(layer, nn.modules.batchnorm._LazyNormBase):  # noqa: SLF001  # the only name of what they share
        return "it does not know its number of features yet; run one batch first"
    if layer.training and isinstance(layer, nn.modules.batchnorm._NormBase):  # noqa: SLF001  # as above
        return "it is in training mode"
    if any(p.device.type == "meta" for p in (*layer.parameters(), *layer.buffers())):
        return "it is on the meta device, without values"
    if swap.is_ours(layer) and layer.statistics.in_parts:
        return "its statistics depend on the key"
    return None


def _float64(tensor: Any) -> Tensor | None:
    return tensor.detach().cpu().double().clone() if isinstance(tensor, Tensor) else None


def _behaves(layer: nn.Module, found: Affine, rank: int) -> bool:
    channels = len(found.mean)
    x = torch.randn((2, channels, 3, 2, 2)[:rank], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # So that the result is neither constant nor linear behind an activation.
    x = 2 * x * found.scale.abs().clamp(1e-3, 1e3).reciprocal().amax() + found.mean.abs().amax()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = copy.deepcopy(layer).cpu().double()(x.clone())
    except Exception:  # whatever a user's module raises
        return False
    expected = applied(found, x)
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return False
    return bool((y - expected).abs().amax() <= ROUNDING * _size(found, x))


def _size(found: Affine, x: Tensor) -> float:
    return float(((x.abs().amax() + found.mean.abs()) * found.scale.abs() + found.bias.abs()).amax()) + 1.0


def applied(found: Affine, x: Tensor) -> Tensor:
    """Return what the normalization does to ``x``, in the dtype of ``x``."""
    mean, scale, bias = (t.to(x).view(-1, *[1] * (x.dim() - 2)) for t in (found.mean, found.scale, found.bias))
    y = (x - mean) * scale + bias
    if found.activation is not None:
        return ACTIVATIONS[found.activation].function(y)
    for module in found.after:
        y = copy.deepcopy(module).to(y.dtype)(y)
    return y
