"""Measure internal covariate shift as a change of gradients: Santurkar et al. 2018, definition 2.1."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.probes.calls import Calls, in_forward_order
from batchnorm.probes.gradients import norm, own_parameters
from batchnorm.probes.probe import Reading, Step, Value
from batchnorm.probes.replay import Replay, replay, stepped


class Shift:
    r"""Measure how the step of all earlier layers changes the gradient of a layer, on the same batch (probe "shift").

    .. math:: G_i = \nabla_{W_i} L(W_1, \dots, W_k), \quad
        G'_i = \nabla_{W_i} L(W'_1, \dots, W'_{i-1}, W_i, \dots, W_k), \quad
        \text{shift}_i = \lVert G_i - G'_i \rVert_2

    with :math:`W'` the weights after the optimizer's step; ``cosine`` is the cosine of the angle between the two.
    The layers are the modules with a matrix of weights (dense, convolution, embedding), each with its bias; parameters
    of normalization move with the layers that come earlier. Both gradients have the same dropout masks.

    It costs a forward and backward pass per layer, and a copy of weights and optimizer state.

    Parameters
    ----------
    model : Module
        The network.

    References
    ----------
    Santurkar, Tsipras, Ilyas and Madry 2018, :arxiv:`1805.11604`, definition 2.1.
    """

    name = "shift"
    description = (
        "For each layer with a matrix of weights, its gradient on this batch before and after all earlier layers have "
        "taken their step (arXiv 1805.11604, definition 2.1)."
    )

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls = Calls(model, own_parameters(model), lambda _: None)

    def watch(self) -> AbstractContextManager[None]:
        """Watch the forward and backward pass inside the block."""
        return self._calls.watch(lambda: None)

    def measure(self, step: Step) -> Reading:
        """Move the layers one by one from the first, return each change of gradient, and restore the weights."""
        owned = own_parameters(self._model)
        names = {module: name for name, module in self._model.named_modules()}
        after = stepped(step)
        layers = {}
        with replay(step) as replayed:
            order = in_forward_order(owned, self._calls.counts)
            measured = [module for module in order if any(p.dim() > 1 for p in owned[module])]
            _, gradients = replayed.gradients([p for module in measured for p in owned[module]])
            before = _by_module(measured, owned, gradients)
            moved = False
            for module in order:
                if module in before:
                    # Nothing has moved before the first layer: its shift is 0, not what evaluating again might add.
                    now = _again(replayed, owned[module]) if moved else before[module]
                    layers[names[module]] = _compared(before[module], now)
                for parameter in owned[module]:
                    if parameter in after:
                        parameter.data = after[parameter]
                        moved = True
        return Reading(layers=layers)


def _by_module(modules: list[nn.Module], owned: dict[nn.Module, Any], gradients: list[Tensor]) -> dict[nn.Module, Any]:
    rest = iter(gradients)
    return {module: [next(rest) for _ in owned[module]] for module in modules}


def _again(replayed: Replay, parameters: list[nn.Parameter]) -> list[Tensor]:
    return replayed.gradients(parameters)[1]


def _compared(before: list[Tensor], after: list[Tensor]) -> dict[str, Value]:
    size, other = norm(before), norm(after)
    product = sum(torch.sum(g.double() * h.double()).item() for g, h in zip(before, after, strict=True))
    return {
        "shift": norm([h - g for g, h in zip(before, after, strict=True)]),
        "cosine": product / (size * other) if size * other else float("nan"),
        "gradient_norm": size,
    }
