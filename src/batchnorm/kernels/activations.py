"""The activations that a kernel can apply in the pass that normalizes, by their name in ``torch.nn.functional``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own habit

LEAKY_SLOPE = 0.01  # torch's default


class Activation(NamedTuple):
    """One activation.

    Attributes
    ----------
    function : callable
        The differentiable function of ``z``.
    inplace : callable
        The same, writing into ``z``.
    backward : callable
        ``(dy, z) -> dz``.
    """

    function: Callable[[Tensor], Tensor]
    inplace: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


_aten = torch.ops.aten

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(F.relu, F.relu_, lambda dy, z: _aten.threshold_backward(dy, z, 0)),
    "relu6": Activation(
        F.relu6, lambda z: F.relu6(z, inplace=True), lambda dy, z: _aten.hardtanh_backward(dy, z, 0, 6)
    ),
    "leaky_relu": Activation(
        F.leaky_relu, F.leaky_relu_, lambda dy, z: _aten.leaky_relu_backward(dy, z, LEAKY_SLOPE, False)
    ),
    "silu": Activation(F.silu, lambda z: F.silu(z, inplace=True), _aten.silu_backward),
    "hardswish": Activation(F.hardswish, lambda z: F.hardswish(z, inplace=True), _aten.hardswish_backward),
    "gelu": Activation(F.gelu, _aten.gelu_, _aten.gelu_backward),
    "sigmoid": Activation(torch.sigmoid, torch.sigmoid_, lambda dy, z: _aten.sigmoid_backward(dy, z.sigmoid())),
    "tanh": Activation(torch.tanh, torch.tanh_, lambda dy, z: _aten.tanh_backward(dy, z.tanh())),
}
