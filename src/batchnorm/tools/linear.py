"""Convolutions and dense layers, as a fold sees them: weights with one row per output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from batchnorm.tools.graph.dataflow import is_observed

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (*_CONV, *_TRANSPOSED, nn.Linear)
_FORWARDS = {vars(kind)["forward"] for kind in KINDS}
_CONV_FORWARDS = {vars(kind)["_conv_forward"] for kind in _CONV}


def refusal(layer: Any) -> str | None:
    """Return why the weights of a layer of these kinds cannot be changed, or None."""
    kind = type(layer).__name__
    if parametrize.is_parametrized(layer):
        return f"the weight of this {kind} is computed by a parametrization"
    inner = type(layer)._conv_forward if isinstance(layer, _CONV) else None  # noqa: SLF001  # what subclasses override
    if type(layer).forward not in _FORWARDS or (inner is not None and inner not in _CONV_FORWARDS):
        return f"{kind} has a forward of its own"
    if is_observed(layer):
        return f"this {kind} has hooks, or a forward of its own"
    parameters = layer._parameters  # noqa: SLF001  # pruning and weight_norm take a parameter out of it
    if "weight" not in parameters or "bias" not in parameters:
        return f"the weight of this {kind} is computed"
    if nn.parameter.is_lazy(layer.weight) or layer.weight.device.type == "meta":
        return f"this {kind} has no weights yet"
    if not layer.weight.is_floating_point():
        return f"the weight of this {kind} is {layer.weight.dtype}"
    return None


def rank(layer: Any) -> int:
    """Return the number of dimensions of a batch."""
    return int(layer.weight.dim())


def outputs(layer: Any) -> int:
    """Return the number of output channels."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def inputs(layer: Any) -> int:
    """Return the number of input channels."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def groups(layer: Any) -> int:
    """Return the number of groups, 1 for a dense layer."""
    return int(getattr(layer, "groups", 1))


def is_transposed(layer: nn.Module) -> bool:
    """Return whether this is a transposed convolution, whose weights begin with the input channels."""
    return isinstance(layer, _TRANSPOSED)


def rows(layer: Any) -> Tensor:
    """Return the weights in float64 on the CPU, of shape (out, in / groups, taps)."""
    weight: Tensor = layer.weight.detach().cpu().double()
    if is_transposed(layer):
        weight = weight.reshape(groups(layer), inputs(layer) // groups(layer), weight.shape[1], -1).transpose(1, 2)
    return weight.reshape(outputs(layer), inputs(layer) // groups(layer), -1)


def weight_of(layer: Any, rows: Tensor) -> Tensor:
    """Return rows in the layer's own order: the inverse of `rows`."""
    if is_transposed(layer):
        rows = rows.reshape(groups(layer), -1, *rows.shape[1:]).transpose(1, 2)
    return rows.reshape(layer.weight.shape)


def bias_of(layer: Any) -> Tensor:
    """Return the bias in float64 on the CPU; zeros if there is none."""
    if layer.bias is None:
        return torch.zeros(outputs(layer), dtype=torch.float64)
    bias: Tensor = layer.bias.detach().cpu().double()
    return bias


def per_input(layer: Any, values: Tensor) -> Tensor:
    """Return one value per input channel so that it multiplies rows: (out, in / groups, 1)."""
    g = groups(layer)
    spread = values.view(g, 1, -1).expand(g, outputs(layer) // g, -1)
    return spread.reshape(outputs(layer), -1, 1)


def pads_with_zeros(layer: Any) -> bool:
    """Return whether a convolution puts zeros around its input."""
    if isinstance(layer, nn.Linear):
        return False
    if is_transposed(layer):
        return True  # at its borders outputs have fewer taps
    return layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)  # noqa: SLF001  # "same" too


def changed(layer: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a module that shares everything with this one but these parameters or buffers."""
    other: nn.Module = object.__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other.__dict__["_parameters"] = layer._parameters | {  # noqa: SLF001  # the tensors of this module only
        name: nn.Parameter(t, False)
        for name, t in tensors.items()
        if name in layer._parameters  # noqa: SLF001
    }
    buffers = {name: t for name, t in tensors.items() if name in layer._buffers}  # noqa: SLF001
    other.__dict__["_buffers"] = layer._buffers | buffers  # noqa: SLF001
    return other


def probe(layer: Any, seed: int = 0) -> Tensor:
    """Return random inputs large enough for the layer, in its dtype, on its device."""
    generator = torch.Generator().manual_seed(seed)
    shape = [2, inputs(layer)]
    if not isinstance(layer, nn.Linear):
        for k, dilation, stride in zip(layer.kernel_size, layer.dilation, layer.stride, strict=True):
            shape.append(dilation * (k - 1) + 2 * stride + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(layer.weight)
