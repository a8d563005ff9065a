"""The arms of one operation: torch as a user writes it, this package, and the copy that is the floor.

torch's arm comes in the two ways that users write it, with a new tensor for each result and with add and ReLU in place
(as torchvision does); the quicker one is the opponent. All arms work on the same tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own way

import batchnorm
from batchnorm.lab.bench.config import Case
from batchnorm.lab.bench.measure import Arm

TORCH_LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYERS = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d, 5: batchnorm.BatchNorm3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Forward = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Contender:
    """A layer with its parameters and buffers, and its call: from x, and the residual or None, to y."""

    layer: nn.Module
    forward: Forward


@dataclass(frozen=True)
class Inputs:
    """The tensors that all arms of a case share, in its layout and dtype: input, upstream gradient, residual."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None


def draw(case: Case, seed: int = 0) -> Inputs:
    """Draw the tensors of a case: values around 1 with deviation 2, and a random upstream gradient.

    ``x`` and ``residual`` require gradients where the case has a backward.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    memory_format = torch.contiguous_format
    if case.layout == "channels_last":
        memory_format = CHANNELS_LAST[len(case.shape)]

    def normal(mean: float, deviation: float) -> Tensor:
        values = torch.randn(case.shape, generator=generator).mul_(deviation).add_(mean)
        return values.to(dtype).contiguous(memory_format=memory_format)

    x, dy = normal(1.0, 2.0), normal(0.0, 1.0)
    residual = normal(0.0, 1.0).requires_grad_(case.training) if case.has_residual else None
    return Inputs(x.requires_grad_(case.training), dy, residual)


def contenders(case: Case, *, compiled: bool = False) -> dict[str, Contender]:
    """Make the layers to compare, with equal parameters.

    By name: torch; torch_inplace where the operation has something to do in place; compile if asked for; batchnorm.
    """
    rank, channels = len(case.shape), case.shape[1]

    def torch_layer() -> nn.Module:
        return _prepare(TORCH_LAYERS[rank](channels), case)

    plain, inplace = _torch_forward(case)
    layer = torch_layer()
    found = {"torch": Contender(layer, plain(layer))}
    if case.activation is not None:
        layer = torch_layer()
        found["torch_inplace"] = Contender(layer, inplace(layer))
    if compiled:
        layer = torch_layer()
        found["compile"] = Contender(layer, torch.compile(plain(layer), dynamic=False))
    ours = _prepare(LAYERS[rank](channels, activation=case.activation), case)
    found["batchnorm"] = Contender(ours, ours)
    return found


def timed(case: Case, contenders: dict[str, Contender], inputs: Inputs) -> dict[str, Arm]:
    """Turn the contenders into arms that can be timed, and add the floor, copy: x into memory that is already there."""
    arms = {}
    for name, contender in contenders.items():
        call = _training(contender, inputs) if case.training else _inference(contender, inputs)
        arms[name] = Arm(call, _forget_gradients(contender.layer))
    source = inputs.x.detach()
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return {**arms, "copy": Arm(copy)}


def explanation(x: Tensor) -> tuple[str, str]:
    """Return backend and target of the arm batchnorm for input ``x``; the target is empty where there is only one."""
    ran = batchnorm.explain(x)
    return ran.backend, ran.target


def _training(contender: Contender, inputs: Inputs) -> Callable[[], None]:
    forward, x, dy, residual = contender.forward, inputs.x, inputs.dy, inputs.residual

    def call() -> None:
        forward(x, residual).backward(dy)
        # In a network the layers before consume these gradients at once; to free them is part of a step.
        x.grad = None
        if residual is not None:
            residual.grad = None

    return call


def _inference(contender: Contender, inputs: Inputs) -> Callable[[], None]:
    forward, x, residual = contender.forward, inputs.x, inputs.residual

    def call() -> None:
        with torch.no_grad():
            forward(x, residual)

    return call


def _forget_gradients(layer: nn.Module) -> Callable[[], None]:
    parameters = list(layer.parameters())

    def reset() -> None:
        for parameter in parameters:
            parameter.grad = None

    return reset


def _prepare(layer: nn.Module, case: Case) -> nn.Module:
    """Give the layer parameters and running statistics that are not 0 or 1, the same for every contender."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer.train(case.training)


def _torch_forward(case: Case) -> tuple[Callable[[nn.Module], Forward], Callable[[nn.Module], Forward]]:
    """Return what makes torch's forward from a layer: results in new tensors, and in place."""
    if case.has_residual:
        return (
            lambda layer: lambda x, residual: F.relu(layer(x) + residual),
            lambda layer: lambda x, residual: F.relu(layer(x).add_(residual), inplace=True),
        )
    if case.activation is not None:
        return (
            lambda layer: lambda x, _: F.relu(layer(x)),
            lambda layer: lambda x, _: F.relu(layer(x), inplace=True),
        )
    return (lambda layer: lambda x, _: layer(x)), (lambda layer: lambda x, _: layer(x))
