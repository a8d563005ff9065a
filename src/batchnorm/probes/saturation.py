"""Find nonlinearities, and mark the inputs at which their units hardly learn."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchnorm.kernels.activations import ACTIVATIONS

Rule = Callable[[Tensor], Tensor]

# Inputs at which a unit hardly learns: its output is within 5% of an end of its range, or its gradient is zero.
SATURATED: dict[str, Rule] = {
    "sigmoid": lambda u: u.abs() > math.log(19),  # sigmoid(ln 19) = 0.95
    "tanh": lambda u: u.abs() > math.log(19) / 2,  # tanh(u) = 2 sigmoid(2u) - 1
    "relu": lambda u: u <= 0,
    "relu6": lambda u: (u <= 0) | (u >= 6),
}

#: For the others: the slope under which a unit hardly learns, where that of a large input is 1.
FLAT = 0.05

#: Their slope is small on one side by design, and nowhere smaller.
_NEVER = (nn.LeakyReLU, nn.PReLU, nn.RReLU)
_NAMED: dict[type[nn.Module], Rule] = {
    nn.Sigmoid: SATURATED["sigmoid"],
    nn.Tanh: SATURATED["tanh"],
    nn.ReLU: SATURATED["relu"],
    nn.ReLU6: SATURATED["relu6"],
    nn.Softsign: lambda u: u.abs() > 9,  # 5% of the range from -1 to 1
}
NONLINEARITIES: tuple[type[nn.Module], ...] = (
    *_NAMED,
    *_NEVER,
    *(nn.Threshold, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.LogSigmoid),
)


def rule_of(module: nn.Module) -> Rule:
    """Return the function that marks the saturated inputs of a module of a type in `NONLINEARITIES`."""
    if isinstance(module, _NEVER):
        return lambda u: torch.zeros_like(u, dtype=torch.bool)
    named = next((rule for cls, rule in _NAMED.items() if type(module) is cls), None)
    return named or (lambda u: _slope(module.forward, u).abs() < FLAT)


def rule_named(activation: str) -> Rule:
    """Return the function that marks the saturated inputs of an activation of our kernels."""
    if activation == "leaky_relu":
        return lambda u: torch.zeros_like(u, dtype=torch.bool)
    return SATURATED.get(activation) or (lambda u: _slope(ACTIVATIONS[activation].function, u).abs() < FLAT)


def _slope(function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = u.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf * 1).sum(), leaf)  # a product, as the function may work in place
    return slope
