"""The one comparison of converted models: outputs, all gradients and all state, over training and evaluation."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

import tolerances as tol
from batchnorm.tools import swap


def image(batch: int = 4, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 6, 6, generator=generator, dtype=torch.float64) + 0.5


def settle(model: nn.Module) -> nn.Module:
    """Give the parameters and running statistics values that matter, in float64."""
    generator = torch.Generator().manual_seed(1)
    model = model.double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                shift = 1.0 if name.endswith("running_var") else 0.0
                tensor.copy_(shift + 0.5 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


def runs_fused(model: nn.Module, *args: object) -> int:
    """Count the calls that really take something over, in one forward."""
    calls = []

    def see(_layer: nn.Module, _x: Tensor, residual: Tensor | None, activation: str | None) -> None:
        calls.append(residual is not None or activation is not None)

    model = copy.deepcopy(model)
    with ExitStack() as stack:
        for layer in filter(swap.is_ours, model.modules()):
            stack.enter_context(layer.observe(see))
        model(*(args or (image(),)))
    return sum(calls)


def check(original: nn.Module, converted: nn.Module, make: Callable[..., Tensor] = image) -> None:
    """Raise unless both models stay the same over two steps of training and one evaluation; works on copies."""
    models = copy.deepcopy(original), copy.deepcopy(converted)
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    optimizers = [torch.optim.SGD([{"params": list(model.parameters())}], lr=0.05, momentum=0.9) for model in models]
    training = original.training
    for step, mode in enumerate((training, training, not training)):
        results = []
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)
            random.seed(step)
            np.random.seed(step)  # noqa: NPY002  # one of the test models draws from it
            optimizer.zero_grad(set_to_none=False)
            x = make(seed=step).requires_grad_()
            y = model.train(mode)(x)
            generator = torch.Generator().manual_seed(step)
            y.backward(torch.randn(y.shape, generator=generator, dtype=y.dtype))
            results.append([y, x.grad, *(p.grad for p in model.parameters())])
            optimizer.step()
        _close(*results)
        _close(*(list(model.state_dict().values()) for model in models))


def _close(first: list[Tensor | None], second: list[Tensor | None]) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            # Of a few chained layers: each repeats its sums in another order, and passes on what it got.
            size = max(1.0, one.abs().max().item()) if one.numel() else 1.0
            torch.testing.assert_close(one, other, rtol=0, atol=50 * tol.FLOAT64_REORDERED * size)
