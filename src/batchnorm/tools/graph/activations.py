"""Which activation of the kernels a call in a graph is, if any: a module, a function or a tensor's method."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812  # torch's own habit

from batchnorm.kernels.activations import LEAKY_SLOPE
from batchnorm.tools.graph import trace

MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    F.relu6: "relu6",
    **dict.fromkeys((F.hardtanh, F.hardtanh_), "hardtanh"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.gelu: "gelu",
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_), "tanh"),
}
METHODS = {"relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}
#: What the functions take after x, in order, and the only value with which they are the kernels' activation; `inplace`
#: does not matter, since nobody else has the tensor.
OPTIONS: dict[str, dict[str, Any]] = {
    "leaky_relu": {"negative_slope": LEAKY_SLOPE, "inplace": None},
    "gelu": {"approximate": "none"},
    "relu": {"inplace": None},
    "relu6": {"inplace": None},
    "hardtanh": {"min_val": 0, "max_val": 6, "inplace": None},
    "silu": {"inplace": None},
    "hardswish": {"inplace": None},
}
#: Options that have another value where they are left out.
DEFAULTS: dict[str, dict[str, Any]] = {"hardtanh": {"min_val": -1.0, "max_val": 1.0}}
#: What the kernels call it.
NAMES = {"hardtanh": "relu6"}


@dataclass(frozen=True)
class Found:
    """What a call turned out to be.

    Attributes
    ----------
    name : str or None
        The activation, or None.
    reason : str
        Why it is none, where it is nearly one.
    reads : dict of str to object
        The attributes of the module that this depends on.
    """

    name: str | None
    reason: str = ""
    reads: dict[str, Any] = field(default_factory=dict)


def of_module(module: nn.Module) -> Found:
    """Say which activation a module is: by its class, or by what its forward computes."""
    name = MODULES.get(type(module))
    if name is None:
        return _by_forward(module)
    reads = {option: getattr(module, option) for option, value in OPTIONS.get(name, {}).items() if value is not None}
    return _checked(name, reads, reads)


def of_call(node: fx.Node) -> Found:
    """Say which activation a function or a method of a tensor is, with the arguments of this call."""
    name = None
    if node.op == "call_method":
        name = METHODS.get(str(node.target).removesuffix("_"))
    elif node.op == "call_function":
        name = FUNCTIONS.get(node.target)
    if name is None:
        return Found(None)
    options = DEFAULTS.get(name, {}) | dict(zip(OPTIONS.get(name, {}), node.args[1:], strict=False)) | node.kwargs
    options.pop("input", None)
    return _checked(name, options, {})


def _checked(name: str, options: dict[str, Any], reads: dict[str, Any]) -> Found:
    allowed = OPTIONS.get(name, {})
    for option, value in options.items():
        if option not in allowed:
            return Found(None, f"{name} with {option}=")
        if allowed[option] not in (None, value):
            return Found(None, f"{name} with {option}={value}, where the kernels have {allowed[option]}")
    return Found(NAMES.get(name, name), "", reads)


def _by_forward(module: nn.Module) -> Found:
    """Recognize modules that wrap a function, and those that compute x * sigmoid(x) or x * relu6(x + 3) / 6."""
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return Found(None)
    try:
        found = trace.traces(module)
    except trace.TraceError:
        return Found(None)
    if len(found) > 1 or len(found[0].inputs) != 1 or found[0].kind is not None:
        return Found(None)
    *_, output = found[0].graph.nodes
    x, *_ = found[0].graph.nodes
    result = output.args[0]
    if isinstance(result, fx.Node) and result.args[:1] == (x,) and len(found[0].graph.nodes) == 3:
        inner = of_call(result)  # a module that only wraps a function
        return replace(inner, reads=found[0].reads[""]) if inner.name else inner
    if _is_silu(x, result):
        return Found("silu", "", found[0].reads[""])
    return Found("hardswish", "", found[0].reads[""]) if _is_hardswish(x, result) else Found(None)


def _is_silu(x: fx.Node, result: Any) -> bool:
    operands = _operands(result, operator.mul, torch.mul, "mul")
    return any(a is x and _calls(b, x, torch.sigmoid, F.sigmoid, "sigmoid") for a, b in _both_orders(operands))


def _is_hardswish(x: fx.Node, result: Any) -> bool:
    numerator, denominator = _operands(result, operator.truediv, torch.div, "div") or (None, None)
    product = _operands(numerator, operator.mul, torch.mul, "mul")
    return denominator == 6 and any(
        a is x
        and isinstance(b, fx.Node)
        and b.target is F.relu6
        and any(c is x and d == 3 for c, d in _both_orders(_operands(b.args[0], operator.add, torch.add, "add")))
        for a, b in _both_orders(product)
    )


def _calls(node: Any, x: fx.Node, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in targets and node.args == (x,) and not node.kwargs


def _operands(node: Any, *targets: Any) -> tuple[Any, Any] | None:
    if isinstance(node, fx.Node) and node.target in targets and len(node.args) == 2 and not node.kwargs:
        return node.args[0], node.args[1]
    return None


def _both_orders(operands: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
    return [] if operands is None else [operands, operands[::-1]]
